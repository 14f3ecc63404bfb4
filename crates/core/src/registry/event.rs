//! Events for the registry, and the actions that the shell must perform.

use std::sync::Arc;

use crate::listener::{Listener, Options, Wanted};
use crate::name::Name;
use crate::policy::Peer;
use crate::time::Timestamp;

use super::connection::{Label, SavedConnection};
use super::held::Opened;
use super::ids::{ConnectionId, ListenerId, Process};
use super::refusal::Refusal;
use super::wants::Wants;

/// A held listener whose socket gets other options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The listener; [`Registry::held`](super::Registry::held) shows its current options.
    pub listener: ListenerId,
    /// All its new options.
    pub options: Options,
}

/// An event for the registry.
#[derive(Debug)]
pub enum Event<H> {
    /// A client connected.
    Connected(ConnectionId, Peer),
    /// A connection asks for listeners.
    Claim(ConnectionId, Wants),
    /// The answer to [`Action::Open`]: every socket, in order.
    Opened(ConnectionId, Vec<Opened<H>>),
    /// The other answer to [`Action::Open`]: one failed, these were opened before it. Also ends a
    /// waiting claim.
    OpenFailed(ConnectionId, Vec<Opened<H>>),
    /// The answer to [`Action::Change`]: the backlog that each listener has now, in order.
    Changed(ConnectionId, Vec<u32>),
    /// The other answer to [`Action::Change`]: one failed, and all listeners are as before.
    ChangeFailed(ConnectionId),
    /// The answer to [`Action::More`].
    More(ConnectionId),
    /// The answer to [`Action::Retry`].
    Retry(ConnectionId),
    /// A connection joins as a generation, or its state has changed.
    /// [`Registry::check_join`](super::Registry::check_join) comes first.
    Join(ConnectionId, Label),
    /// A listener loses its name, which belongs to another user. At port 0, where the name tells
    /// listeners apart, it gets another: the lost one with the port that it got.
    Unname(ListenerId),
    /// A listener gets a lost name back, unless it has got another by a claim, or another listener
    /// has this one.
    Rename(ListenerId, Name),
    /// A connection asks for listeners to be closed, by name or address.
    Release(ConnectionId, Vec<Wanted>),
    /// The rest of [`Action::Released`].
    ReleaseRest(ConnectionId, Vec<ListenerId>),
    /// The process of this connection's generation lives on without it, and keeps the sockets: its
    /// tentative listeners stay open. [`Event::Gone`] follows.
    Outlived(ConnectionId, Process),
    /// A process of [`Event::Outlived`] has ended: its listeners that nobody has claimed since are
    /// closed. Also the answer to [`Action::Closing`].
    Ended(Process),
    /// A connection has ended. Also the answer to [`Action::Leaving`].
    Gone(ConnectionId),
    /// These sockets are already held from before.
    Adopt(Vec<Adoption<H>>),
    /// These connections were made to an earlier image of this process.
    Resume(Vec<SavedConnection>),
    /// The socket of this listener is beyond repair; the given one replaces it.
    Replace(ListenerId, Opened<H>),
}

/// An action for the shell. Actions are performed in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<H> {
    /// Open these sockets, overlapping ones beside the others, and answer with [`Event::Opened`] or
    /// [`Event::OpenFailed`]. At most one is outstanding for each connection. Claims that meet
    /// these listeners meanwhile wait, others do not.
    Open(ConnectionId, Vec<Arc<Listener>>, Vec<Overlap>),
    /// Change these sockets in place, all or none, and answer with [`Event::Changed`] or
    /// [`Event::ChangeFailed`]. Never outstanding together with [`Action::Open`].
    Change(ConnectionId, Vec<Change>),
    /// The claim of this connection needs another step: answer with [`Event::More`] after other
    /// connections have had their turn.
    More(ConnectionId),
    /// These listeners of the claim are granted, in order; [`Action::More`] follows. No other
    /// client gets them before [`Action::Grant`].
    Granting(ConnectionId, Vec<Lease>),
    /// The claim that this claim waited for is decided: answer with [`Event::Retry`] when the
    /// connection's turn comes.
    Retry(ConnectionId),
    /// The ended connection has more leases: continue with [`Event::Gone`] after other connections
    /// have had their turn.
    Leaving(ConnectionId),
    /// More listeners were kept for the process that has ended: continue with [`Event::Ended`]
    /// after other connections have had their turn.
    Closing(Process),
    /// Hand out these listeners, in order: the whole claim, including [`Action::Granting`].
    Grant(ConnectionId, Vec<Lease>),
    /// Answer that the claim failed because opening or changing failed; the shell knows why.
    NotOpened(ConnectionId),
    /// These listeners were closed, by their names on the wire. Answer with those of all steps. If
    /// a rest is left, continue with [`Event::ReleaseRest`] after other connections have had their
    /// turn.
    Released(ConnectionId, Vec<String>, Vec<ListenerId>),
    /// Answer that nothing was done, and why.
    Refuse(ConnectionId, Refusal),
    /// Close this socket.
    Close(H, Arc<Listener>, Closing),
}

/// Why a socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closing {
    /// A client released it.
    Released,
    /// It was claimed tentatively, and its last lease ended unconfirmed.
    Unconfirmed,
    /// The claim that it was opened for failed, or its client is gone.
    NeverHeld,
    /// Another socket has replaced it.
    Replaced,
}

/// One entry of [`Action::Grant`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The listener; [`Registry::held`](super::Registry::held) shows the rest.
    pub listener: ListenerId,
    /// Whether this claim created it.
    pub created: bool,
    /// Whether this [edition](super::Held::edition) of the listener was not granted before.
    pub changed: bool,
    /// Whether the connection did not have it before.
    pub first: bool,
}

/// An already held listener, to enter without opening it.
#[derive(Debug)]
pub struct Adoption<H> {
    /// As it was asked for.
    pub listener: Arc<Listener>,
    /// The socket and its properties.
    pub opened: Opened<H>,
    /// Since when it has been held.
    pub since: Timestamp,
    /// Whether it is closed with its last lease.
    pub tentative: bool,
    /// The process that it is kept for; see [`Event::Outlived`].
    pub outlived: Option<Process>,
}

/// A listener to open beside another that it overlaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// Its place among the listeners to open.
    pub new: usize,
    /// The other listener.
    pub other: Neighbour,
    /// Whether every element of the claim that names it is tentative.
    pub tentative: bool,
}

/// A listener that a new one overlaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Neighbour {
    /// Another listener to open, by its place among them.
    New(usize),
    /// A held listener.
    Held(ListenerId),
}
