//! The supervisor as a client of its broker, which it starts if none answers. The leases of one
//! generation are in [`lease`], the listeners of the whole service in [`leases`].

mod changing;
pub(crate) mod lease;
pub(crate) mod leases;

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use bindonce::aio::Client;
use bindonce::{Join, State};
use bindonce_core::event;
use bindonce_core::generation::GenerationId;
use bindonce_core::name::Name;
use bindonce_daemon::notify::STARTER;
use bindonce_daemon::{Happening, Journal};
use bindonce_haproxy::config::Messages;
use bindonce_sys::inherit;
use bindonce_sys::log::LAST_WORDS;
use bindonce_sys::process::Pidfd;
use bindonce_sys::watch::Watch;

use crate::error::Error;
use crate::generations::notifications::Notifications;
use crate::generations::output::{self, Tail};
use crate::report::starter::BACKGROUND;

/// Variables that haproxy's own master passes to itself over an exec. With them, a generation would
/// believe that it continues after one.
const MASTERS: [&str; 5] = [
    "HAPROXY_MWORKER_REEXEC",
    "HAPROXY_MWORKER_WAIT_ONLY",
    "HAPROXY_PROCESSES",
    "HAPROXY_STARTUPLOGS_FD",
    "HAPROXY_LOAD_SUCCESS",
];

/// Variables that are only for the supervisor, or for a broker that it starts.
pub(crate) fn not_theirs() -> Vec<std::ffi::OsString> {
    let ours = [STARTER, BACKGROUND];
    inherit::SERVICE_MANAGER.into_iter().chain(MASTERS).chain(ours).map(Into::into).collect()
}

/// How long a broker that was just started may take to listen.
const BROKER_UP: Duration = Duration::from_secs(10);

pub(crate) async fn connect(socket: &Path) -> Result<Client, Error> {
    Client::connect(socket)
        .await
        .map_err(|source| Error::NoBroker { socket: socket.to_owned(), why: Box::new(source) })
}

/// Tells the broker which generation this connection belongs to, and its state.
pub(crate) async fn join(
    client: &mut Client,
    service: &Name,
    id: GenerationId,
    pid: Option<i32>,
    state: State,
) -> Result<(), Error> {
    let pid = pid.and_then(|pid| u32::try_from(pid).ok());
    let join = Join::new(service.clone(), id.0, pid, state);
    client.join(&join).await.map_err(Error::claim)
}

/// Where a broker that is started writes its log.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Log {
    /// To the supervisor's standard error, also when the supervisor is gone.
    Ours,
    /// To the supervisor, which passes it on: the caller of "haproxy" may wait until its standard
    /// error is closed, and the broker outlives the supervisor.
    Through,
}

/// Makes sure that a broker answers at `socket`. If none does, and `start` is given, starts one in
/// a session of its own, which outlives this process.
pub(crate) async fn ensure(
    socket: &Path,
    start: Option<Log>,
    journal: &Rc<Journal>,
) -> Result<(), Error> {
    let Err(missing) = answers(socket).await else { return Ok(()) };
    let Some(log) = start else { return Err(missing) };
    tracing::info!(socket = %socket.display(), "no broker answers; starting one that outlives us");
    start_broker(socket, log, Rc::clone(journal)).await?;
    // Another `run` may have started one at the same time; either will do.
    answers(socket).await
}

/// Whether a broker answers. A broker that is just ending may still accept a connection.
async fn answers(socket: &Path) -> Result<(), Error> {
    let answered = connect(socket).await?.ping().await;
    let failed = |source| Error::NoBroker { socket: socket.to_owned(), why: Box::new(source) };
    answered.map(drop).map_err(failed)
}

async fn start_broker(socket: &Path, log: Log, journal: Rc<Journal>) -> Result<(), Error> {
    // The broker says READY=1 here when it listens.
    let notifications = Notifications::new()?;
    let mut command = Command::new("/proc/self/exe");
    for name in not_theirs() {
        command.env_remove(name);
    }
    if matches!(log, Log::Through) {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    }
    let mut child = command
        .arg0("bindonce")
        .args(["serve", "--new-session", "--socket"])
        .arg(socket)
        .env(STARTER, notifications.address())
        .stdin(Stdio::null())
        .spawn()
        .map_err(Error::system("start a broker"))?;
    let passed_on = child.stderr.take().map(|stderr| {
        crate::tasks::spawn(output::pass_on(stderr.into(), Messages::default(), Tail::default()))
    });
    let watch = Error::system("watch the broker that was started");
    let pid = i32::try_from(child.id()).unwrap_or_default();
    let (pidfd, ended) = Pidfd::open(pid)
        .and_then(|pidfd| Watch::new(&pidfd).map(|watch| (pidfd, watch)))
        .map_err(watch)?;
    let failed = |reason: String| Error::BrokerNotUp { socket: socket.to_owned(), reason };
    let up = async {
        tokio::select! {
            ready = notifications.from(pid) => ready,
            gone = ended.readable() => {
                gone.map(drop).map_err(Error::system("wait for the broker"))?;
                Err(failed(format!("{}; see its message above", ending(&pidfd))))
            }
        }
    };
    match bindonce_sys::patience::timeout(BROKER_UP, up).await {
        // The new broker gave way to one that another `run` started at the same time: that will do.
        Ok(Err(Error::BrokerNotUp { .. })) if answers(socket).await.is_ok() => return Ok(()),
        Ok(Err(error)) => {
            // Wait for the broker's last log lines.
            if let Some(passed_on) = passed_on {
                let _ = bindonce_sys::patience::timeout(LAST_WORDS, passed_on).await;
            }
            return Err(error);
        }
        Ok(Ok(())) => {}
        Err(_) => return Err(failed(format!("not ready within {}s", BROKER_UP.as_secs()))),
    }
    tracing::info!(pid, socket = %socket.display(), "broker started");
    journal.record(
        Happening::new(event::Kind::BrokerStarted, "broker started: none answered").pid(pid),
    );
    crate::tasks::spawn(async move {
        if ended.readable().await.is_ok() {
            let text = format!("the broker that we started is gone: {}", ending(&pidfd));
            tracing::error!(pid, "{text}");
            journal.record(Happening::new(event::Kind::BrokerEnded, text).pid(pid));
        }
    });
    Ok(())
}

/// How a child ended, in words; reaps it.
fn ending(pidfd: &Pidfd) -> String {
    match pidfd.try_wait() {
        Ok(Some(exit)) => exit.to_string(),
        Ok(None) => "it still runs".to_owned(),
        Err(error) => error.to_string(),
    }
}
