//! What happens to the registry, and what the shell must do about it.

use std::sync::Arc;

use crate::listener::{Listener, Options, Wanted};
use crate::name::Name;
use crate::policy::Peer;
use crate::time::Timestamp;

use super::connection::{Label, SavedConnection};
use super::held::Opened;
use super::ids::{ConnectionId, ListenerId};
use super::refusal::Refusal;
use super::wants::Wants;

/// A held listener whose socket is to get other options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which; [`Registry::held`](super::Registry::held) tells what it has now.
    pub listener: ListenerId,
    /// All its options, as they are to be.
    pub options: Options,
}

/// What happens to the registry.
#[derive(Debug)]
pub enum Event<H> {
    /// Somebody connected.
    Connected(ConnectionId, Peer),
    /// A connection asks for listeners.
    Claim(ConnectionId, Wants),
    /// The answer to [`Action::Open`]: every socket, in order.
    Opened(ConnectionId, Vec<Opened<H>>),
    /// The other answer to [`Action::Open`]: one failed, these were opened before it. It also ends a
    /// claim that waits.
    OpenFailed(ConnectionId, Vec<Opened<H>>),
    /// The answer to [`Action::Change`]: the backlog that each has now, in order.
    Changed(ConnectionId, Vec<u32>),
    /// The other answer to [`Action::Change`]: one failed, and all are as they were.
    ChangeFailed(ConnectionId),
    /// The answer to [`Action::More`].
    More(ConnectionId),
    /// The answer to [`Action::Retry`].
    Retry(ConnectionId),
    /// A connection joins as a generation, or its state has changed.
    Join(ConnectionId, Label),
    /// This listener loses its name, which belongs to another user.
    Unname(ListenerId),
    /// A listener that has lost this name has it again, unless it or the name has got another.
    Rename(ListenerId, Name),
    /// A connection asks for listeners to be closed, by name or address.
    Release(ConnectionId, Vec<Wanted>),
    /// The rest of [`Action::Released`].
    ReleaseRest(ConnectionId, Vec<ListenerId>),
    /// The process of this connection's generation lives on without it, with the sockets: what the connection has
    /// tentatively stays open. [`Event::Gone`] follows.
    Outlived(ConnectionId),
    /// That process has ended: what nobody has claimed meanwhile is closed. The answer to
    /// [`Action::Closing`] as well.
    Ended(ConnectionId),
    /// A connection has ended; the answer to [`Action::Leaving`] as well.
    Gone(ConnectionId),
    /// These are held already, from before.
    Adopt(Vec<Adoption<H>>),
    /// These were connected to an earlier image of this process.
    Resume(Vec<SavedConnection>),
    /// The socket of this listener is beyond repair; this one takes its place.
    Replace(ListenerId, Opened<H>),
}

/// What the shell must do, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<H> {
    /// Open these sockets, those that overlap others beside them, and answer with
    /// [`Event::Opened`] or [`Event::OpenFailed`]. At most one of these is outstanding for each
    /// connection. Claims that come meanwhile and meet what is being opened wait, others do not.
    Open(ConnectionId, Vec<Arc<Listener>>, Vec<Overlap>),
    /// Change these sockets in place, all or none, and answer with [`Event::Changed`] or
    /// [`Event::ChangeFailed`]. Outstanding as [`Action::Open`] is, never beside it.
    Change(ConnectionId, Vec<Change>),
    /// The claim of this connection takes another step: answer with [`Event::More`], after others have had their turn.
    More(ConnectionId),
    /// Of the claim of this connection these are granted, in order; [`Action::More`] follows. Nobody else gets them before
    /// [`Action::Grant`].
    Granting(ConnectionId, Vec<Lease>),
    /// The claim of this connection has waited for another, which is decided: answer with
    /// [`Event::Retry`], when the connection's turn comes.
    Retry(ConnectionId),
    /// The connection that has gone has more leases: go on with [`Event::Gone`], after others have
    /// had their turn.
    Leaving(ConnectionId),
    /// The process that outlived this connection had more listeners: go on with [`Event::Ended`], after others have had
    /// their turn.
    Closing(ConnectionId),
    /// Hand these out, in order: all of a claim, those of [`Action::Granting`] too.
    Grant(ConnectionId, Vec<Lease>),
    /// Answer that the claim came to nothing because opening or changing failed; the shell
    /// knows why.
    NotOpened(ConnectionId),
    /// These were closed, by their names on the wire. Answer with those of all steps; if there is a rest, go on with
    /// [`Event::ReleaseRest`] first, after others have had their turn.
    Released(ConnectionId, Vec<String>, Vec<ListenerId>),
    /// Answer that nothing was done, and why.
    Refuse(ConnectionId, Refusal),
    /// Close this socket.
    Close(H, Arc<Listener>, Closing),
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
    /// The listener; [`Registry::held`](super::Registry::held) tells the rest.
    pub listener: ListenerId,
    /// Whether this claim created it.
    pub created: bool,
    /// Whether this [edition](super::Held::edition) of it was not granted before.
    pub changed: bool,
    /// Whether the connection did not have it before.
    pub first: bool,
}

/// A listener that is held already, to be entered without being opened.
#[derive(Debug)]
pub struct Adoption<H> {
    /// As it was asked for.
    pub listener: Arc<Listener>,
    /// The socket and what is known of it.
    pub opened: Opened<H>,
    /// Since when it has been held.
    pub since: Timestamp,
    /// Whether it is closed with its last lease.
    pub tentative: bool,
}

/// A listener that is to be opened beside another that it overlaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// Its place among those that are to be opened.
    pub new: usize,
    /// The other.
    pub other: Neighbour,
    /// Whether all of the claim that is about it is tentative.
    pub tentative: bool,
}

/// A listener that a new one overlaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Neighbour {
    /// One that is to be opened too, by its place among them.
    New(usize),
    /// One that is held.
    Held(ListenerId),
}
