//! A claim that is being planned, or whose sockets are being opened.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::event::{Change, Lease, Overlap};
use super::held::Opened;
use super::ids::{ConnectionId, ListenerId};
use super::refusal::{HeldBy, Refusal};
use super::wants::Wants;
use crate::listener::{Key, Listener};
use crate::name::Name;

/// A claim that is being planned, whose sockets the shell is opening, or that is being granted or given up.
#[derive(Debug)]
pub(super) struct Pending<H> {
    pub(super) connection: ConnectionId,
    pub(super) phase: Phase,
    /// What is asked for,
    pub(super) wants: Wants,
    /// and how much of that is planned: elements, and listeners of the next one.
    pub(super) planned: (usize, usize),
    /// The new listeners among them.
    pub(super) opening: Opening<H>,
    /// What the claim asks for, in order, and whether tentatively.
    pub(super) entries: Vec<(ListenerId, bool)>,
    /// Listeners that were held unnamed and get a name by this claim.
    pub(super) named: BTreeMap<ListenerId, Name>,
    /// Of so many entries those that are held already are pinned: nobody can release them meanwhile.
    pub(super) pinned: usize,
    /// What is granted, of the first entries.
    pub(super) leases: Vec<Lease>,
    /// Held listeners that get other options by this claim.
    pub(super) changes: Vec<Change>,
    /// What overlaps, while the claim is planned.
    pub(super) crowd: Crowd,
    /// The client has gone meanwhile.
    pub(super) gone: bool,
}

/// The new listeners of a claim, whose sockets the shell opens.
#[derive(Debug)]
pub(super) struct Opening<H> {
    /// The id of the first; those of the others follow.
    base: u64,
    /// So many ids are kept for them.
    ids: u64,
    /// The listeners, without those that are granted.
    pub(super) new: VecDeque<New>,
    /// The same, for the shell.
    pub(super) to_open: Vec<Arc<Listener>>,
    /// Those that are opened beside others which they overlap.
    pub(super) overlaps: Vec<Overlap>,
    /// Their sockets, from when they are open.
    pub(super) opened: VecDeque<Opened<H>>,
    /// So many of them are granted.
    pub(super) granted: u64,
}

/// What becomes of a claim in its next step.
#[derive(Debug)]
pub(super) enum Phase {
    /// More of it is planned.
    Planning,
    /// The shell opens or changes sockets.
    Performing,
    /// More of it is granted.
    Granting,
    /// More of it is given up. Then this.
    Undoing(Outcome),
}

/// What comes of a claim that is given up.
#[derive(Debug)]
pub(super) enum Outcome {
    Refused(Refusal),
    /// It waits until the claim of this connection is decided, and is tried again.
    Wait(Option<ConnectionId>),
    /// The shell could not perform it.
    NotDone,
    /// Nobody waits for it.
    Gone,
}

#[derive(Debug)]
pub(super) struct New {
    pub(super) listener: Arc<Listener>,
    pub(super) key: Key,
}

impl<H> Pending<H> {
    /// A claim of so many listeners, of which nothing is planned.
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

    /// Whether a held listener gets other options by it.
    pub(super) fn changes_one(&self, id: ListenerId) -> bool {
        self.changes.iter().any(|change| change.listener == id)
    }

    /// Whether a held listener that has no name gets one by it.
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

    /// The id of the next that is planned.
    pub(super) fn next_id(&self) -> ListenerId {
        ListenerId(self.base + self.granted + self.new.len() as u64)
    }

    /// Takes the first out to be granted, with its socket, if this is its id.
    pub(super) fn grant(&mut self, id: ListenerId) -> Option<(New, Opened<H>)> {
        let is_next = id.0 == self.base + self.granted;
        let next = is_next.then(|| self.new.pop_front().zip(self.opened.pop_front())).flatten()?;
        self.granted += 1;
        Some(next)
    }

    /// Takes the last out to be given up, with its socket if it has one.
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

    /// How many there are that are not granted.
    pub(super) fn len(&self) -> usize {
        self.new.len()
    }

    /// Where one stands among them.
    pub(super) fn place(&self, id: ListenerId) -> Option<usize> {
        let place = usize::try_from(id.0.checked_sub(self.base)?).ok()?;
        (place < self.new.len()).then_some(place)
    }
}

/// Why a claim is not granted now.
#[derive(Debug)]
pub(super) enum Stop {
    /// It never is.
    Refused(Refusal),
    /// It meets what the claim of another connection is about, which is not decided yet.
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

/// A listener in the way of a claim: one that is held, or another part of the claim.
pub(super) enum Who {
    Held(Box<HeldBy>),
    New(Arc<Listener>),
}

/// What was found on the way, and is decided when the whole request is known.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// New ones that overlap something.
    pub(super) new: Vec<ListenerId>,
    /// Wildcards of both families that were asked for, of which those of IPv6 alone are held.
    pub(super) narrow: Vec<(Arc<Listener>, ListenerId)>,
}

pub(super) fn overlap(asked: Arc<Listener>, who: Who) -> Refusal {
    match who {
        Who::New(other) => Refusal::OverlapInRequest { asked, other },
        Who::Held(held) => Refusal::Overlap { asked, held },
    }
}
