//! `bindonce run -- haproxy -f FILE`: the supervisor, in the foreground.

mod kind;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bindonce_core::listener::{Listener, Wanted};
use bindonce_core::name::Name;
use bindonce_core::{duration, generation};
use bindonce_supervisor::{self as supervisor, Ended, Settings};
use bindonce_sys::log;

use crate::{Globals, logging};

/// Start haproxy, or another program, on sockets of the broker, and hand over from one generation
/// to the next
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::RUN)]
pub(crate) struct Args {
    /// The name of this service [default: haproxy, or the name of the program]
    #[arg(long, value_name = "SERVICE")]
    name: Option<Name>,
    /// A listener for `fd@${NAME}` in haproxy's configuration, or for the program; may be given
    /// again
    #[arg(long, value_name = "NAME=ADDR[,OPT]...")]
    listen: Vec<Wanted>,
    /// How long a new generation may take until it is ready
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    ready_timeout: Duration,
    /// How long an older generation may go on accepting before it is ended
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse)]
    retire_timeout: Duration,
    /// How long an older generation may keep its connections
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration::parse)]
    drain_timeout: Duration,
    /// How many older generations may keep connections at the same time; the oldest goes first
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    max_draining: usize,
    /// Do not give haproxies a private admin socket; /proc must do
    #[arg(long)]
    no_admin: bool,
    /// Do not connect to listeners without traffic during a handover; wait for a client
    #[arg(long)]
    no_probe: bool,
    /// What to do about generations that closed a listener and are still woken for it
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto")]
    ghosts: Ghosts,
    /// Reload when these files, or what is in these directories, have changed; without a PATH the
    /// files and directories of haproxy's -f
    #[arg(long, value_name = "PATH", num_args = 0..)]
    watch: Option<Vec<PathBuf>>,
    /// Export metrics on this listener of the broker too: an address of TCP or a UNIX path. They
    /// always are on SERVICE.d/metrics.sock beside the broker's socket
    #[arg(long, value_name = "ADDR[,OPT]...", value_parser = super::metrics_listener)]
    metrics: Option<Listener>,
    #[command(flatten)]
    program: kind::Options,
    /// The command, as in: -- haproxy -f /etc/haproxy/haproxy.cfg
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// [`supervisor::Ghosts`], as it is written.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Ghosts {
    /// Remove them; where the kernel refuses, start haproxy without epoll
    Auto,
    /// Remove them, or say that it cannot be done
    Detach,
    /// Always start haproxy without epoll (-de)
    Noepoll,
    /// Leave them
    Ignore,
}

/// Supervises until a signal ends it.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let listeners = named(args.listen)?;
    let no_epoll = matches!(args.ghosts, Ghosts::Noepoll);
    let kind = args.program.kind(args.command, args.no_admin, no_epoll, &listeners)?;
    let watch = args.watch.map_or_else(|| Ok(Vec::new()), |paths| kind::watched(&kind, paths))?;
    let settings = Settings {
        socket: globals.socket_path(),
        start_broker: !globals.socket_is_given(),
        service: args.name.map_or_else(|| kind::service_name(&kind), Ok)?,
        kind,
        listeners,
        timing: generation::Settings {
            ready_timeout: args.ready_timeout,
            retire_timeout: args.retire_timeout,
            drain_timeout: args.drain_timeout,
            max_draining: args.max_draining,
        },
        probe: !args.no_probe,
        watch,
        ghosts: match args.ghosts {
            Ghosts::Auto => supervisor::Ghosts::Auto,
            Ghosts::Detach => supervisor::Ghosts::Detach,
            Ghosts::Noepoll => supervisor::Ghosts::NoEpoll,
            Ghosts::Ignore => supervisor::Ghosts::Ignore,
        },
        metrics: args.metrics,
    };
    logging::start(globals);
    log::start();
    bindonce_sys::limits::raise_nofile().context("cannot raise the open-files limit")?;
    // Two threads for what may block, and always the same: each new one would leave memory of the
    // allocator behind.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::from_secs(24 * 3600))
        .build();
    let runtime = runtime.context("cannot start the runtime")?;
    let local = tokio::task::LocalSet::new();
    let ended = runtime.block_on(local.run_until(supervisor::run(settings)));
    // What is stalled is not waited for.
    drop(local);
    runtime.shutdown_background();
    match ended? {
        Ended::Shutdown => Ok(ExitCode::SUCCESS),
        Ended::NeverServed(story) => bail!("the first generation failed: {story}"),
    }
}

/// The listeners of `--listen`, ranges expanded. Each needs a name, for `fd@${NAME}`.
pub(crate) fn named(listen: Vec<Wanted>) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for wanted in listen {
        match wanted {
            Wanted::Listen(spec) if spec.first.name.is_some() => listeners.extend(spec.expand()),
            other => bail!("--listen {other} needs a name and an address: write NAME=ADDR"),
        }
    }
    Ok(listeners)
}
