//! One generation: its process, its listeners, and what is known of it. Dropping a [`Generation`]
//! ends its leases and its admin connection; the process lives on.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bindonce_core::generation::{GenerationId, Reason, Signal as Wanted, State};
use bindonce_core::time::Timestamp;
use bindonce_sys::hold::Hold;
use bindonce_sys::intercept::Intercept;
use bindonce_sys::process::Pidfd;
use bindonce_sys::signals::Signal;
use bindonce_sys::tree;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::broker::lease::LeaseUpdate;
use crate::generations::admin::Admin;
use crate::generations::changes::OptionChange;
use crate::generations::drain::Drain;
use crate::generations::listeners::HeldListener;
use crate::generations::output::Tail;
use crate::generations::spares::Spares;
use crate::handover::descriptor_store;
use crate::handover::duty::ProcessRef;
use crate::intercept::calls_seen::CallsSeen;
use crate::report::cause::Cause;
use bindonce_haproxy::cli::Version;

/// A generation whose process exists.
pub(crate) struct Generation {
    pub(crate) id: GenerationId,
    pub(crate) pidfd: Rc<Pidfd>,
    /// The process by pid and start time, for the watchdog and the next supervisor.
    pub(crate) named: ProcessRef,
    pub(crate) start: Start,
    pub(crate) cli: Cli,
    pub(crate) output: Output,
    pub(crate) readiness: Readiness,
    pub(crate) listeners: Vec<Rc<HeldListener>>,
    pub(crate) lease: Lease,
    pub(crate) own: OwnAddresses,
    pub(crate) drain: Drain,
    pub(crate) tasks: Tasks,
}

/// The start, from reading the configuration and claiming listeners until the generation is ready.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    /// When its process was started.
    pub(crate) at: Timestamp,
    /// When this supervisor began it. None once the generation is ready.
    pub(crate) begun: Option<Instant>,
    /// How long it took. None if an earlier supervisor left no record of that.
    pub(crate) took: Option<Duration>,
}

impl Start {
    /// Ends the start. Gives how long it took.
    pub(crate) fn ready(&mut self) -> Option<Duration> {
        let took = self.begun.take().map(|begun| begun.elapsed());
        self.took = took.or(self.took);
        self.took
    }
}

/// haproxy's admin CLI, and what it has answered. Empty for another program.
#[derive(Default)]
pub(crate) struct Cli {
    pub(crate) admin: Option<Admin>,
    /// Known once the admin socket has answered.
    pub(crate) version: Option<Version>,
    /// The version as haproxy writes it.
    pub(crate) release: Option<String>,
    /// Spare connections for clients of the master CLI.
    pub(crate) spares: Spares,
    /// The process that answers on the admin socket, once known.
    pub(crate) answers: Option<i32>,
    /// Whether the configuration or command line asks for haproxy's own master.
    pub(crate) master_worker: bool,
    /// The configuration or the command line switches epoll off.
    pub(crate) no_epoll: bool,
    /// Reloads that the master CLI had counted when this generation began to serve.
    pub(crate) reloads_before: u64,
}

/// The standard error of a generation.
pub(crate) struct Output {
    pub(crate) tail: Tail,
    /// A copy of the pipe's reading end, for the next image of this process.
    pub(crate) pipe: Option<OwnedFd>,
}

impl Output {
    /// Ends the start: later output does not belong to it. What is still in the pipe does.
    pub(crate) fn started(&self) {
        let pipe = self.pipe.as_ref().map(rustix::io::ioctl_fionread);
        let unread = pipe.and_then(Result::ok).and_then(|unread| usize::try_from(unread).ok());
        self.tail.started(unread.unwrap_or_default());
    }
}

/// How far a generation is on its way to take over.
#[derive(Default)]
pub(crate) struct Readiness {
    /// The process waits in the system call that signals its readiness, and accepts nothing until
    /// this is released.
    pub(crate) hold: Option<Rc<Hold>>,
    /// Whether we stopped it (SIGSTOP). Only then must all its processes be continued.
    pub(crate) stopped: bool,
    /// Inodes of the listeners that it is known to listen on.
    pub(crate) listening: BTreeSet<u64>,
    /// Number of listeners passed at the start. Their descriptors come first.
    pub(crate) passed: usize,
    /// Whether the timeline was notified.
    pub(crate) ready: bool,
    /// Why we ended it before it took over.
    pub(crate) refused: Option<Cause>,
    /// Whether it is known which of its claimed listeners it listens on.
    pub(crate) listens: bool,
    /// Whether the addresses that it has bound must still be compared with the claimed ones.
    pub(crate) uncompared: bool,
}

/// The leases of a generation. The broker ends them when this is dropped.
pub(crate) struct Lease {
    /// Updates for the task that keeps the leases.
    pub(crate) news: mpsc::UnboundedSender<LeaseUpdate>,
    /// Whether it has served. Its listeners are confirmed then.
    pub(crate) served: bool,
    /// Whether it has closed its listeners and is woken for none of them.
    pub(crate) closed: bool,
    /// Listener options to change once it serves.
    pub(crate) changes: Vec<OptionChange>,
}

/// Addresses that a generation binds without the broker.
#[derive(Default)]
pub(crate) struct OwnAddresses {
    /// Addresses found so far.
    pub(crate) bound: BTreeSet<String>,
    /// Addresses in `bound` for which no bind(2) or listen(2) was intercepted.
    pub(crate) unseen: BTreeSet<String>,
    /// Sockets that haproxy was about to bind, by inode, with the address if the call showed one.
    /// None if not every call could be seen.
    pub(crate) seen: Option<BTreeMap<u64, Option<String>>>,
    /// A program's own sockets with which calls were seen. None unless calls are seen from its
    /// start.
    pub(crate) calls: Option<CallsSeen>,
    /// The source of its intercepted calls.
    pub(crate) intercept: Option<Arc<Intercept>>,
    /// Set once the generation is ready: later binds are not looked at.
    pub(crate) over: Rc<Cell<bool>>,
    /// Configuration lines with addresses that were not claimed for the start. The generation has
    /// the broker's socket there and takes it for its own.
    pub(crate) lines: BTreeSet<String>,
    /// Devices whose addresses haproxy binds itself.
    pub(crate) devices: BTreeSet<String>,
    /// The last signal about an address that it cannot bind: SIGTTOU asks older generations to let
    /// go of it, SIGTTIN means that it has given up.
    pub(crate) wanted: Option<Signal>,
}

/// Tasks that watch a generation and end with it.
#[derive(Default)]
pub(crate) struct Tasks {
    /// Watches whether it is ready, then whether it serves, later whether it has stopped and how
    /// many connections are left.
    watch: Option<AbortHandle>,
    /// Watches whether it accepts again after a pause.
    resumes: Option<AbortHandle>,
}

impl Tasks {
    pub(crate) fn watch(&mut self, task: AbortHandle) {
        abort(self.watch.replace(task));
    }

    pub(crate) fn ask_resumed(&mut self, task: AbortHandle) {
        abort(self.resumes.replace(task));
    }

    /// Whether a task was begun to watch it and not ended, though it may have come to its own end.
    pub(crate) fn are_begun(&self) -> bool {
        self.watch.is_some()
    }

    /// Whether it was told to accept again and has not confirmed that it does.
    pub(crate) fn ask_whether_it_resumed(&self) -> bool {
        self.resumes.as_ref().is_some_and(|task| !task.is_finished())
    }

    pub(crate) fn end(&mut self) {
        abort(self.watch.take());
        abort(self.resumes.take());
    }
}

fn abort(task: Option<AbortHandle>) {
    if let Some(task) = task {
        task.abort();
    }
}

/// Listeners that a generation has given back.
pub(crate) struct GivenBack {
    /// Closes when the broker knows.
    pub(crate) known: oneshot::Receiver<()>,
    /// Listeners of which haproxy's own master keeps an open copy for as long as it lives.
    pub(crate) of_master: Vec<Rc<HeldListener>>,
}

impl Generation {
    pub(crate) fn pid(&self) -> i32 {
        self.pidfd.pid()
    }

    /// Holds the generation at its readiness. The hold stops only the process that has signalled
    /// readiness. A worker of haproxy's own master (3.1 and later) waits for its master for 2 s and
    /// then accepts, so the other processes are stopped too (SIGSTOP).
    pub(crate) fn hold(&mut self, hold: Rc<Hold>) {
        self.readiness.hold = Some(hold);
        if self.has_master() {
            self.readiness.stopped = true;
            tree::signal_others(self.pid(), Signal::SIGSTOP);
        }
    }

    pub(crate) fn release(&mut self) {
        let Some(hold) = self.readiness.hold.take() else { return };
        hold.release();
        if std::mem::take(&mut self.readiness.stopped) {
            tree::signal_others(self.pid(), Signal::SIGCONT);
        }
    }

    /// Reports this state to the broker. The receiver closes when the broker has taken it, or is
    /// gone.
    pub(crate) fn tell(&self, state: State) -> oneshot::Receiver<()> {
        let (done, taken) = oneshot::channel();
        // The receiving task lives as long as this generation.
        let _ = self.lease.news.send(LeaseUpdate::State(state, done));
        taken
    }

    /// Shows clients the listeners that the broker has hidden for this start. The receiver, if any,
    /// closes when the broker has shown those that this process may not.
    pub(crate) fn show_new(&self) -> Option<oneshot::Receiver<()>> {
        let new = self.listeners.iter().filter(|held| held.created);
        let hidden: Vec<_> = new.filter(|held| !held.show()).cloned().collect();
        (!hidden.is_empty()).then(|| {
            let (done, shown) = oneshot::channel();
            let _ = self.lease.news.send(LeaseUpdate::Show(hidden, done));
            shown
        })
    }

    /// Whether its first process is haproxy's own master, which keeps a copy of each listener for
    /// its next worker and never accepts.
    pub(crate) fn has_master(&self) -> bool {
        self.cli.answers.map_or(self.cli.master_worker, |answers| answers != self.pid())
    }

    pub(crate) fn is_held(&self) -> bool {
        self.readiness.hold.is_some()
    }

    /// Its haproxy version, or that of the `binary` until the admin socket has answered.
    pub(crate) fn version(&self, binary: Option<Version>) -> Version {
        self.cli.version.or(binary).unwrap_or_default()
    }

    /// Whether it can be paused without harm to the shared sockets, with the accept queues as
    /// proof.
    pub(crate) fn can_pause(&self, binary: Option<Version>) -> bool {
        let version = self.version(binary);
        !self.listeners.is_empty()
            // A pause would disconnect a socket that others have too.
            && self.own.lines.is_empty()
            && self.listeners.iter().all(|held| held.can_pause(version))
            && !self.has_master()
    }

    pub(crate) fn inodes(&self) -> Vec<u64> {
        self.listeners.iter().map(|held| held.inode).collect()
    }

    /// The inodes of the listeners that it is known to listen on; of all if it was taken over.
    pub(crate) fn listens_on(&self) -> Vec<u64> {
        let said = &self.readiness.listening;
        self.inodes().into_iter().filter(|inode| said.is_empty() || said.contains(inode)).collect()
    }

    /// Gives back all listeners but these, with their leases. None if there are no others.
    pub(crate) fn keep_only(&mut self, inodes: &BTreeSet<u64>) -> Option<GivenBack> {
        let has_master = self.has_master();
        let goes = |held: &mut Rc<HeldListener>| {
            !inodes.contains(&held.inode) && (!has_master || held.can_be_shut_down())
        };
        let listeners: Vec<_> = self.listeners.extract_if(.., goes).collect();
        (!listeners.is_empty()).then(|| {
            let (done, known) = oneshot::channel();
            let _ = self.lease.news.send(LeaseUpdate::Has(self.listeners.clone(), done));
            GivenBack { known, of_master: if has_master { listeners } else { Vec::new() } }
        })
    }

    /// Sends a signal for the timeline. None if the generation is held, or was: there is no result
    /// then.
    pub(crate) fn signal(
        &mut self,
        signal: Wanted,
        number: Signal,
        reason: Reason,
    ) -> Option<io::Result<()>> {
        Some(match signal {
            // A process that was stopped (SIGSTOP) would not handle the signal.
            Wanted::SoftStop if reason == Reason::Again => {
                let sent = self.deliver(number);
                let _ = signal_all(&self.pidfd, Signal::SIGCONT);
                sent
            }
            // It already waits inside the call that signals its readiness.
            Wanted::Stop if self.is_held() => return None,
            Wanted::Continue if self.is_held() => {
                self.release();
                return None;
            }
            // The hold was released already, but another process may have stopped the generation or
            // have sent a SIGSTOP, which SIGCONT discards. Finding all its processes would mean
            // reading all of /proc.
            Wanted::Continue if reason != Reason::Silent && !self.readiness.stopped => {
                let _ = self.pidfd.send(number);
                return None;
            }
            // A held process has accepted nothing, and handles no other signal there.
            Wanted::Terminate if self.is_held() => self.pidfd.send(Signal::SIGKILL),
            // Every process of the generation may accept, and none may outlive it.
            Wanted::Kill => kill_all(&self.pidfd),
            // The stop takes effect later; the proof completes it.
            Wanted::Stop | Wanted::Continue => {
                self.readiness.stopped = signal == Wanted::Stop;
                signal_all(&self.pidfd, number)
            }
            _ => self.deliver(number),
        })
    }

    /// haproxy, if the first process is a script that waits for it. A signal to the script would
    /// end or stop only the script, and haproxy would not get it.
    fn behind_script(&self) -> Option<i32> {
        let answers = self.cli.answers.filter(|answers| *answers != self.pid())?;
        (!self.cli.master_worker && tree::has(self.pid(), answers)).then_some(answers)
    }

    /// The process that gets the signals of a handover, for the watchdog.
    pub(crate) fn signalled(&self) -> ProcessRef {
        self.behind_script().and_then(ProcessRef::of).unwrap_or(self.named)
    }

    /// Signals the first process, or haproxy behind a script.
    pub(crate) fn deliver(&self, number: Signal) -> io::Result<()> {
        match self.behind_script().and_then(|pid| Pidfd::open(pid).ok()) {
            Some(haproxy) => haproxy.send(number),
            None => self.pidfd.send(number),
        }
    }

    /// Called when the generation is about to exit, or is gone. Gives the number of connections
    /// that end with it, as last reported or as its own hard stop reports. 0 if they were counted
    /// before, or if it has drained.
    pub(crate) fn cut(&mut self) -> u64 {
        self.drain.cut(self.output.tail.cut())
    }

    /// Ends a generation that must not take over, for this reason.
    pub(crate) fn refuse(&mut self, cause: Cause) {
        self.readiness.refused = Some(Cause { ours: true, ..cause });
        // Held or not, it has served no client and must not. It may have just ended.
        let _ = kill_all(&self.pidfd);
    }

    /// Ends its leases. The receiver closes when the broker knows.
    pub(crate) fn leave(&self) -> oneshot::Receiver<()> {
        let (done, known) = oneshot::channel();
        let _ = self.lease.news.send(LeaseUpdate::Gone(done));
        known
    }
}

/// Signals every process of the generation with this first process. Without a free descriptor /proc
/// cannot be read, and so the others not be found: the first one gets the signal all the same.
fn signal_all(first: &Pidfd, number: Signal) -> io::Result<()> {
    tree::signal(first.pid(), number);
    first.send(number)
}

/// Kills every process of the generation with this first process, that one in any case.
fn kill_all(first: &Pidfd) -> io::Result<()> {
    tree::kill(first.pid());
    first.send(Signal::SIGKILL)
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.tasks.end();
        self.cli.close();
    }
}

impl Cli {
    pub(crate) fn all(&self) -> Vec<Admin> {
        self.admin.iter().cloned().chain(self.spares.all()).collect()
    }

    /// Copies of all connections, each with its name.
    pub(crate) fn connections(&self) -> Vec<(String, OwnedFd)> {
        let own = self.admin.as_ref().and_then(Admin::connection);
        let own = own.map(|connection| (descriptor_store::OWN.to_owned(), connection));
        own.into_iter().chain(self.spares.connections()).collect()
    }

    /// Closes all connections: an open one keeps the process alive.
    pub(crate) fn close(&self) {
        if let Some(admin) = &self.admin {
            admin.close();
        }
        self.spares.close();
    }
}
