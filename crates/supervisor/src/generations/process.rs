//! The process of a generation: [`take_on`] makes a [`Generation`] of it and watches it until it
//! ends.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::generation::{GenerationId, State};
use bindonce_core::time::Timestamp;
use bindonce_sys::process::{self, Pidfd};
use bindonce_sys::signals::Signal as Number;
use bindonce_sys::watch::Watch;
use bindonce_sys::{holders, tree};

use crate::broker::leases::Leases;
use crate::context::Context;
use crate::generations::admin::Admin;
use crate::generations::drain::Drain;
use crate::generations::generation::{
    Cli, Generation, Lease, Output, OwnAddresses, Readiness, Start, Tasks,
};
use crate::generations::listeners::HeldListener;
use crate::generations::output::{self, Tail};
use crate::handover::duty::ProcessRef;
use crate::message::Message;
use bindonce_haproxy::cli::Info;
use bindonce_haproxy::config::Messages;

/// How long to wait for the last words of a process that has ended: a child of it may still hold
/// its standard error open.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A process, and what belongs to it, on its way to become a [`Generation`].
pub(crate) struct Process {
    pub(crate) pidfd: Pidfd,
    /// Reports its end.
    pub(crate) ended: Watch,
    pub(crate) admin: Option<Admin>,
    /// The reading end of its standard error, and the translation of its messages.
    pub(crate) stderr: Option<(OwnedFd, Messages)>,
    /// As in [`Cli`].
    pub(crate) master_worker: bool,
    pub(crate) no_epoll: bool,
    pub(crate) listeners: Vec<Rc<HeldListener>>,
    pub(crate) lease: Option<bindonce::aio::Client>,
    pub(crate) started: Timestamp,
}

/// Kills processes that a dead haproxy leaves with its listeners open, such as children of a start
/// script: clients would wait there for a process that does not accept.
pub(crate) fn kill_holders(leader: i32, inodes: &[u64]) -> usize {
    let left = tree::members(leader).into_iter().filter(|pid| *pid != leader);
    let holders = left.filter(|pid| holders::holds(*pid, inodes).unwrap_or(false));
    let pidfds = holders.filter_map(|pid| Pidfd::open(pid).ok());
    // A process that still has one of the listeners is the one that was looked at.
    let same = |pidfd: &Pidfd| holders::holds(pidfd.pid(), inodes).unwrap_or(false);
    pidfds.filter(|pidfd| same(pidfd) && pidfd.send(Number::SIGKILL).is_ok()).count()
}

/// Makes a generation of a process and begins to watch it.
pub(crate) fn take_on(
    cx: &Context,
    leases: &Leases,
    id: GenerationId,
    process: Process,
) -> Generation {
    let (pidfd, ended) = (Rc::new(process.pidfd), process.ended);
    let pid = pidfd.pid();
    let tail = Tail::default();
    let mut pipe = None;
    let words = process.stderr.map(|(stderr, messages)| {
        pipe = stderr.try_clone().ok();
        crate::tasks::spawn(output::pass_on(stderr, messages, tail.clone()))
    });
    let (cx, watched) = (cx.clone(), Rc::clone(&pidfd));
    let is_program = cx.settings.kind.program().is_some();
    let start_time = process::start_time(pid).unwrap_or_default();
    crate::tasks::spawn(async move {
        let exit = match ended.readable().await {
            Ok(()) => {
                // Before it is reaped: its pid still names its session, and nothing else.
                if is_program {
                    let left = tree::kill_orphans(pid, start_time);
                    if left > 0 {
                        tracing::warn!(
                            generation = id.0,
                            pid,
                            left,
                            "its first process has ended; the others were killed"
                        );
                    }
                }
                watched.try_wait().ok().flatten()
            }
            Err(_) => None,
        };
        if let Some(words) = words {
            let _ = bindonce_sys::patience::timeout(LAST_WORDS, words).await;
        }
        cx.send(Message::Exited(id, exit));
    });
    let Process { listeners, started, admin, master_worker, no_epoll, .. } = process;
    let news = leases.keep(id, pid, listeners.clone(), process.lease);
    let generation = Generation {
        id,
        pidfd,
        named: ProcessRef { pid, start_time },
        start: Start { at: started, begun: None, took: None },
        cli: Cli { admin, master_worker, no_epoll, ..Cli::default() },
        output: Output { tail, pipe },
        readiness: Readiness { passed: listeners.len(), ..Readiness::default() },
        listeners,
        lease: Lease { news, served: false, closed: false, changes: Vec::new() },
        own: OwnAddresses::default(),
        drain: Drain::default(),
        tasks: Tasks::default(),
    };
    drop(generation.tell(State::Starting));
    generation
}

/// The callback for the first answer of a generation's admin socket.
pub(crate) fn on_answer(cx: &Context, id: GenerationId) -> impl FnOnce(Info) + 'static {
    let cx = cx.clone();
    move |info| cx.send(Message::Answers(id, info))
}

/// Ends a process that is no generation, and reaps it.
pub(crate) fn end_quietly(pidfd: Pidfd) {
    tree::kill(pidfd.pid());
    // Without a free descriptor /proc cannot be read, and so the tree not be found.
    drop(pidfd.send(Number::SIGKILL));
    let Ok(ended) = Watch::new(&pidfd) else { return };
    crate::tasks::spawn(async move {
        if ended.readable().await.is_ok() {
            let _ = pidfd.try_wait();
        }
    });
}

/// Warns if a reload may exceed RLIMIT_NOFILE. It has each listener twice for a moment: once from
/// the older generation, and once as the broker gives it.
pub(crate) fn warn_of_limit(listeners: usize) {
    /// Other descriptors of a supervisor: connections, pipes, admin sockets.
    const BESIDES: u64 = 256;
    let (limit, _) = bindonce_sys::limits::nofile();
    let needed = 2 * listeners as u64 + BESIDES;
    if needed > limit {
        tracing::warn!(
            listeners,
            limit,
            "a reload needs about {needed} descriptors, and RLIMIT_NOFILE allows this supervisor \
             fewer: raise its hard limit (LimitNOFILE=, `ulimit -Hn`) and start it again"
        );
    }
}
