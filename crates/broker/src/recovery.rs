//! Recovers listeners where no service manager keeps them: after a broker was killed, or
//! ended while others used its listeners (its container was replaced).
//!
//! The state file lists the listeners that were held. Each is recovered from the first of these
//! that has it:
//!
//! 1. a client that connects again and gives back what it holds (`store`);
//! 2. a process that holds the socket, by pidfd_getfd(2), where that is allowed; inode and cookie
//!    must match the record, so that it is the same socket;
//! 3. a new socket on the address. The kernel grants it only if nobody holds the old one,
//!    because no socket of ours has SO_REUSEPORT: there are never two. (Not after an orderly
//!    end: a client that has closed its socket does not need it.)
//!
//! Clients can connect meanwhile. Requests that would bind or release wait until this is over,
//! [`PATIENCE`] at most. The log names each listener that was not recovered, and its holders. Its
//! record stays: a client may still give it back, and once its holder has ended a claim binds it
//! again.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::event::Kind;
use bindonce_core::listener::Listener;
use bindonce_core::time::Timestamp;
use bindonce_daemon::Happening;
use bindonce_sys::holders::Holder;
use bindonce_sys::{diag, holders, identity, worker};
use bindonce_wire::manifest::Entry;
use tokio::time::{Instant, timeout_at};

use crate::accounts;
use crate::broker::Broker;
use crate::inquiry;
use crate::persistence::Gate;
use crate::persistence::restore::{Found, as_written, kept_for};

/// How long clients have to give back their listeners before the broker takes them.
const GRACE: Duration = Duration::from_millis(300);

/// How long claims wait for the whole recovery.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a read of all of /proc may take.
const LOOK: Duration = Duration::from_secs(5);

/// Recovers every missing listener that can be recovered.
pub(crate) async fn run(broker: &Rc<RefCell<Broker>>) {
    let begun = Instant::now();
    let until = begun + PATIENCE;
    let gate = Rc::clone(&broker.borrow().persistence.gate);
    let count = broker.borrow().persistence.missing.len();
    let in_order = broker.borrow().persistence.missing.left_in_order;
    let mut closed = 0;
    if in_order {
        tracing::info!(count, "listeners of the previous broker are in use: recovering them");
        closed += forget_closed(broker).await;
    } else {
        tracing::warn!(count, "the previous broker did not end in order: recovering its listeners");
        let held = look(broker).await;
        rebind(broker, |entry| !held.contains_key(&entry.inode)).await;
    }
    wait(broker, &gate, begun + GRACE).await;
    take(broker).await;
    wait(broker, &gate, until).await;
    // The holders may have ended meanwhile.
    if in_order {
        closed += forget_closed(broker).await;
    } else {
        rebind(broker, |_| true).await;
    }

    let held = look(broker).await;
    let mut broker = broker.borrow_mut();
    broker.persistence.missing.entries.retain(|entry| !entry.tentative);
    for entry in &broker.persistence.missing.entries {
        let pids: Vec<String> = held
            .get(&entry.inode)
            .map(|holders| holders.iter().map(|holder| inquiry::named(&holder.pid)).collect())
            .unwrap_or_default();
        let held_by = if pids.is_empty() {
            "no process that can be seen".to_owned()
        } else {
            pids.join(", ")
        };
        let text = format!("{} was not recovered; it is held by {held_by}", entry.listen);
        broker.reporter.record(Happening::new(Kind::ListenerLost, text));
        tracing::error!(
            listener = entry.listen,
            bound = entry.bound,
            inode = entry.inode,
            held_by,
            hint = "reload or end the processes in held_by: they may give it back, or it is bound anew; \
                    CAP_SYS_PTRACE lets the broker take it itself",
            "listener was not recovered"
        );
    }
    let lost = broker.persistence.missing.len();
    let recovered = count.saturating_sub(lost + closed);
    let took = bindonce_core::duration::format(begun.elapsed());
    tracing::info!(recovered, lost, closed, took, "listeners of the previous broker");
    let text =
        format!("listeners of the previous broker: {recovered} recovered, {lost} lost, in {took}");
    broker.reporter.record(Happening::new(Kind::Recovered, text));
    broker.rewrite();
}

/// The holders of each missing listener, by inode; each process once.
async fn look(broker: &Rc<RefCell<Broker>>) -> BTreeMap<u64, Vec<Holder>> {
    let inodes: Vec<u64> =
        broker.borrow().persistence.missing.entries.iter().map(|entry| entry.inode).collect();
    if inodes.is_empty() {
        return BTreeMap::new();
    }
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    // This reads all of /proc, so it runs on another thread.
    let found = worker::within(LOOK, move || holders::of(&inodes)).await.unwrap_or_default();
    let mut held: BTreeMap<u64, Vec<Holder>> = BTreeMap::new();
    for holder in found.into_iter().filter(|holder| holder.pid != own) {
        let holders = held.entry(holder.inode).or_default();
        if holders.last().is_none_or(|last| last.pid != holder.pid) {
            holders.push(holder);
        }
    }
    held
}

/// Forgets the listeners that no process holds any more, and returns their number. The kernel's
/// list of listening sockets decides, because it includes those of other pid namespaces.
async fn forget_closed(broker: &Rc<RefCell<Broker>>) -> usize {
    let Ok(Ok(listening)) = worker::within(LOOK, diag::listening).await else { return 0 };
    let open: HashSet<u64> = listening.iter().map(|socket| socket.inode).collect();
    // Listeners of another network namespace are not on this list.
    let elsewhere =
        |entry: &Entry| entry.listener().is_ok_and(|listener| listener.options.netns.is_some());
    let missing = &mut broker.borrow_mut().persistence.missing.entries;
    let before = missing.len();
    missing.retain(|entry| open.contains(&entry.inode) || elsewhere(entry));
    before - missing.len()
}

/// Waits until clients have given everything back, but not past `until`.
async fn wait(broker: &Rc<RefCell<Broker>>, gate: &Gate, until: Instant) {
    while !broker.borrow().persistence.missing.is_empty() {
        if timeout_at(until, gate.donated.notified()).await.is_err() {
            return;
        }
    }
}

/// Takes missing listeners from the processes that hold them.
async fn take(broker: &Rc<RefCell<Broker>>) {
    let held = look(broker).await;
    let entries = broker.borrow().persistence.missing.wanted(|_| true);
    let taken = worker::within(LOOK, move || {
        let from = |entry: &Entry| {
            held.get(&entry.inode)?.iter().find_map(|holder| from_process(entry, *holder))
        };
        entries.iter().filter_map(from).collect::<Vec<Found>>()
    });
    let taken = taken.await.unwrap_or_default();
    broker.borrow_mut().recovered(taken, None);
}

fn from_process(entry: &Entry, holder: Holder) -> Option<Found> {
    let taken = holder.take().map_err(|error| error.to_string()).and_then(|fd| {
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

/// Rebinds the missing listeners that are `free`, where the kernel allows it. One whose user or
/// group cannot be looked up is left to a later claim.
async fn rebind(broker: &Rc<RefCell<Broker>>, free: impl Fn(&Entry) -> bool) {
    let entries = broker.borrow().persistence.missing.wanted(free);
    let accounts = accounts::of(entries.iter().filter_map(|entry| entry.listener().ok())).await;
    for entry in entries {
        let (Ok(listener), Ok(bound)) = (entry.listener(), entry.bound()) else { continue };
        let name = listener.label();
        // If port 0 was asked for, bind the port that the listener had.
        let place = Listener { address: bound, ..listener.clone() };
        let again = broker.borrow().listeners.open_again(&place, &accounts);
        match again {
            Ok(socket) => {
                tracing::warn!(listener = name, "listener bound anew: no process had its socket");
                let text = format!("{name} bound anew: no process had its socket");
                broker.borrow().reporter.record(Happening::new(Kind::ListenerBound, text));
                let since = Timestamp(entry.since);
                let exclusive = socket.bound.is_exclusive();
                let (owner, outlived) = (entry.owner, kept_for(&entry));
                let (tentative, backlog) = (false, None);
                let found = Found {
                    listener,
                    socket,
                    exclusive,
                    since,
                    tentative,
                    owner,
                    outlived,
                    backlog,
                };
                let mut broker = broker.borrow_mut();
                broker.persistence.missing.recovered(&HashSet::from([entry.inode]));
                broker.recovered(vec![found], None);
            }
            Err(error) => tracing::debug!(listener = name, %error, "cannot be bound anew"),
        }
        // Thousands of listeners must not delay a client that gives one back.
        tokio::task::yield_now().await;
    }
}
