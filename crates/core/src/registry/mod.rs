//! The registry: what is bound, under which name, and who uses it.
//!
//! [`Registry::on`] is the whole decision. Events come in (a connection, a claim, opened sockets, a
//! release) and actions go out (open these, hand out those, close that). Nothing here makes a
//! system call or looks at a clock: the shell, the code around the registry, performs the actions.
//! The handle `H` is a socket in the broker and an integer in tests. It guarantees, whatever the
//! order of events:
//!
//! - an address is bound at most once: a claim of a held address gets the held listener, and a
//!   claim that overlaps another owner's listener is refused by name;
//! - a claim is all or nothing: if it is refused or fails to open, it leaves no trace;
//! - a listener is closed only by an explicit release while nobody else uses it (or, claimed
//!   tentatively and never confirmed, with its last lease, or with the process that outlives that);
//! - the same claim a second time opens and closes nothing;
//! - no handle is lost: every opened socket is held, or was given back to be closed.
//!
//! A request costs time in proportion to its length (times the logarithm of the number of held
//! listeners), for one listener or ten thousand.

mod adopt;
mod beside;
mod change;
mod claim;
mod connection;
mod event;
mod held;
mod ids;
mod index;
mod leases;
mod names;
mod outlived;
mod plan;
mod planning;
mod refusal;
mod release;
mod resume;
mod view;
mod wants;

use std::collections::BTreeMap;

use crate::listener::Listener;
use crate::name::Name;
use crate::policy::Peer;
use crate::time::Timestamp;

use connection::Connection;
use ids::AT_ONCE;
use index::Index;
use leases::Leases;
use plan::Pending;

pub use connection::{Holder, Label, SavedConnection, SavedLease, State};
pub use event::{Action, Adoption, Change, Closing, Event, Lease, Neighbour, Overlap};
pub use held::{Held, Opened};
pub use ids::{ConnectionId, ListenerId, MAX_CLAIM, Process};
pub use refusal::{HeldBy, Refusal};
pub use release::Releasing;
pub use view::{Generation, View};
pub use wants::{Spent, Want, Wants};

/// What is bound, under which name, and who uses it.
#[derive(Debug)]
pub struct Registry<H> {
    /// Boxed, because the tree moves its elements.
    held: BTreeMap<ListenerId, Box<Held<H>>>,
    connections: BTreeMap<ConnectionId, Connection>,
    index: Index,
    leases: Leases,
    /// Claims that are not decided: being planned, opened, changed, granted or given up.
    pending: BTreeMap<ConnectionId, Pending<H>>,
    /// Waiting claims, each with the connection whose claim it waits for; None waits for planning.
    waiting: BTreeMap<ConnectionId, (Wants, Option<ConnectionId>)>,
    next: u64,
    /// The large claim that is planned in many steps. One at a time, so that no two can wait for
    /// each other's parts.
    planning: Option<ConnectionId>,
    /// How many listeners of a claim are planned or granted in one step.
    at_once: usize,
}

impl<H> Default for Registry<H> {
    /// An empty registry with steps of 256 listeners.
    fn default() -> Self {
        Self::in_steps_of(AT_ONCE)
    }
}

impl<H> Registry<H> {
    /// An empty registry with steps of this many listeners.
    pub fn in_steps_of(at_once: usize) -> Self {
        Self {
            held: BTreeMap::new(),
            connections: BTreeMap::new(),
            index: Index::default(),
            leases: Leases::default(),
            pending: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next: 0,
            planning: None,
            at_once,
        }
    }

    /// Takes one event and returns what to do about it. Events about a connection that is unknown
    /// (or gone) do nothing.
    pub fn on(&mut self, now: Timestamp, event: Event<H>) -> Vec<Action<H>> {
        let mut actions = Vec::new();
        let (pending, planning) = (self.pending.len(), self.planning);
        match event {
            Event::Connected(id, peer) => {
                let connection = Connection { peer, label: None, leases: BTreeMap::new() };
                self.connections.insert(id, connection);
            }
            Event::Claim(id, wants) if self.connections.contains_key(&id) => {
                self.claim(now, id, wants, &mut actions);
            }
            Event::Opened(id, opened) => self.opened(now, id, opened, &mut actions),
            Event::OpenFailed(id, opened) => self.open_failed(now, id, opened, &mut actions),
            Event::Changed(id, backlogs) => self.changed(now, id, &backlogs, &mut actions),
            Event::ChangeFailed(id) => self.change_failed(now, id, &mut actions),
            Event::More(id) => self.more(now, id, &mut actions),
            Event::Retry(id) => {
                if let Some((wants, _)) = self.waiting.remove(&id) {
                    self.claim(now, id, wants, &mut actions);
                }
            }
            Event::Join(id, label) => self.join(now, id, label),
            Event::Release(id, wanted) if self.connections.contains_key(&id) => {
                self.release(id, &wanted, &mut actions);
            }
            Event::ReleaseRest(id, rest) if self.connections.contains_key(&id) => {
                self.release_some(id, rest, &mut actions);
            }
            Event::Unname(id) => self.unname(id),
            Event::Rename(id, name) => self.rename(id, name),
            Event::Outlived(id, process) => self.outlived(id, process),
            Event::Ended(process) => self.ended(process, &mut actions),
            Event::Gone(id) => self.gone(now, id, &mut actions),
            Event::Adopt(adoptions) => self.enter(adoptions, &mut actions),
            Event::Resume(links) => self.resume(links, &mut actions),
            Event::Replace(id, opened) => self.replace(now, id, opened, &mut actions),
            Event::Claim(..) | Event::Release(..) | Event::ReleaseRest(..) => {}
        }
        let decided = self.pending.len() < pending;
        if decided || planning.is_some() && self.planning.is_none() {
            // Claims that wait for a claim that is decided now, or for the end of planning.
            let waits = |other: &Option<ConnectionId>| match other {
                Some(other) => decided && !self.pending.contains_key(other),
                None => self.planning.is_none(),
            };
            let retried = self.waiting.iter().filter(|(_, (_, other))| waits(other));
            actions.extend(retried.map(|(id, _)| Action::Retry(*id)));
        }
        actions
    }

    /// A held listener.
    pub fn held(&self, id: ListenerId) -> Option<&Held<H>> {
        self.held.get(&id).map(Box::as_ref)
    }

    /// A held listener, by [`ListenerId::number`].
    pub fn numbered(&self, number: u64) -> Option<(ListenerId, &Held<H>)> {
        let id = ListenerId(number);
        Some((id, self.held(id)?))
    }

    /// Every held listener, in the order of creation.
    pub fn iter(&self) -> impl Iterator<Item = (ListenerId, &Held<H>)> {
        self.held.iter().map(|(id, held)| (*id, held.as_ref()))
    }

    /// The peer of a connection, and the generation that it has joined as.
    pub fn caller(&self, id: ConnectionId) -> Option<(Peer, Option<&Label>)> {
        let connection = self.connections.get(&id)?;
        Some((connection.peer, connection.label.as_ref().map(|(label, _)| label)))
    }

    /// Whether a connection has joined as a starting generation while another generation of its
    /// service serves.
    pub fn is_to_succeed(&self, id: ConnectionId) -> bool {
        let Some((_, Some(label))) = self.caller(id) else { return false };
        let labels = self.connections.values().filter_map(|connection| connection.label.as_ref());
        let mut of_service = labels.filter(|(other, _)| other.service == label.service);
        label.state == State::Starting && of_service.any(|(other, _)| other.state == State::Serving)
    }

    /// Whether a connection uses a listener or has joined as a generation.
    pub fn is_used(&self, id: ConnectionId) -> bool {
        let used =
            |connection: &Connection| connection.label.is_some() || !connection.leases.is_empty();
        self.connections.get(&id).is_some_and(used)
    }

    /// A held listener, by the key that it was asked for with.
    pub fn by_key(&self, listener: &Listener) -> Option<&Held<H>> {
        self.held(self.index.key(&listener.key())?)
    }

    /// The held listener that has this name.
    pub fn with_name(&self, name: &Name) -> Option<(ListenerId, &Held<H>)> {
        let id = self.index.name(name)?;
        let held = self.held(id)?;
        (held.listener.name.as_ref() == Some(name)).then_some((id, held))
    }

    /// A held listener, by a name that it has or gets from an undecided claim.
    pub fn by_name(&self, name: &Name) -> Option<&Held<H>> {
        self.held(self.index.name(name)?)
    }

    /// How many listeners are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// How many listeners are being opened for undecided claims.
    pub fn planned(&self) -> usize {
        self.pending.values().map(|plan| plan.opening.len()).sum()
    }

    /// The elements of a connection's claim that waits for another claim.
    pub fn waiting(&self, id: ConnectionId) -> Option<&Wants> {
        self.waiting.get(&id).map(|(wants, _)| wants)
    }

    /// Whether no listener is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Gives up every held listener, for an orderly exit.
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
        if label.state == State::Serving {
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
