//! The registry: what is bound, under which name, and who uses it.
//!
//! [`Registry::on`] is the whole decision. Events come in (a connection, a
//! claim, sockets that were opened, a release), actions go out (open these,
//! hand out those, close that), and nothing here makes a system call or looks
//! at a clock. The handle `H` is a socket in the broker and an integer in tests.
//! It guarantees, whatever the order of events:
//!
//! - an address is bound at most once: a claim of a held address gets the held
//!   listener, and one that overlaps another is refused by name, unless both are one owner's;
//! - a claim is all or nothing: refused, or failed to open, it leaves no trace;
//! - a listener is closed only by an explicit release while nobody else uses it
//!   (or, claimed tentatively and never confirmed, with its last lease);
//! - the same claim a second time opens and closes nothing;
//! - no handle is lost: what was opened is held, or was given back to be closed.
//!
//! A request costs time in proportion to its length (times the logarithm of what
//! is held), for one listener or ten thousand.

mod adopt;
mod beside;
mod change;
mod claim;
mod index;
mod refusal;
mod release;
mod resume;
mod view;

use std::collections::BTreeMap;

use crate::address::Address;
use crate::listener::{Key, Listener, Options, Wanted};
use crate::name::Name;
use crate::policy::Peer;
use crate::time::Timestamp;

use claim::Pending;
use index::Index;

pub use adopt::Adoption;
pub use beside::{Neighbour, Overlap};
pub use refusal::{HeldBy, Refusal};
pub use resume::Link;
pub use view::{Generation, Holder, Service, View};

/// The most listeners that one request may ask for: every port twice, and some.
pub const MAX_CLAIM: usize = 150_000;

/// One connection to the broker; a number that the shell chose and never uses twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// One listener that is held. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(u64);

impl ListenerId {
    /// As a number, for whoever keeps numbers.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// One element of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Which listeners.
    pub wanted: Wanted,
    /// If this claim creates them, they are closed with their last lease unless
    /// something confirms them before.
    pub tentative: bool,
    /// An option that was said and differs from what is held is changed on the
    /// socket in place, instead of being a conflict.
    pub change: bool,
}

/// A held listener whose socket is to get other options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which; [`Registry::held`] tells what it has now.
    pub listener: ListenerId,
    /// All its options, as they are to be.
    pub options: Options,
}

/// A socket that the shell has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened<H> {
    /// The socket.
    pub handle: H,
    /// The address that it got; differs from the one asked for where that has port 0.
    pub bound: Address,
    /// Inode number of the socket.
    pub inode: u64,
    /// SO_COOKIE of the socket.
    pub cookie: u64,
    /// The backlog that was given to listen(2), 0 for UDP.
    pub backlog: u32,
    /// Whether nobody else can bind the address beside it.
    pub exclusive: bool,
}

/// Where a generation is in its life, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It does not accept yet.
    Starting,
    /// It accepts.
    Serving,
    /// It finishes what it has.
    Draining,
}

/// Which generation of which service a connection stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Name of the service.
    pub service: Name,
    /// Number of the generation.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// Where it is in its life.
    pub phase: Phase,
}

/// What happens to the registry.
#[derive(Debug)]
pub enum Event<H> {
    /// Somebody connected.
    Connected(ConnectionId, Peer),
    /// A connection asks for listeners.
    Claim(ConnectionId, Vec<Want>),
    /// The answer to [`Action::Open`]: every socket, in order.
    Opened(ConnectionId, Vec<Opened<H>>),
    /// The other answer to [`Action::Open`]: one failed, these were opened before it.
    OpenFailed(ConnectionId, Vec<Opened<H>>),
    /// The answer to [`Action::Change`]: the backlog that each has now, in order.
    Changed(ConnectionId, Vec<u32>),
    /// The other answer to [`Action::Change`]: one failed, and all are as they were.
    ChangeFailed(ConnectionId),
    /// The answer to [`Action::Retry`].
    Retry(ConnectionId),
    /// A connection says which generation it stands for, or that its phase changed.
    Join(ConnectionId, Label),
    /// A connection asks for listeners to be closed, by name or address.
    Release(ConnectionId, Vec<Wanted>),
    /// A connection has ended; the answer to [`Action::Leaving`] as well.
    Gone(ConnectionId),
    /// These are held already, from before.
    Adopt(Vec<Adoption<H>>),
    /// These were connected to the image of the broker before this one.
    Resume(Vec<Link>),
    /// The socket of this listener is beyond repair; this one takes its place.
    Replace(ListenerId, Opened<H>),
}

/// What the shell must do, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<H> {
    /// Open these sockets, those that overlap others beside them, and answer with
    /// [`Event::Opened`] or [`Event::OpenFailed`]. At most one of these is outstanding for each
    /// connection. Claims that come meanwhile and meet what is being opened wait, others do not.
    Open(ConnectionId, Vec<Listener>, Vec<Overlap>),
    /// Change these sockets in place, all or none, and answer with [`Event::Changed`] or
    /// [`Event::ChangeFailed`]. Outstanding as [`Action::Open`] is, never beside it.
    Change(ConnectionId, Vec<Change>),
    /// The claim of this connection has waited for another, which is decided: answer with
    /// [`Event::Retry`], when the connection's turn comes.
    Retry(ConnectionId),
    /// The connection that has gone has more leases: go on with [`Event::Gone`], after others have
    /// had their turn.
    Leaving(ConnectionId),
    /// Hand these out, in order.
    Grant(ConnectionId, Vec<Lease>),
    /// Answer that the claim came to nothing because opening or changing failed; the shell
    /// knows why.
    NotOpened(ConnectionId),
    /// Answer that these were closed, by their names on the wire.
    Released(ConnectionId, Vec<String>),
    /// Answer that nothing was done, and why.
    Refuse(ConnectionId, Refusal),
    /// Close this socket.
    Close(H, Listener, Closing),
}

/// Why a socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closing {
    /// Somebody released it.
    Released,
    /// It was claimed tentatively and its last lease ended unconfirmed.
    Unconfirmed,
    /// The claim that it was opened for failed, or nobody waits for it any more.
    NeverHeld,
    /// Another socket has taken its place.
    Replaced,
}

/// One entry of [`Action::Grant`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The listener; [`Registry::held`] tells the rest.
    pub listener: ListenerId,
    /// Whether this claim created it.
    pub created: bool,
}

/// A listener that is held.
#[derive(Debug)]
pub struct Held<H> {
    /// The socket and what is known of it.
    pub opened: Opened<H>,
    /// As it was asked for first; its name may have been added by a later claim.
    pub listener: Listener,
    /// Since when.
    pub since: Timestamp,
    /// Whether it is closed with its last lease.
    pub tentative: bool,
    /// How many connections have a lease on it, or are about to get one.
    leases: usize,
    /// The service and the user whose lease was the last to end, where nobody has it now.
    last_user: Option<Box<(Name, u32)>>,
    /// How often its name, its options or `tentative` has changed.
    edition: u32,
}

impl<H> Held<H> {
    /// Nobody uses it yet.
    fn new(listener: Listener, opened: Opened<H>, since: Timestamp, tentative: bool) -> Self {
        Self { opened, listener, since, tentative, leases: 0, last_user: None, edition: 0 }
    }

    /// Another number whenever its name, its options or whether it is tentative has changed: what was
    /// written down of it under the same number is still true.
    pub fn edition(&self) -> u32 {
        self.edition
    }

    /// It stays when its last lease ends.
    fn confirm(&mut self) {
        if std::mem::replace(&mut self.tentative, false) {
            self.edition += 1;
        }
    }

    fn key(&self) -> Key {
        self.listener.key()
    }

    /// As a refusal names it.
    fn described(&self) -> Box<HeldBy> {
        let asked = self.listener.address.port();
        let port = self.opened.bound.port().filter(|port| Some(*port) != asked);
        Box::new(HeldBy { listener: self.listener.clone(), port, since: self.since })
    }
}

#[derive(Debug)]
struct Connection {
    peer: Peer,
    label: Option<(Label, Timestamp)>,
    /// Each lease with the time it began.
    leases: BTreeMap<ListenerId, Timestamp>,
}

/// What is bound, under which name, and who uses it.
#[derive(Debug)]
pub struct Registry<H> {
    /// Boxed, because the tree moves its elements about.
    held: BTreeMap<ListenerId, Box<Held<H>>>,
    connections: BTreeMap<ConnectionId, Connection>,
    index: Index,
    /// Claims whose sockets are being opened or changed.
    pending: BTreeMap<ConnectionId, Pending<H>>,
    /// Claims that met what one of these is about.
    waiting: BTreeMap<ConnectionId, Vec<Want>>,
    next: u64,
}

impl<H> Default for Registry<H> {
    fn default() -> Self {
        Self {
            held: BTreeMap::new(),
            connections: BTreeMap::new(),
            index: Index::default(),
            pending: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next: 0,
        }
    }
}

impl<H> Registry<H> {
    /// Takes one event, and gives what must be done about it. Events about a
    /// connection that is not known (or has gone) do nothing.
    pub fn on(&mut self, now: Timestamp, event: Event<H>) -> Vec<Action<H>> {
        let mut actions = Vec::new();
        let pending = self.pending.len();
        match event {
            Event::Connected(id, peer) => {
                let connection = Connection { peer, label: None, leases: BTreeMap::new() };
                self.connections.insert(id, connection);
            }
            Event::Claim(id, wants) if self.connections.contains_key(&id) => {
                self.claim(now, id, wants, &mut actions);
            }
            Event::Opened(id, opened) => self.opened(now, id, opened, &mut actions),
            Event::OpenFailed(id, opened) => self.open_failed(id, opened, &mut actions),
            Event::Changed(id, backlogs) => self.changed(now, id, &backlogs, &mut actions),
            Event::ChangeFailed(id) => self.change_failed(id, &mut actions),
            Event::Retry(id) => {
                if let Some(wants) = self.waiting.remove(&id) {
                    self.claim(now, id, wants, &mut actions);
                }
            }
            Event::Join(id, label) => self.join(now, id, label),
            Event::Release(id, wanted) if self.connections.contains_key(&id) => {
                self.release(id, &wanted, &mut actions);
            }
            Event::Gone(id) => self.gone(id, &mut actions),
            Event::Adopt(adoptions) => self.enter(adoptions, &mut actions),
            Event::Resume(links) => self.resume(links),
            Event::Replace(id, opened) => self.replace(id, opened, &mut actions),
            Event::Claim(..) | Event::Release(..) => {}
        }
        if self.pending.len() < pending {
            actions.extend(self.waiting.keys().copied().map(Action::Retry));
        }
        actions
    }

    /// A listener that is held.
    pub fn held(&self, id: ListenerId) -> Option<&Held<H>> {
        self.held.get(&id).map(Box::as_ref)
    }

    /// A listener that is held, by [`ListenerId::number`].
    pub fn numbered(&self, number: u64) -> Option<(ListenerId, &Held<H>)> {
        let id = ListenerId(number);
        Some((id, self.held(id)?))
    }

    /// Every listener that is held, in the order of creation.
    pub fn iter(&self) -> impl Iterator<Item = (ListenerId, &Held<H>)> {
        self.held.iter().map(|(id, held)| (*id, held.as_ref()))
    }

    /// Who is at the other end of a connection, and which generation it stands for.
    pub fn caller(&self, id: ConnectionId) -> Option<(Peer, Option<&Label>)> {
        let connection = self.connections.get(&id)?;
        Some((connection.peer, connection.label.as_ref().map(|(label, _)| label)))
    }

    /// Whether a connection uses a listener or stands for a generation.
    pub fn is_used(&self, id: ConnectionId) -> bool {
        let used =
            |connection: &Connection| connection.label.is_some() || !connection.leases.is_empty();
        self.connections.get(&id).is_some_and(used)
    }

    /// A held listener by what it was asked for: its key.
    pub fn by_key(&self, listener: &Listener) -> Option<&Held<H>> {
        self.held(self.index.key(&listener.key())?)
    }

    /// A held listener by its name.
    pub fn by_name(&self, name: &Name) -> Option<&Held<H>> {
        self.held(self.index.name(name)?)
    }

    /// How many listeners are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// How many are being opened for claims that are not decided.
    pub fn planned(&self) -> usize {
        self.pending.values().map(Pending::len).sum()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Gives up everything, for an orderly exit.
    pub fn into_held(self) -> impl Iterator<Item = Held<H>> {
        self.held.into_values().map(|held| *held)
    }

    fn join(&mut self, now: Timestamp, id: ConnectionId, label: Label) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let since = match &connection.label {
            Some((old, since)) if *old == label => *since,
            _ => now,
        };
        if label.phase == Phase::Serving {
            for id in connection.leases.keys() {
                if let Some(held) = self.held.get_mut(id) {
                    held.confirm();
                }
            }
        }
        connection.label = Some((label, since));
    }
}

#[cfg(test)]
mod tests;
