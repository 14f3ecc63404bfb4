//! Interprets signals to the supervisor. SIGUSR1 from a generation says that haproxy is ready; from
//! any other process it is a soft stop. With SIGTTOU haproxy asks that older generations let go of
//! an address that it cannot bind. With SIGTTIN they take it back: it has given up (see
//! [`crate::generations::own_addresses`]).

use bindonce_core::generation::GenerationId;
use bindonce_daemon::Reporter;
use bindonce_sys::process;
use bindonce_sys::signals::{Received, Signal};

use crate::generations::Generations;
use crate::generations::generation::Generation;
use crate::settings::Settings;

/// The meaning of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Nothing,
    Reload,
    Shutdown,
    /// Every generation ends, then this process ends by this signal.
    End(Signal),
    /// This generation reports readiness.
    Ready(GenerationId),
    /// This generation cannot bind an address of its own. It asks every pid of its `-sf`, about 100
    /// times a second for two seconds, to let go of it.
    Address(GenerationId),
    /// The generation has given up on that address; its exit follows.
    NoAddress(GenerationId),
}

/// Interprets a signal. An ignored signal is logged with its sender.
pub(crate) fn read(
    signal: Received,
    settings: &Settings,
    generations: &Generations,
    reporter: &Reporter,
    is_shutting_down: bool,
) -> Wanted {
    let Received { signo, pid, uid, .. } = signal;
    let ignored = |why: &str| {
        if let Some(left_out) = reporter.refused(uid, signo.as_str()) {
            tracing::warn!(
                signal = signo.as_str(),
                sender = pid,
                uid,
                left_out,
                "signal ignored: {why}"
            );
        }
        Wanted::Nothing
    };
    let kind = &settings.kind;
    let sender = generations.of_process(pid).filter(|generation| speaks_for(generation, pid));
    let haproxy = sender.map(|generation| generation.id).filter(|_| kind.haproxy().is_some());
    match (signo, haproxy) {
        (Signal::SIGHUP | Signal::SIGUSR2, _) => Wanted::Reload,
        (Signal::SIGTERM | Signal::SIGINT, _) if settings.at_once => Wanted::End(signo),
        (Signal::SIGTERM | Signal::SIGINT, _) => Wanted::Shutdown,
        (Signal::SIGTTOU, Some(id)) => Wanted::Address(id),
        (Signal::SIGTTIN, Some(id)) => Wanted::NoAddress(id),
        (Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU, _) => ignored(
            "a stopped supervisor could not answer clients; to end it and its generations, send SIGTERM",
        ),
        // By default these signals would end this process while haproxy lives on.
        (Signal::SIGALRM | Signal::SIGQUIT, _) => ignored(
            "this signal has no meaning for a supervisor; to end it and its generations, send SIGTERM",
        ),
        _ if kind.haproxy().is_none() => ignored("to reload, send SIGHUP"),
        // In master-worker mode a worker sends it.
        (_, Some(id)) => Wanted::Ready(id),
        (_, None) if may_be_a_dead_worker(generations, pid) => ignored(
            "its sender is gone, and may have been a worker of the haproxy that is starting; to end \
                 the service, send SIGTERM",
        ),
        // A repeated soft stop changes nothing; only a second SIGTERM ends draining generations.
        (_, None) if is_shutting_down => Wanted::Nothing,
        // A soft stop, as for haproxy: container images use it as their stop signal.
        (_, None) => Wanted::Shutdown,
    }
}

/// Whether a signal from this process is one of haproxy's own. A process that a generation started,
/// a check or a script, may ask for a soft stop like any other process. A wrapper's child counts as
/// haproxy only until haproxy is ready.
fn speaks_for(generation: &Generation, pid: i32) -> bool {
    pid == generation.pid() || generation.has_master() || !generation.readiness.ready
}

/// Whether an unknown sender could be a worker of a nested master that reported readiness and has
/// died since. Nothing then shows which generation it belonged to.
fn may_be_a_dead_worker(generations: &Generations, pid: i32) -> bool {
    let starts =
        |generation: &Generation| !generation.readiness.ready && generation.cli.master_worker;
    // No worker is outside this pid namespace (0), as a container's engine is.
    pid != 0 && generations.iter().any(starts) && process::parent(pid).is_none()
}
