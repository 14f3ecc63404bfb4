//! The listeners that one broker holds: sockets, addresses, names, and who uses each.
//!
//! [`bindonce_core::registry`] decides; this module performs the decision, records the outcome
//! ([`Ledger`]) and reports it. Nothing here yields to another task; a claim of many listeners
//! takes many steps ([`crate::claims`]).

pub(crate) mod changes;
mod denied;
mod names;
mod perform;
mod socket;
mod waiting;
pub(crate) mod watch;

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use bindonce_core::policy::Peer;
use bindonce_core::registry::{
    Action, Adoption, ConnectionId, Event, Label, ListenerId, Opened, Process, Registry,
    SavedConnection, State,
};
use bindonce_daemon::Reporter;
use bindonce_sys::clock::now;
use bindonce_sys::hidden::{self, Hiding};
use bindonce_sys::limits::somaxconn;
use bindonce_sys::listen::{self, Astray, can_go_astray};
use bindonce_sys::queue;
use bindonce_wire::result::Problem;

use crate::persistence::Ledger;
use crate::persistence::restore::Found;

use socket::{Closed, Owners};
use waiting::Waiting;
use watch::Guard;

pub(crate) use denied::Denied;
pub(crate) use names::TakenName;
pub(crate) use perform::{LOGGED_ONE_BY_ONE, Next, may_be_unreachable, unlink};
pub(crate) use socket::{Held, Owned, Socket, Unfinished, show};

/// Descriptors kept free for connections and for probing UNIX paths, when a claim is checked
/// against the limit.
const SPARE: u64 = 32;

/// The listeners of one broker.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) registry: Registry<Socket>,
    pub(crate) guard: Rc<Guard>,
    pub(crate) limits: Limits,
    pub(crate) counts: Counts,
    /// UNIX files of sockets that are being opened.
    pub(crate) unfinished: Rc<Unfinished>,
    pub(crate) waiting: Waiting,
    /// Claims that are granted or given up in many steps.
    stepping: BTreeMap<ConnectionId, Stepping>,
    ledger: Rc<Ledger>,
    reporter: Rc<Reporter>,
    owners: Owners,
    somaxconn: u32,
    /// New listeners that are not watched yet.
    unsettled: Vec<ListenerId>,
    /// Whether it was logged what a `transparent` listener lacks without a capability.
    free_told: Cell<bool>,
}

/// Progress of a claim that is granted or given up in many steps.
#[derive(Debug, Default)]
struct Stepping {
    /// Listeners granted so far.
    count: usize,
    /// Their records, written in one go: after a crash all of a claim is there, or nothing.
    records: Vec<u8>,
    /// Listeners closed again, to be reported together.
    closed: Vec<Closed>,
}

/// The limits on listeners.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) all: usize,
    /// Listeners that claims of one user have created.
    pub(crate) per_user: usize,
    /// Leases of one user, except root and the broker's user.
    pub(crate) leases: usize,
    /// The soft limit on descriptors.
    pub(crate) descriptors: u64,
    /// Open descriptors other than listeners and connections.
    pub(crate) other_descriptors: u64,
}

/// Counts for metrics.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) granted: u64,
    pub(crate) opened: u64,
    pub(crate) closed: u64,
}

impl Listeners {
    pub(crate) fn new(
        guard: Rc<Guard>,
        ledger: Rc<Ledger>,
        reporter: Rc<Reporter>,
        limits: Limits,
    ) -> Self {
        Self {
            registry: Registry::default(),
            guard,
            limits,
            counts: Counts::default(),
            unfinished: Rc::default(),
            waiting: Waiting::default(),
            stepping: BTreeMap::new(),
            ledger,
            reporter,
            owners: Owners::default(),
            somaxconn: somaxconn(),
            unsettled: Vec::new(),
            free_told: Cell::default(),
        }
    }

    /// Registers a connection.
    pub(crate) fn connect(&mut self, id: ConnectionId, peer: Peer) {
        let actions = self.registry.on(now(), Event::Connected(id, peer));
        self.perform(actions);
    }

    /// Ends some leases of an ended connection. Returns true if it has more.
    pub(crate) fn end_leases(&mut self, id: ConnectionId) -> bool {
        // Sockets being opened for it have been closed.
        let mut actions = self.registry.on(now(), Event::OpenFailed(id, Vec::new()));
        actions.extend(self.registry.on(now(), Event::Gone(id)));
        let more = actions.iter().any(|action| matches!(action, Action::Leaving(_)));
        self.stepping.remove(&id);
        self.waiting.take(id);
        self.perform(actions);
        more
    }

    /// The tentative listeners that end with a connection, by inode, and the generation that it
    /// joined as, if that has not served.
    pub(crate) fn unconfirmed(&self, id: ConnectionId) -> Option<(Label, Vec<u64>)> {
        let (peer, label) = self.registry.caller(id)?;
        // A client that is its own generation leaves nothing behind.
        let label =
            label.filter(|label| label.state == State::Starting && label.pid != peer.pid)?;
        let tentative = self.registry.leased(id).filter(|held| held.tentative);
        let inodes: Vec<u64> = tentative.map(|held| held.opened.inode).collect();
        (!inodes.is_empty()).then(|| (label.clone(), inodes))
    }

    /// The generation of an ending connection lives on in this process: keeps these listeners, for
    /// this broker and the next.
    pub(crate) fn outlived(&mut self, id: ConnectionId, process: Process, inodes: &HashSet<u64>) {
        let actions = self.registry.on(now(), Event::Outlived(id, process));
        self.perform(actions);
        let leased = self.registry.leased(id);
        self.ledger.record(leased.filter(|held| inodes.contains(&held.opened.inode)));
    }

    /// That process has ended: closes some of the listeners that nobody else has claimed. Returns
    /// true if there are more.
    pub(crate) fn ended(&mut self, process: Process) -> bool {
        let actions = self.registry.on(now(), Event::Ended(process));
        let more = actions.iter().any(|action| matches!(action, Action::Closing(_)));
        self.perform(actions);
        more
    }

    /// Registers the generation that a connection has joined as.
    pub(crate) fn join(&mut self, id: ConnectionId, label: Label) {
        let actions = self.registry.on(now(), Event::Join(id, label));
        self.perform(actions);
    }

    /// Restores connections that were made to an earlier image of this process.
    pub(crate) fn resume(&mut self, links: Vec<SavedConnection>) {
        let actions = self.registry.on(now(), Event::Resume(links));
        self.perform(actions);
    }

    /// Shows the hidden listeners of a generation that is ready to serve, for clients to find.
    pub(crate) fn show_hidden(&self, id: ConnectionId) {
        self.registry.leased(id).filter(|held| held.opened.handle.hidden.get()).for_each(show);
    }

    /// Records that the generation of a connection serves, which confirms its listeners.
    pub(crate) fn serves(&self, id: ConnectionId, who: &str) {
        for held in self.registry.leased(id) {
            changes::notice(&self.reporter, held, who);
            self.ledger.record([held]);
        }
    }

    /// Registers listeners that exist already. `stored`: they came from the service manager's
    /// store, where they still are. They count for the user that created them, or for `giver` where
    /// that is not recorded.
    pub(crate) fn adopt(&mut self, found: Vec<Found>, stored: bool, giver: Option<u32>) {
        let count = found.len();
        let mut adoptions = Vec::with_capacity(count);
        for found in found {
            let Found { listener, socket, exclusive, since, tentative, owner, outlived, backlog } =
                found;
            let mut opened = Opened { exclusive, ..self.opened(&listener, socket) };
            // The process that made it listen gave the backlog, under the limit of that moment.
            if let Some(backlog) = backlog {
                opened.backlog = backlog;
            } else if matches!(listener.address, Address::Tcp(_))
                && let Ok(queue) = queue::accept_queue(opened.handle.fd.as_fd())
            {
                opened.backlog = queue.limit;
            }
            opened.handle.owned = owner.or(giver).and_then(|uid| self.owners.add(uid, 1).pop());
            let listener = listener.into();
            adoptions.push(Adoption { listener, opened, since, tentative, outlived });
        }
        let actions = self.registry.on(now(), Event::Adopt(adoptions));
        self.perform(actions);
        for (id, held) in self.registry.iter() {
            held.opened.handle.watch.begin(id, &held.opened.handle.fd, &held.listener.address);
            if held.opened.handle.hidden.get() && !held.tentative {
                show(held);
            }
        }
        if stored {
            self.ledger.has(self.registry.iter().map(|(_, held)| held));
        }
        if count != 0 {
            tracing::info!(count, held = self.registry.len(), "listeners taken over");
        }
    }

    /// Records listeners that have just been adopted, by inode.
    pub(crate) fn record(&self, inodes: &HashSet<u64>) {
        let held = self.registry.iter().map(|(_, held)| held);
        self.ledger.record(held.filter(|held| inodes.contains(&held.opened.inode)));
    }

    /// A socket as the registry holds it. The kernel does not watch it yet.
    pub(crate) fn opened(&self, listener: &Listener, socket: listen::Opened) -> Opened<Socket> {
        let backlog = match listener.options.backlog {
            _ if !listener.address.listens() => 0,
            // listen(2) clamps it silently.
            Some(backlog) => backlog.min(self.somaxconn),
            None => self.somaxconn,
        };
        if listener.options.transparent {
            self.tell_if_free(listener, socket.fd.as_fd());
        }
        socket::opened(socket, self.guard.watch(), backlog)
    }

    /// Logs, once, that a `transparent` listener has only part of what the option gives.
    fn tell_if_free(&self, listener: &Listener, socket: BorrowedFd<'_>) {
        let has_all = listen::is_transparent(socket, &listener.address).unwrap_or(true);
        if !has_all && !self.free_told.replace(true) {
            tracing::warn!(
                listener = listener.label(),
                "`transparent` needs CAP_NET_RAW or CAP_NET_ADMIN: without them, as with haproxy alone, such a listener can have addresses \
                 that the host lacks (IP_FREEBIND), but gets no diverted connections (IP_TRANSPARENT)"
            );
        }
    }

    /// The sockets of held listeners that overlap this one.
    pub(crate) fn neighbours(&self, listener: &Listener) -> Vec<Rc<OwnedFd>> {
        let ids = self.registry.neighbours(listener).into_iter();
        ids.filter_map(|id| Some(Rc::clone(&self.registry.held(id)?.opened.handle.fd))).collect()
    }

    /// Whether `need` more listeners of a user fit within all limits.
    pub(crate) fn room(&self, uid: u32, need: usize) -> Result<(), Denied> {
        self.room_beside(uid, need, self.registry.planned())
    }

    /// As [`Self::room`], with `planned` listeners being opened for others.
    fn room_beside(&self, uid: u32, need: usize, planned: usize) -> Result<(), Denied> {
        let owned = self.owners.count(uid);
        let held = self.registry.len() + planned;
        for (limit, most, has) in [
            ("listeners", self.limits.all, held),
            ("listeners_per_user", self.limits.per_user, owned),
        ] {
            if has.saturating_add(need) > most && need != 0 {
                return Err(Denied::TooMany { limit, most });
            }
        }
        let open = self.limits.other_descriptors + held as u64 + self.registry.connections() as u64;
        let limit = self.limits.descriptors;
        if open.saturating_add(need as u64).saturating_add(SPARE) > limit && need != 0 {
            return Err(Denied::Limit { need, open, limit });
        }
        Ok(())
    }

    /// Whether `more` leases for a connection fit within its user's limit.
    pub(crate) fn room_for_leases(&self, id: ConnectionId, more: usize) -> Result<(), Denied> {
        let uid = self.registry.caller(id).map_or(0, |(peer, _)| peer.uid);
        if self.reporter.is_owner(uid) {
            return Ok(());
        }
        let (most, has) = (self.limits.leases, self.registry.leases_of(uid));
        if has.saturating_add(more) <= most {
            return Ok(());
        }
        Err(Denied::TooMany { limit: "leases_per_user", most })
    }

    /// Counts listeners planned for a connection as its user's, within all limits.
    pub(crate) fn reserve(&self, id: ConnectionId, count: usize) -> Result<Vec<Owned>, Denied> {
        let uid = self.registry.caller(id).map_or(0, |(peer, _)| peer.uid);
        let others = self.registry.planned().saturating_sub(count);
        self.room_beside(uid, count, others)?;
        Ok(self.owners.add(uid, count))
    }
}

/// The problem that no client reaches a held listener any more.
pub(crate) fn unreachable(held: &Held) -> Option<Problem> {
    let why = astray(held)?;
    let label = held.listener.label();
    let (whom, mended) = match why {
        Astray::PathClosed { .. } => ("not every client may connect", "its mode is then restored"),
        Astray::PathOwner { .. } => ("not every client may connect", "its owner is then restored"),
        _ => ("no client reaches it", "it is then bound anew"),
    };
    let message = format!("{label} listens, but {whom}: {why}");
    let hint = format!("reload what uses it, or claim it again: {mended}");
    Some(Problem::new("listener-unreachable", label, message, Some(hint)))
}

/// The problem that no interface has the address of a held listener.
pub(crate) fn away(held: &Held) -> Option<Problem> {
    let address = listen::without_interface(held.opened.handle.fd.as_fd(), &held.listener)?;
    let label = held.listener.label();
    let message =
        format!("{label} listens, but no client reaches it: no interface has {address} now");
    let hint = "add the address to an interface (`ip addr add`), and clients reach the listener again without a \
                reload; if it is gone for good, remove its line from the configuration and reload";
    Some(Problem::new("listener-unreachable", label, message, Some(hint.to_owned())))
}

/// The problem that a held listener is hidden from clients. A listener of a starting generation is
/// meant to be hidden.
pub(crate) fn hidden(held: &Held) -> Option<Problem> {
    let fd = held.opened.handle.fd.as_fd();
    let is_tcp = matches!(held.listener.address, Address::Tcp(_));
    if held.tentative || !is_tcp || !hidden::is_hidden(fd) {
        return None;
    }
    let label = held.listener.label();
    let message = format!(
        "{label} listens, but no new connection reaches it: it is hidden by an unfinished handover"
    );
    let hint = if Hiding::here().is_some() {
        format!(
            "where no reload is in progress: reload the service, or claim the listener: either shows it; \
             `bindonce release {label}` closes it where nothing uses it"
        )
    } else {
        format!(
            "where no reload is in progress: stop the service, close the listener with `bindonce release {label}`, and start the \
             service again; this broker lacks CAP_NET_RAW, without which a claim does not show the listener"
        )
    };
    Some(Problem::new("listener-hidden", label, message, Some(hint)))
}

/// Why no client can reach a held listener; None if clients can.
fn astray(held: &Held) -> Option<Astray> {
    if !can_go_astray(&held.listener) {
        return None;
    }
    let socket = &held.opened.handle;
    let (path, owner) = (socket.path.as_ref(), socket.file_owner.get());
    listen::astray(socket.fd.as_fd(), &held.listener, path, owner)
}
