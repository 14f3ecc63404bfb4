//! `bindonce serve`: the broker, in the foreground, until SIGTERM or SIGINT.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bindonce_broker::{Config, File, Orders};
use bindonce_core::event::Flood;
use bindonce_core::listener::{Listener, Wanted};
use bindonce_sys::clock::now;
use bindonce_sys::privileges::{self, Account, Capability};
use bindonce_sys::signals::{self, Signal, SignalFd};
use bindonce_sys::trusted;
use bindonce_sys::watch::Watch;
use bindonce_sys::{limits, log};

use crate::globals::Globals;
use crate::{logging, output};

const HELP: &str = "\
Signals:
  SIGTERM, SIGINT  Exit; listeners are closed unless systemd or a client keeps them
  SIGHUP           Read rules and limits of --config again
  SIGUSR1          Upgrade in place to the installed binary
  SIGTSTP, SIGTTIN, SIGTTOU  Ignored: Ctrl-Z and a terminal's output never stop it

Examples:
  bindonce serve --listen web=0.0.0.0:80 --listen tls=[::]:443,backlog=4096
      Two listeners from the start; clients may claim more
  bindonce serve --socket /run/bindonce/bindonce.sock --config /etc/bindonce/bindonce.toml
      As the systemd unit of the package does

Exit codes:
  0  Ended by a signal
  1  The broker did not start; the message names the configuration, the socket or the listener
  2  Wrong usage";

/// Bind listeners once, hold them, and hand them to clients
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Read what to bind from a TOML file: listen = ["web=0.0.0.0:80"]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Bind this listener at the start; may be given again
    #[arg(long, value_name = "[NAME=]ADDR[,OPT]...")]
    listen: Vec<Wanted>,
    /// Also export metrics on this listener: a TCP address or a UNIX path. Metrics are always on SOCKET.metrics, beside the
    /// control socket
    #[arg(long, value_name = "ADDR[,OPT]...", value_parser = super::metrics::listener)]
    metrics: Option<Listener>,
    /// Serve the status page at `/` of --metrics to every client. Without this option the page is for this host only, by
    /// its address or as localhost
    #[arg(long, requires = "metrics")]
    status_page: bool,
    /// Start a session of its own, to outlive the caller
    #[arg(long, hide = true)]
    new_session: bool,
}

/// Serves until a signal ends it.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    logging::start(globals.log_format, &globals.log_level);
    let inherited = bindonce_broker::inherited()?;
    // An earlier image of this process has done this already.
    if args.new_session && inherited.is_none() {
        nix::unistd::setsid().context("cannot begin a session of our own")?;
    }
    let mut config = Config::new(globals.socket_path());
    let file = args.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
    let account = account(&file)?;
    config.rules = file.rules()?;
    config.listen = file.listen;
    config.limits = file.limits;
    config.file = args.config;
    config.listen.extend(args.listen);
    config.metrics = args.metrics;
    config.status_page = args.status_page;
    config.inherited = inherited;
    let orders = config.orders.clone();
    // An earlier image of this process has given up its privileges already.
    if let Some(account) = account
        && config.inherited.is_none()
    {
        become_account(&account, &config, file.capabilities)?;
    }

    // Before the runtime, so that these signals are blocked in every thread.
    let mut taken = signals::JOB_CONTROL.to_vec();
    taken.extend([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1]);
    let signals = SignalFd::new(&taken).context("cannot take over signals")?;
    limits::widen_table();
    log::start();
    let runtime = bindonce_daemon::rpc::runtime().build();
    let runtime = runtime.context("cannot start the runtime")?;
    runtime.block_on(async {
        let watch = Watch::new(&signals).context("cannot wait for signals")?;
        Ok(bindonce_broker::run(config, ended(&signals, &watch, &orders)).await?)
    })
}

/// The account that the broker becomes, if the configuration names one.
fn account(file: &File) -> anyhow::Result<Option<Account>> {
    let find = |user: &String| Account::find(user, file.group.as_deref());
    file.user.as_ref().map(find).transpose().context("in the configuration")
}

/// Gives up root, except for what the listeners need.
fn become_account(
    account: &Account,
    config: &Config,
    mut keep: Vec<Capability>,
) -> anyhow::Result<()> {
    let socket =
        std::path::absolute(&config.socket).context("cannot find the current directory")?;
    if let Some(directory) = socket.parent() {
        give_directory(directory, account)
            .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    }
    let listeners = config.listen.iter().filter_map(|wanted| match wanted {
        Wanted::Listen(spec) => Some(spec.first.as_ref()),
        Wanted::Named(_) => None,
    });
    keep.extend(privileges::needed(listeners.chain(&config.metrics)));
    keep.sort_unstable();
    keep.dedup();
    privileges::drop_to(account, &keep)
        .with_context(|| format!("cannot become uid {} of the configuration", account.uid))?;
    let kept: Vec<String> = keep.iter().map(ToString::to_string).collect();
    tracing::info!(
        uid = account.uid,
        gid = account.gid,
        capabilities = kept.join(" "),
        "gave up all other privileges"
    );
    Ok(())
}

/// Creates the directory of the control socket for the account, if it is missing. A directory that
/// exists keeps its owner.
fn give_directory(directory: &Path, account: &Account) -> io::Result<()> {
    let made = match fs::exists(directory) {
        Ok(true) => return Ok(()),
        _ => trusted::make(directory, 0, 0o755, true)?.map_err(io::Error::other)?,
    };
    if made.created { made.give(account.uid, account.gid) } else { Ok(()) }
}

/// Proves that this binary can resume from the state of a running broker (on standard input), with
/// that broker's command line and the current configuration.
pub(crate) fn check(args: &Args) -> anyhow::Result<()> {
    if let Some(path) = &args.config {
        let file = File::read(path)?;
        file.rules()?;
        account(&file)?;
    }
    let mut state = fs::File::open("/proc/self/fd/0").context("cannot open the state")?;
    output::print(&bindonce_broker::check(&mut state)?)
}

/// Completes when a signal asks the broker to end.
async fn ended(signals: &SignalFd, signalled: &Watch, orders: &Orders) {
    let mut told = Flood::default();
    loop {
        match signals.read() {
            Ok(Some(signal)) if matches!(signal.signo, Signal::SIGTERM | Signal::SIGINT) => {
                tracing::info!(signal = %signal.signo, sender = signal.pid, "received a signal to stop");
                return;
            }
            Ok(Some(signal)) if signal.signo == Signal::SIGUSR1 => {
                tracing::info!(sender = signal.pid, "received a signal to upgrade");
                orders.upgrade();
                continue;
            }
            Ok(Some(signal)) if signal.signo == Signal::SIGHUP => {
                if let Some(left_out) = told.on(now().0) {
                    let left_out = (left_out > 0).then_some(left_out);
                    tracing::info!(
                        sender = signal.pid,
                        left_out,
                        "told to read the configuration again"
                    );
                }
                orders.reread();
                continue;
            }
            Ok(Some(signal)) => {
                if let Some(left_out) = told.on(now().0) {
                    let left_out = (left_out > 0).then_some(left_out);
                    tracing::info!(
                        signal = %signal.signo, sender = signal.pid, left_out,
                        "signal ignored: this broker has nothing to do on it"
                    );
                }
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "cannot read signals any more: the broker ends");
                return;
            }
        }
        if let Err(error) = signalled.readable().await {
            tracing::error!(%error, "cannot wait for signals any more: the broker ends");
            return;
        }
    }
}
