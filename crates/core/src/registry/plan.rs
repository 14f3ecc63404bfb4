//! The state of an undecided claim.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::event::{Change, Lease, Overlap};
use super::held::Opened;
use super::ids::{ConnectionId, ListenerId};
use super::refusal::{HeldBy, Refusal};
use super::wants::Wants;
use crate::listener::{Key, Listener};
use crate::name::Name;

/// An undecided claim: being planned, opened or changed by the shell, granted, or given up.
#[derive(Debug)]
pub(super) struct Pending<H> {
    pub(super) connection: ConnectionId,
    pub(super) phase: Phase,
    /// The elements of the claim.
    pub(super) wants: Wants,
    /// How much of them is planned: whole elements, and listeners of the next one.
    pub(super) planned: (usize, usize),
    /// The new listeners of the claim.
    pub(super) opening: Opening<H>,
    /// The listeners planned so far, in order, and whether each is tentative.
    pub(super) entries: Vec<(ListenerId, bool)>,
    /// Held listeners without a name that get one by this claim.
    pub(super) named: BTreeMap<ListenerId, Name>,
    /// The number of entries whose held listeners are pinned: nobody can release them meanwhile.
    pub(super) pinned: usize,
    /// The leases granted so far, for the first entries.
    pub(super) leases: Vec<Lease>,
    /// Held listeners whose options this claim changes.
    pub(super) changes: Vec<Change>,
    /// Overlaps found while the claim is planned.
    pub(super) crowd: Crowd,
    /// Whether the client has gone meanwhile.
    pub(super) gone: bool,
}

/// The new listeners of a claim, whose sockets the shell opens.
#[derive(Debug)]
pub(super) struct Opening<H> {
    /// The id of the first; the others follow.
    base: u64,
    /// How many ids are reserved for them.
    ids: u64,
    /// The listeners that are not granted yet.
    pub(super) new: VecDeque<New>,
    /// All of them, for the shell to open.
    pub(super) to_open: Vec<Arc<Listener>>,
    /// Those that overlap others, for the shell.
    pub(super) overlaps: Vec<Overlap>,
    /// The sockets of those not granted yet, once they are open.
    pub(super) opened: VecDeque<Opened<H>>,
    /// How many are granted.
    pub(super) granted: u64,
}

/// What the next step of a claim does.
#[derive(Debug)]
pub(super) enum Phase {
    /// Plans more of it.
    Planning,
    /// Nothing: the shell opens or changes sockets.
    Performing,
    /// Grants more of it.
    Granting,
    /// Gives up more of it; the outcome follows.
    Undoing(Outcome),
}

/// What follows when a claim has been given up.
#[derive(Debug)]
pub(super) enum Outcome {
    Refused(Refusal),
    /// It waits until the claim of this connection, or the planning of another, is decided, and is
    /// retried.
    Wait(Option<ConnectionId>),
    /// The shell could not perform it.
    NotDone,
    /// Its client has gone.
    Gone,
}

#[derive(Debug)]
pub(super) struct New {
    pub(super) listener: Arc<Listener>,
    pub(super) key: Key,
}

impl<H> Pending<H> {
    /// A claim of `count` listeners, nothing planned yet.
    pub(super) fn new(connection: ConnectionId, wants: Wants, base: u64, count: usize) -> Self {
        Self {
            connection,
            phase: Phase::Planning,
            wants,
            planned: (0, 0),
            opening: Opening::new(base, count),
            entries: Vec::with_capacity(count),
            named: BTreeMap::new(),
            pinned: 0,
            leases: Vec::new(),
            changes: Vec::new(),
            crowd: Crowd::default(),
            gone: false,
        }
    }

    /// Whether it changes the options of this held listener.
    pub(super) fn changes_one(&self, id: ListenerId) -> bool {
        self.changes.iter().any(|change| change.listener == id)
    }

    /// Whether it gives a name to this held listener.
    pub(super) fn names(&self, id: ListenerId) -> bool {
        self.named.contains_key(&id)
    }
}

impl<H> Opening<H> {
    fn new(base: u64, count: usize) -> Self {
        let many = if count == 1 { 0 } else { count };
        Self {
            base,
            ids: count as u64,
            new: VecDeque::with_capacity(many),
            to_open: Vec::with_capacity(many),
            overlaps: Vec::new(),
            opened: VecDeque::new(),
            granted: 0,
        }
    }

    /// Whether a listener is one of these, granted or not.
    pub(super) fn is_own(&self, id: ListenerId) -> bool {
        id.0.checked_sub(self.base).is_some_and(|place| place < self.ids)
    }

    /// The id of the next listener to plan.
    pub(super) fn next_id(&self) -> ListenerId {
        ListenerId(self.base + self.granted + self.new.len() as u64)
    }

    /// Removes the first to grant it, with its socket, if `id` is its id.
    pub(super) fn grant(&mut self, id: ListenerId) -> Option<(New, Opened<H>)> {
        let is_next = id.0 == self.base + self.granted;
        let next = is_next.then(|| self.new.pop_front().zip(self.opened.pop_front())).flatten()?;
        self.granted += 1;
        Some(next)
    }

    /// Removes the last to give it up, with its socket if it has one.
    pub(super) fn give_up(&mut self) -> Option<(ListenerId, New, Option<Opened<H>>)> {
        let new = self.new.pop_back()?;
        let is_open = self.opened.len() > self.new.len();
        let opened = if is_open { self.opened.pop_back() } else { None };
        Some((self.next_id(), new, opened))
    }

    pub(super) fn planned(&self, id: ListenerId) -> Option<&New> {
        self.new.get(self.place(id)?)
    }

    pub(super) fn planned_mut(&mut self, id: ListenerId) -> Option<&mut New> {
        let place = self.place(id)?;
        self.new.get_mut(place)
    }

    /// How many are not granted yet.
    pub(super) fn len(&self) -> usize {
        self.new.len()
    }

    /// The place of a listener among those not granted yet.
    pub(super) fn place(&self, id: ListenerId) -> Option<usize> {
        let place = usize::try_from(id.0.checked_sub(self.base)?).ok()?;
        (place < self.new.len()).then_some(place)
    }
}

/// Why a claim cannot continue now.
#[derive(Debug)]
pub(super) enum Stop {
    /// It is refused for good.
    Refused(Refusal),
    /// It meets a listener of another connection's undecided claim.
    Wait(Option<ConnectionId>),
}

impl From<Stop> for Outcome {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Refused(refusal) => Self::Refused(refusal),
            Stop::Wait(other) => Self::Wait(other),
        }
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A listener in the way of a claim: a held one, or another part of the same claim.
pub(super) enum Who {
    Held(Box<HeldBy>),
    New(Arc<Listener>),
}

/// Findings that can be decided only when the whole request is planned.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// New listeners that overlap others.
    pub(super) new: Vec<ListenerId>,
    /// Dual-stack wildcards asked for where the IPv6-only wildcard is held.
    pub(super) narrow: Vec<(Arc<Listener>, ListenerId)>,
}

pub(super) fn overlap(asked: Arc<Listener>, who: Who) -> Refusal {
    match who {
        Who::New(other) => Refusal::OverlapInRequest { asked, other },
        Who::Held(held) => Refusal::Overlap { asked, held },
    }
}
