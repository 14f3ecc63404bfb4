//! `bindonce run -- haproxy -f FILE`: the supervisor, in the foreground.

mod kind;
mod preset;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bindonce_core::listener::{Listener, Wanted};
use bindonce_core::name::Name;
use bindonce_core::{duration, generation};
use bindonce_supervisor::adopt::Replaced;
use bindonce_supervisor::{
    self as supervisor, BrokerSettings, Ended, FirstSettings, HandoverSettings, Kind,
    MetricsSettings, Settings, upgrade,
};
use bindonce_sys::{log, network};
use nix::sys::signal::{self, SigSet};

use crate::background;
use crate::globals::Globals;
use crate::logging;
use crate::stand_in::replace;

const HELP: &str = "\
Signals:
  SIGHUP, SIGUSR2  Reload; the outcome is in the log
  SIGTERM, SIGINT  Retire every generation, exit when all have drained; a second one exits at once
  SIGUSR1          For haproxy: the same as a first SIGTERM, like haproxy's own soft stop
  SIGTSTP, SIGTTIN, SIGTTOU  Ignored: Ctrl-Z and a terminal's output never stop it
  SIGALRM          Ignored, as by haproxy's master

Examples:
  bindonce run -- haproxy -f /etc/haproxy/haproxy.cfg
      The configuration is not changed; a broker is started if none answers
  bindonce run --name edge --drain-timeout 1h -- haproxy -f /etc/haproxy/edge
      A second service, whose older generations may drain for an hour
  bindonce run --listen web=0.0.0.0:80 -- haproxy -f site.cfg
      For a configuration with: bind fd@${web}
  bindonce run --listen web=0.0.0.0:80 -- ./server
      A program that takes its socket as from systemd, sends READY=1, and drains on SIGTERM
  bindonce run --as nginx --listen web=0.0.0.0:80 -- nginx -g 'daemon off;'
      With --variable NGINX='{fds:;};' --retire-signal SIGQUIT, and ready when it has a worker
  bindonce run --intercept -- python3 -m http.server 8080
      A program that inherits no sockets: its bind() returns the broker's

Exit codes:
  0  Ended by a signal, and drained
  1  The first generation never served, or the broker given by --socket does not answer
  2  Wrong usage";

/// Start haproxy, or another program, on the broker's sockets, and hand over from one generation to
/// the next
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// The name of this service [default: haproxy, or the name of the program]
    #[arg(long, value_name = "SERVICE")]
    name: Option<Name>,
    /// A listener for `fd@${NAME}` in haproxy's configuration, or for the program; may be given
    /// again
    #[arg(long, value_name = "NAME=ADDR[,OPT]...")]
    listen: Vec<Wanted>,
    #[command(flatten)]
    timing: Timing,
    /// Do not give haproxy a private admin socket; watch it through /proc instead
    #[arg(long)]
    no_admin: bool,
    /// Start each generation of haproxy as a master with workers. Without this option the supervisor is the master, and
    /// -W, -Ws and `master-worker` start none of haproxy's
    #[arg(long)]
    nested_master: bool,
    /// Do not connect to idle listeners during a handover; wait for a client instead
    #[arg(long)]
    no_probe: bool,
    /// What to do about ghosts: listeners that a generation has closed and that its epoll still reports
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto")]
    ghosts: Ghosts,
    /// Reload when these files, or files in these directories, change; without PATH: the files of
    /// haproxy's -f
    #[arg(long, value_name = "PATH", num_args = 0..)]
    watch: Option<Vec<PathBuf>>,
    /// Also export metrics on this listener, which the broker holds: a TCP address or a UNIX path. Metrics are always
    /// on SERVICE.d/metrics.sock beside the broker's socket
    #[arg(long, value_name = "ADDR[,OPT]...", value_parser = super::metrics::listener)]
    metrics: Option<Listener>,
    /// Serve the status page at `/` of --metrics to every client. Without this option the page is for this host only, by
    /// its address or as localhost
    #[arg(long, requires = "metrics")]
    status_page: bool,
    #[command(flatten)]
    program: kind::Options,
    /// The command, as in: -- haproxy -f /etc/haproxy/haproxy.cfg
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How long things may take.
#[derive(Debug, clap::Args)]
struct Timing {
    /// The time limit for a new generation to become ready, counted from its last progress (CPU time or output). The
    /// limit in total is 20 times this value
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    ready_timeout: Duration,
    /// The minimum time between the starts of two reloads. Requests that come earlier wait, and share one start. There is
    /// no wait while no generation serves
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration::parse)]
    min_interval: Duration,
    /// The time limit for an older generation to stop accepting; after that it is ended
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse)]
    retire_timeout: Duration,
    /// The time limit for an older generation to drain; after that it is ended
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse)]
    drain_timeout: Duration,
    /// Close connections of older generations that have been idle for TIME; requests in progress and tunnels stay
    /// [default: haproxy's own timeouts]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    drain_idle: Option<Duration>,
    /// How long a reload waits for the serving haproxy to learn its stick tables from its `peers`
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse)]
    peers_timeout: Duration,
    /// The maximum number of draining generations; when there are more, the oldest is ended
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    max_draining: usize,
}

/// [`supervisor::Ghosts`], as it is written.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Ghosts {
    /// Remove them; if the kernel refuses, start haproxy without epoll
    Auto,
    /// Remove them; if the kernel refuses, log it
    Detach,
    /// Always start haproxy without epoll (-de)
    Noepoll,
    /// Leave them alone
    Ignore,
}

/// Supervises until a signal ends it.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    supervise(args, globals, false)
}

/// What a command line leads to.
enum Begins {
    /// It is answered, with this exit code.
    Done(ExitCode),
    Supervisor(Box<Settings>),
}

/// The settings of a running supervisor with this command line, for its next image. Nothing is
/// done.
pub(crate) fn settings(
    args: Args,
    globals: &Globals,
    at_once: bool,
) -> anyhow::Result<Box<Settings>> {
    match begin(args, globals, at_once, true)? {
        Begins::Supervisor(settings) => Ok(settings),
        Begins::Done(_) => bail!("these arguments start no supervisor"),
    }
}

/// Reads the command line. With `is_proof` it is that of a running supervisor, and nothing is done.
fn begin(args: Args, globals: &Globals, at_once: bool, is_proof: bool) -> anyhow::Result<Begins> {
    let listeners = named(args.listen)?;
    let no_epoll = matches!(args.ghosts, Ghosts::Noepoll);
    let words = args.command.clone();
    let mut kind = args.program.kind(args.command, args.no_admin, no_epoll, &listeners)?;
    let service = args.name.map_or_else(|| kind::service_name(&kind), Ok)?;
    let socket = globals.socket_path();
    let mut replaced = Replaced::default();
    if let Kind::Haproxy(haproxy) = &mut kind {
        let role = &haproxy.command.role;
        // What a start does was done by the first image of such a process.
        let starts = || !is_proof && !upgrade::is_next_image(&socket, &service);
        // Under the name of haproxy, the stand-in has already searched.
        if role.replaces()
            && !at_once
            && !background::is_it()
            && starts()
            && let Some(running) = replace::running(&haproxy.command, &service, &socket)?
        {
            let program = haproxy.command.program.clone();
            let words = std::iter::once(program).chain(words.into_iter().skip(1));
            if let Some(done) =
                replace::reload(&socket, &running, &service, &haproxy.command, words)?
            {
                return Ok(Begins::Done(done));
            }
        }
        if role.daemon && !background::is_it() && starts() {
            let mut words = std::env::args_os();
            let name = words.next().unwrap_or_default();
            let words = words.collect::<Vec<_>>();
            return background::start(&name, &words, &haproxy.command.files).map(Begins::Done);
        }
        // Paths are relative to `-C`, as for haproxy.
        let directory = haproxy.command.directory.clone().unwrap_or_default();
        replaced = Replaced {
            pids: role.older.clone(),
            stats_socket: role.transfer.as_ref().map(|path| directory.join(path)),
            at_once: role.at_once,
        };
        if args.nested_master {
            haproxy.command = haproxy.command.clone().with_nested_master();
        }
    }
    if args.timing.drain_idle.is_some() && !kind.has_admin() {
        return Err(kind::usage(
            "--drain-idle: only haproxy tells which connections are idle, on its private admin socket; leave out this \
             option, or --no-admin\n"
                .to_owned(),
        ));
    }
    let watch = args.watch.map_or_else(|| Ok(Vec::new()), |paths| kind::watched(&kind, paths))?;
    let settings = Settings {
        broker: BrokerSettings { socket, start: !globals.socket_is_given() },
        service,
        master_cli: kind::master_cli(&kind)?,
        kind,
        listeners,
        timing: generation::Settings {
            ready_timeout: args.timing.ready_timeout,
            min_interval: args.timing.min_interval,
            retire_timeout: args.timing.retire_timeout,
            drain_timeout: args.timing.drain_timeout,
            max_draining: args.timing.max_draining,
        },
        drain_idle: args.timing.drain_idle,
        handover: HandoverSettings {
            probe: !args.no_probe,
            peers_timeout: args.timing.peers_timeout,
            ghosts: match args.ghosts {
                Ghosts::Auto => supervisor::Ghosts::Auto,
                Ghosts::Detach => supervisor::Ghosts::Detach,
                Ghosts::Noepoll => supervisor::Ghosts::NoEpoll,
                Ghosts::Ignore => supervisor::Ghosts::Ignore,
            },
        },
        watch,
        at_once,
        first: FirstSettings { starter: None, replaced },
        metrics: MetricsSettings { listener: args.metrics, status_page: args.status_page },
    };
    Ok(Begins::Supervisor(Box::new(settings)))
}

/// As [`run`]; with `at_once`, as under the name of haproxy, SIGTERM and SIGINT end it at once.
pub(crate) fn supervise(args: Args, globals: &Globals, at_once: bool) -> anyhow::Result<ExitCode> {
    let mut settings = match begin(args, globals, at_once, false)? {
        Begins::Supervisor(settings) => *settings,
        Begins::Done(code) => return Ok(code),
    };
    settings.first.starter = background::starter()?;
    logging::start(globals.log_format, &globals.log_level);
    log::start();
    bindonce_sys::limits::raise_nofile().context("cannot raise the open-files limit")?;
    // Two threads for work that may block, and always the same two: each new thread would leave
    // memory of the allocator behind.
    let runtime = bindonce_daemon::rpc::runtime()
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::from_secs(24 * 3600))
        .build();
    let runtime = runtime.context("cannot start the runtime")?;
    let local = tokio::task::LocalSet::new();
    let ended = runtime.block_on(local.run_until(supervisor::run(settings)));
    // Do not wait for work that is stalled.
    drop(local);
    runtime.shutdown_background();
    match ended? {
        Ended::Shutdown => Ok(ExitCode::SUCCESS),
        Ended::AtOnce { signal, is_master } => {
            // haproxy without a master lets the signal end it. The first process of a pid namespace
            // survives that.
            if !is_master {
                log::finish(log::LAST_WORDS);
                signal::raise(signal)?;
                SigSet::from(signal).thread_unblock()?;
            }
            // haproxy's master exits 0 after a worker that ends by SIGTERM: that is no fault.
            match signal {
                signal::Signal::SIGTERM if is_master => Ok(ExitCode::SUCCESS),
                _ => Ok(ExitCode::from(128 + u8::try_from(signal as i32)?)),
            }
        }
        // Under haproxy's name, haproxy has printed the reason already.
        Ended::NeverServed { in_its_words: true, .. } if at_once => Ok(ExitCode::FAILURE),
        Ended::NeverServed { story, .. } => bail!("the first generation failed: {story}"),
    }
}

/// The listeners of `--listen`, with ranges expanded. A listener that names no device gets the one
/// that new sockets of this process belong to. Each needs a name, for `fd@${NAME}`.
pub(crate) fn named(listen: Vec<Wanted>) -> anyhow::Result<Vec<Listener>> {
    let mut listeners: Vec<Listener> = Vec::new();
    for wanted in listen {
        match wanted {
            Wanted::Listen(spec) if spec.first.name.is_some() => listeners.extend(spec.expand()),
            other => bail!("--listen {other} needs a name and an address: write NAME=ADDR"),
        }
    }
    let device = network::device_of_new_sockets()?;
    for Listener { address, options, .. } in &mut listeners {
        if address.ip().is_some() && options.interface.is_none() && options.netns.is_none() {
            options.interface.clone_from(&device);
        }
    }
    Ok(listeners)
}
