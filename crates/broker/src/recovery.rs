//! Getting listeners back where no service manager keeps them: after a broker was killed, or
//! ended while others used its listeners (its container was replaced).
//!
//! What was held stands in the state file. Each listener is had back from the first of
//! these that has it:
//!
//! 1. a client that connects again and gives back what it holds (`store`);
//! 2. a process that holds the socket, by pidfd_getfd(2), where that is allowed; inode and
//!    cookie must be those that were written down, so that it is the same socket;
//! 3. a new socket on the address. The kernel grants it only if nobody holds the old one,
//!    because no socket of ours has SO_REUSEPORT: there are never two. (Not after an orderly
//!    end: who does not hold its socket any more has no use for it.)
//!
//! Clients can connect meanwhile; what would bind or release waits until this is over,
//! [`PATIENCE`] at most. What could not be had back is named in the log, with who holds
//! it. It stays written down: a client may still give it back, and when its holder has
//! ended a claim binds it anew.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::event::Kind;
use bindonce_core::listener::{Key, Listener};
use bindonce_core::registry::Lease;
use bindonce_core::time::Timestamp;
use bindonce_observe::Happening;
use bindonce_sys::holders::Holder;
use bindonce_sys::process::Pidfd;
use bindonce_sys::{aside, diag, holders, identity};
use bindonce_wire::manifest::Entry;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::inquiry;
use crate::restore::{Found, as_written};
use crate::state::State;

/// How long clients have to give back what they hold before it is taken from them.
const GRACE: Duration = Duration::from_millis(300);

/// How long claims wait for all of this.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a look at all of /proc may take.
const LOOK: Duration = Duration::from_secs(5);

/// Opens when the broker holds all that it can have back.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shut: Cell<bool>,
    opened: Notify,
    /// Rung when a client has given something back.
    pub(crate) given: Notify,
}

impl Gate {
    pub(crate) fn shut(&self) {
        self.shut.set(true);
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.get()
    }

    pub(crate) fn open(&self) {
        self.shut.set(false);
        self.opened.notify_waiters();
    }

    /// Waits until it is open.
    pub(crate) async fn pass(&self) {
        while self.shut.get() {
            self.opened.notified().await;
        }
    }
}

/// Gets back what is missing, as far as it can be had.
pub(crate) async fn run(state: &Rc<RefCell<State>>) {
    let begun = Instant::now();
    let until = begun + PATIENCE;
    let gate = Rc::clone(&state.borrow().gate);
    let count = state.borrow().missing.len();
    let in_order = state.borrow().left_in_order;
    let mut closed = 0;
    if in_order {
        tracing::info!(count, "listeners of the broker before were in use: asking them back");
        closed += forget_closed(state).await;
    } else {
        tracing::warn!(count, "the broker before did not end in order: asking its listeners back");
        let held = look(state).await;
        rebind(state, |entry| !held.contains_key(&entry.inode)).await;
    }
    wait(state, &gate, begun + GRACE).await;
    take(state).await;
    wait(state, &gate, until).await;
    // Whoever had them may have ended meanwhile.
    if in_order {
        closed += forget_closed(state).await;
    } else {
        rebind(state, |_| true).await;
    }

    let held = look(state).await;
    let mut state = state.borrow_mut();
    state.missing.retain(|entry| !entry.tentative);
    for entry in &state.missing {
        let pids: Vec<String> = held
            .get(&entry.inode)
            .map(|holders| holders.iter().map(|holder| inquiry::named(&holder.pid)).collect())
            .unwrap_or_default();
        let held_by =
            if pids.is_empty() { "nobody who can be seen".to_owned() } else { pids.join(", ") };
        let text = format!("{} could not be had back; it is held by {held_by}", entry.listen);
        state.journal.record(Happening::new(Kind::ListenerLost, text));
        tracing::error!(
            listener = entry.listen,
            bound = entry.bound,
            inode = entry.inode,
            held_by,
            hint = "reload or end those who have it: they may give it back, or it is bound anew; \
                    CAP_SYS_PTRACE lets the broker take it itself",
            "listener could not be had back"
        );
    }
    let lost = state.missing.len();
    let had = count.saturating_sub(lost + closed);
    let took = bindonce_core::duration::format(begun.elapsed());
    tracing::info!(had, lost, closed, took, "listeners of the broker before");
    let text = format!("listeners of the broker before: {had} had back, {lost} lost, in {took}");
    state.journal.record(Happening::new(Kind::Recovered, text));
    state.rewrite_records();
}

/// Who holds what is missing, by inode; each process once.
async fn look(state: &Rc<RefCell<State>>) -> BTreeMap<u64, Vec<Holder>> {
    let inodes: Vec<u64> = state.borrow().missing.iter().map(|entry| entry.inode).collect();
    if inodes.is_empty() {
        return BTreeMap::new();
    }
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    // It reads all of /proc, so it happens beside this thread.
    let found = aside::within(LOOK, move || holders::of(&inodes)).await.unwrap_or_default();
    let mut held: BTreeMap<u64, Vec<Holder>> = BTreeMap::new();
    for holder in found.into_iter().filter(|holder| holder.pid != own) {
        let holders = held.entry(holder.inode).or_default();
        if holders.last().is_none_or(|last| last.pid != holder.pid) {
            holders.push(holder);
        }
    }
    held
}

/// Forgets what nobody holds any more; gives how many. The kernel's list of listening sockets
/// tells, which has those of other pid namespaces too.
async fn forget_closed(state: &Rc<RefCell<State>>) -> usize {
    let Ok(Ok(listening)) = aside::within(LOOK, diag::listening).await else { return 0 };
    let open: HashSet<u64> = listening.iter().map(|socket| socket.inode).collect();
    // Those of another network namespace are not on this list.
    let elsewhere =
        |entry: &Entry| entry.listener().is_ok_and(|listener| listener.options.netns.is_some());
    let missing = &mut state.borrow_mut().missing;
    let before = missing.len();
    missing.retain(|entry| open.contains(&entry.inode) || elsewhere(entry));
    before - missing.len()
}

/// Waits until clients have given everything back, or for long enough.
async fn wait(state: &Rc<RefCell<State>>, gate: &Gate, until: Instant) {
    while !state.borrow().missing.is_empty() {
        if timeout_at(until, gate.given.notified()).await.is_err() {
            return;
        }
    }
}

/// Takes what is missing from the processes that hold it.
async fn take(state: &Rc<RefCell<State>>) {
    let held = look(state).await;
    let entries: Vec<Entry> =
        state.borrow().missing.iter().filter(|entry| !entry.tentative).cloned().collect();
    let taken = aside::within(LOOK, move || {
        let from = |entry: &Entry| {
            held.get(&entry.inode)?.iter().find_map(|holder| from_process(entry, *holder))
        };
        entries.iter().filter_map(from).collect::<Vec<Found>>()
    });
    let taken = taken.await.unwrap_or_default();
    state.borrow_mut().had_back(taken, None);
}

fn from_process(entry: &Entry, holder: Holder) -> Option<Found> {
    let taken = Pidfd::open(holder.pid).and_then(|process| process.take(holder.fd));
    let taken = taken.map_err(|error| error.to_string()).and_then(|fd| {
        let found = identity::of(fd.as_fd()).map_err(|error| error.to_string())?;
        if found.inode != entry.inode {
            return Err("the process has closed it".to_owned());
        }
        as_written(entry, &found, fd)
    });
    match taken {
        Ok(found) => Some(found),
        Err(reason) => {
            tracing::debug!(
                listener = entry.listen,
                pid = holder.pid,
                reason,
                "cannot take a socket back"
            );
            None
        }
    }
}

/// Binds anew what is missing and `free`, as far as the kernel lets it.
async fn rebind(state: &Rc<RefCell<State>>, free: impl Fn(&Entry) -> bool) {
    let entries: Vec<Entry> = {
        let state = state.borrow();
        let wanted = state.missing.iter().filter(|entry| !entry.tentative && free(entry));
        wanted.cloned().collect()
    };
    for entry in entries {
        let (Ok(listener), Ok(bound)) = (entry.listener(), entry.bound()) else { continue };
        let name = listener.label();
        // Where port 0 was asked for, the port that it had.
        let place = Listener { address: bound, ..listener.clone() };
        let again = state.borrow().open_again(&place);
        match again {
            Ok(socket) => {
                tracing::warn!(listener = name, "listener bound anew: nobody had its socket");
                let text = format!("{name} bound anew: nobody had its socket");
                state.borrow().journal.record(Happening::new(Kind::ListenerBound, text));
                let since = Timestamp(entry.since);
                let found = Found { listener, socket, exclusive: true, since, tentative: false };
                let mut state = state.borrow_mut();
                state.missing.retain(|missing| missing.inode != entry.inode);
                state.had_back(vec![found], None);
            }
            Err(error) => tracing::debug!(listener = name, %error, "cannot be bound anew"),
        }
        // Thousands of them must not keep clients waiting that have something to give back.
        tokio::task::yield_now().await;
    }
}

impl State {
    /// Enters listeners that were missing. They count as those of the user who has given them.
    pub(crate) fn had_back(&mut self, found: Vec<Found>, giver: Option<u32>) {
        let inodes: HashSet<u64> = found.iter().map(|found| found.socket.inode).collect();
        if inodes.is_empty() {
            return;
        }
        self.missing.retain(|entry| !inodes.contains(&entry.inode));
        let restored: Vec<_> = found.iter().map(|found| found.listener.label()).collect();
        let text = format!("{} listeners are held again: {}", restored.len(), restored.join(" "));
        self.journal.record(Happening::new(Kind::ListenerRestored, text));
        self.adopt(found, false, giver);
        for inode in inodes {
            if let Some((_, held)) = self.registry.by_inode(inode) {
                self.record(held);
            }
        }
    }

    /// What was missing and has been bound by somebody's claim is missing no more.
    pub(crate) fn forget_bound(&mut self, leases: &[Lease]) {
        if self.missing.is_empty() {
            return;
        }
        let created = leases.iter().filter(|lease| lease.created);
        let held = created.filter_map(|lease| self.registry.held(lease.listener));
        let keys: HashSet<Key> = held.map(|held| held.listener.key()).collect();
        self.missing
            .retain(|entry| entry.listener().is_ok_and(|listener| !keys.contains(&listener.key())));
    }
}
