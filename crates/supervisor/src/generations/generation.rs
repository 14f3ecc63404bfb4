//! One generation: its process, the listeners that it was given, and what is known of it so far. Dropping it ends its leases
//! and its admin connection; the process lives on.

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
use crate::handover::watchdog::ProcessRef;
use crate::intercept::calls_seen::CallsSeen;
use crate::report::cause::Cause;
use bindonce_haproxy::cli::Version;

/// A process that serves, is about to, or has served.
pub(crate) struct Generation {
    pub(crate) id: GenerationId,
    pub(crate) pidfd: Rc<Pidfd>,
    /// The same process, as the watchdog and the next supervisor know it.
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

/// Its start: from its beginning, with what is read and claimed, until the generation is ready.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    /// When its process was started.
    pub(crate) at: Timestamp,
    /// When this supervisor began it, until it is ready.
    pub(crate) begun: Option<Instant>,
    /// How long it has taken; none if an earlier supervisor has started it, which has not told.
    pub(crate) took: Option<Duration>,
}

impl Start {
    /// It is ready.
    pub(crate) fn ready(&mut self) -> Option<Duration> {
        let took = self.begun.take().map(|begun| begun.elapsed());
        self.took = took.or(self.took);
        self.took
    }
}

/// haproxy's admin CLI, and what it has told. Empty for another program.
#[derive(Default)]
pub(crate) struct Cli {
    pub(crate) admin: Option<Admin>,
    /// Known when its admin socket has answered.
    pub(crate) version: Option<Version>,
    /// That version as haproxy writes it.
    pub(crate) release: Option<String>,
    /// More connections, for the clients of the master CLI.
    pub(crate) spares: Spares,
    /// The process that answers on its admin socket, once it has.
    pub(crate) answers: Option<i32>,
    /// Its configuration or command line asks for haproxy's own master.
    pub(crate) master_worker: bool,
    /// Its configuration or command line switches epoll off.
    pub(crate) no_epoll: bool,
    /// How many reloads the master CLI had counted when it began to serve.
    pub(crate) reloads_before: u64,
}

/// Its standard error.
pub(crate) struct Output {
    pub(crate) tail: Tail,
    /// A copy of the reading end and what translates it, for the next image of this process.
    pub(crate) pipe: Option<OwnedFd>,
}

impl Output {
    /// It has started: what it writes from now on does not belong to its start.
    pub(crate) fn started(&self) {
        let pipe = self.pipe.as_ref().map(rustix::io::ioctl_fionread);
        let unread = pipe.and_then(Result::ok).and_then(|unread| usize::try_from(unread).ok());
        self.tail.started(unread.unwrap_or_default());
    }
}

/// How far it has come on the way to take over.
#[derive(Default)]
pub(crate) struct Readiness {
    /// It is inside the system call by which it says that it is ready, and accepts nothing until
    /// this is let go.
    pub(crate) hold: Option<Rc<Hold>>,
    /// It was stopped (SIGSTOP) by us: only then must all its processes be told to go on.
    pub(crate) stopped: bool,
    /// The inodes of the listeners on which it listens, as far as it has said so.
    pub(crate) listening: BTreeSet<u64>,
    /// How many listeners it was started with: their descriptors come first.
    pub(crate) passed: usize,
    /// Its readiness was told to the timeline.
    pub(crate) ready: bool,
    /// Why it was ended by us before it took over.
    pub(crate) refused: Option<Cause>,
    /// It has said that it listens on all that was claimed for it.
    pub(crate) listens: bool,
}

/// Its leases, which the broker ends when this is dropped.
pub(crate) struct Lease {
    /// What the broker is to know of it.
    pub(crate) news: mpsc::UnboundedSender<LeaseUpdate>,
    /// It has served: what it was given is confirmed.
    pub(crate) served: bool,
    /// It has closed its listeners, and is woken for none of them.
    pub(crate) closed: bool,
    /// What it wants otherwise, once it serves.
    pub(crate) changes: Vec<OptionChange>,
}

/// Addresses that it binds by itself.
#[derive(Default)]
pub(crate) struct OwnAddresses {
    /// Those that it has, as far as it was looked at.
    pub(crate) bound: BTreeSet<String>,
    /// Those of them for which no call was seen that could be intercepted.
    pub(crate) unseen: BTreeSet<String>,
    /// What it was about to bind, by the inode of the socket: each was seen before, and where, if the call has told it. None where
    /// not all were to be seen.
    pub(crate) seen: Option<BTreeMap<u64, Option<String>>>,
    /// Of a program whose calls were seen from its start on: those of its own sockets.
    pub(crate) calls: Option<CallsSeen>,
    /// Where its calls come from, if it is asked about any.
    pub(crate) intercept: Option<Arc<Intercept>>,
    /// It is over with binding: what it binds from now on is not looked at.
    pub(crate) over: Rc<Cell<bool>>,
    /// Lines of its configuration, each with the address that it has bound for it and that was not claimed before: it has
    /// the broker's socket there, and believes that it is its own.
    pub(crate) lines: BTreeSet<String>,
    /// Devices of its configuration that they are for.
    pub(crate) devices: BTreeSet<String>,
    /// It cannot bind one: the last of SIGTTOU (older ones are to let go of it) and SIGTTIN (it has given up)
    /// that it sent.
    pub(crate) wanted: Option<Signal>,
}

/// Tasks that ask it, and end with it.
#[derive(Default)]
pub(crate) struct Tasks {
    /// Whether it has stopped, and then how many connections are left.
    watch: Option<AbortHandle>,
    /// Whether it accepts again, once it is told to.
    resumes: Option<AbortHandle>,
}

impl Tasks {
    /// This task asks from now on, and no earlier one.
    pub(crate) fn watch(&mut self, task: AbortHandle) {
        abort(self.watch.replace(task));
    }

    /// The same, for whether it accepts again.
    pub(crate) fn ask_resumed(&mut self, task: AbortHandle) {
        abort(self.resumes.replace(task));
    }

    /// No task asks any more.
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

/// Listeners that it has let go of.
pub(crate) struct GivenBack {
    /// Ends when the broker knows.
    pub(crate) known: oneshot::Receiver<()>,
    /// Those of which haproxy's own master keeps a copy, open, for as long as it lives.
    pub(crate) of_master: Vec<Rc<HeldListener>>,
}

impl Generation {
    pub(crate) fn pid(&self) -> i32 {
        self.pidfd.pid()
    }

    /// Holds it at its readiness. That stops the process that has said it alone: a worker of haproxy's own master
    /// (3.1 and later) waits for its master for 2 s and accepts then, so it is stopped too.
    pub(crate) fn hold(&mut self, hold: Rc<Hold>) {
        self.readiness.hold = Some(hold);
        if self.has_master() {
            self.readiness.stopped = true;
            tree::signal_others(self.pid(), Signal::SIGSTOP);
        }
    }

    /// Lets it go on, if it is held.
    pub(crate) fn release(&mut self) {
        let Some(hold) = self.readiness.hold.take() else { return };
        hold.release();
        if std::mem::take(&mut self.readiness.stopped) {
            tree::signal_others(self.pid(), Signal::SIGCONT);
        }
    }

    /// Tells the broker; what it returns ends when the broker has taken it, or is gone.
    pub(crate) fn tell(&self, state: State) -> oneshot::Receiver<()> {
        let (done, taken) = oneshot::channel();
        // The task that takes it lives as long as this generation.
        let _ = self.lease.news.send(LeaseUpdate::State(state, done));
        taken
    }

    /// Has clients find what the broker has hidden for its start. What it returns, if anything, ends when the broker has shown what this
    /// process may not.
    pub(crate) fn show_new(&self) -> Option<oneshot::Receiver<()>> {
        let new = self.listeners.iter().filter(|held| held.created);
        let hidden: Vec<_> = new.filter(|held| !held.show()).cloned().collect();
        (!hidden.is_empty()).then(|| {
            let (done, shown) = oneshot::channel();
            let _ = self.lease.news.send(LeaseUpdate::Show(hidden, done));
            shown
        })
    }

    /// Whether its first process is haproxy's own master, which keeps a copy of each listener for its next
    /// worker and never accepts.
    pub(crate) fn has_master(&self) -> bool {
        self.cli.answers.map_or(self.cli.master_worker, |answers| answers != self.pid())
    }

    /// Whether it is held at its readiness.
    pub(crate) fn is_held(&self) -> bool {
        self.readiness.hold.is_some()
    }

    /// Its version; `binary` is that of the program, where its admin socket has not told it.
    pub(crate) fn version(&self, binary: Option<Version>) -> Version {
        self.cli.version.or(binary).unwrap_or_default()
    }

    /// Whether it can be paused without harm to the shared sockets, so that the accept queues prove it.
    pub(crate) fn can_pause(&self, binary: Option<Version>) -> bool {
        let version = self.version(binary);
        !self.listeners.is_empty()
            // It would disconnect the socket that others have too.
            && self.own.lines.is_empty()
            && self.listeners.iter().all(|held| held.can_pause(version))
            && !self.has_master()
    }

    /// The inodes of its listeners.
    pub(crate) fn inodes(&self) -> Vec<u64> {
        self.listeners.iter().map(|held| held.inode).collect()
    }

    /// The inodes of those that it listens on, as far as it has said so; of one that was taken over, of all.
    pub(crate) fn listens_on(&self) -> Vec<u64> {
        let said = &self.readiness.listening;
        self.inodes().into_iter().filter(|inode| said.is_empty() || said.contains(inode)).collect()
    }

    /// Lets go of the listeners that are not among these, and of its leases with them; none if there are none.
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

    /// Sends it what the timeline wants sent. None if it is held, or was, and there was nothing to send.
    pub(crate) fn signal(
        &mut self,
        signal: Wanted,
        number: Signal,
        reason: Reason,
    ) -> Option<io::Result<()>> {
        let pid = self.pid();
        Some(match signal {
            // One that was stopped (SIGSTOP) would not hear it.
            Wanted::SoftStop if reason == Reason::Again => {
                let sent = self.deliver(number);
                tree::signal(pid, Signal::SIGCONT);
                sent
            }
            // It waits inside the call that said that it is ready.
            Wanted::Stop if self.is_held() => return None,
            Wanted::Continue if self.is_held() => {
                self.release();
                return None;
            }
            // It was let go on already. Somebody else may have stopped it, or has a SIGSTOP on its way to it, which
            // SIGCONT discards. To find all its processes all of /proc would be read.
            Wanted::Continue if reason != Reason::Silent && !self.readiness.stopped => {
                let _ = self.pidfd.send(number);
                return None;
            }
            // It has accepted nothing, and heeds no other signal there.
            Wanted::Terminate if self.is_held() => self.pidfd.send(Signal::SIGKILL),
            // Every process of it may accept, and none may outlive its generation.
            Wanted::Kill => {
                tree::kill(pid);
                Ok(())
            }
            // The proof completes the stop: it takes effect later.
            Wanted::Stop | Wanted::Continue => {
                self.readiness.stopped = signal == Wanted::Stop;
                tree::signal(pid, number);
                Ok(())
            }
            _ => self.deliver(number),
        })
    }

    /// Signals its first process, or haproxy, where that process is a script that waits for haproxy: the signal would end
    /// the script alone, and haproxy would accept for ever.
    fn deliver(&self, number: Signal) -> io::Result<()> {
        let behind_script = self.cli.answers.filter(|answers| {
            *answers != self.pid() && !self.cli.master_worker && tree::has(self.pid(), *answers)
        });
        match behind_script.and_then(|pid| Pidfd::open(pid).ok()) {
            Some(haproxy) => haproxy.send(number),
            None => self.pidfd.send(number),
        }
    }

    /// It is told to exit, or is gone: how many connections end with it, as far as it has told, or has said of its
    /// own hard stop; none where they are counted. One that has drained has told of none.
    pub(crate) fn cut(&mut self) -> u64 {
        self.drain.cut(self.output.tail.cut())
    }

    /// Ends it because it is not to take over, for this reason.
    pub(crate) fn refuse(&mut self, cause: Cause) {
        self.readiness.refused = Some(Cause { ours: true, ..cause });
        // Held or not: it has served nobody, and must not.
        tree::kill(self.pid());
    }

    /// Ends its leases; what it returns ends when the broker knows.
    pub(crate) fn leave(&self) -> oneshot::Receiver<()> {
        let (done, known) = oneshot::channel();
        let _ = self.lease.news.send(LeaseUpdate::Gone(done));
        known
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.tasks.end();
        self.cli.close();
    }
}

impl Cli {
    /// All connections.
    pub(crate) fn all(&self) -> Vec<Admin> {
        self.admin.iter().cloned().chain(self.spares.all()).collect()
    }

    /// Copies of them, each with its name.
    pub(crate) fn connections(&self) -> Vec<(String, OwnedFd)> {
        let own = self.admin.as_ref().and_then(Admin::connection);
        let own = own.map(|connection| (descriptor_store::OWN.to_owned(), connection));
        own.into_iter().chain(self.spares.connections()).collect()
    }

    /// Closes all connections: they keep the process alive.
    pub(crate) fn close(&self) {
        if let Some(admin) = &self.admin {
            admin.close();
        }
        self.spares.close();
    }
}
