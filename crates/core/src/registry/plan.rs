//! A claim that is being planned, or whose sockets are being opened.

use super::event::{Change, Overlap};
use super::held::Opened;
use super::ids::{ConnectionId, ListenerId};
use super::refusal::{HeldBy, Refusal};
use crate::listener::{Key, Listener};
use crate::name::Name;

/// A claim that is being planned, or whose sockets the shell is opening.
#[derive(Debug)]
pub(super) struct Pending<H> {
    pub(super) connection: ConnectionId,
    /// The id of the first new listener; those of the others follow.
    pub(super) base: u64,
    pub(super) new: Vec<New>,
    /// The sockets of the new listeners, from when they are open.
    pub(super) opened: Vec<Opened<H>>,
    /// What the claim asks for, in order, and whether tentatively.
    pub(super) entries: Vec<(ListenerId, bool)>,
    /// Listeners that were held unnamed and get a name by this claim.
    pub(super) named: Vec<(ListenerId, Name)>,
    /// Held listeners that the claim will get; nobody can release them meanwhile.
    pub(super) pinned: Vec<ListenerId>,
    /// Held listeners that get other options by this claim.
    pub(super) changes: Vec<Change>,
    /// What overlaps, while the claim is planned.
    pub(super) crowd: Crowd,
    /// New listeners that are opened beside others which they overlap.
    pub(super) overlaps: Vec<Overlap>,
    /// The client has gone meanwhile.
    pub(super) gone: bool,
}

#[derive(Debug)]
pub(super) struct New {
    pub(super) listener: Listener,
    pub(super) key: Key,
}

impl<H> Pending<H> {
    pub(super) fn planned(&self, id: ListenerId) -> Option<&New> {
        self.new.get(self.place(id)?)
    }

    pub(super) fn planned_mut(&mut self, id: ListenerId) -> Option<&mut New> {
        let place = self.place(id)?;
        self.new.get_mut(place)
    }

    /// How many new listeners there are.
    pub(super) fn len(&self) -> usize {
        self.new.len()
    }

    /// Whether a held listener gets other options by it.
    pub(super) fn changes_one(&self, id: ListenerId) -> bool {
        self.changes.iter().any(|change| change.listener == id)
    }

    /// Whether a held listener that has no name gets one by it.
    pub(super) fn names(&self, id: ListenerId) -> bool {
        self.named.iter().any(|(named, _)| *named == id)
    }

    /// Where a new listener stands among them.
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
    /// It meets what another claim is about, which is not decided yet.
    Wait,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A listener in the way of a claim: one that is held, or another part of the claim.
pub(super) enum Who {
    Held(Box<HeldBy>),
    New(Box<Listener>),
}

/// What was found on the way, and is decided when the whole request is known.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// New ones that overlap something.
    pub(super) new: Vec<ListenerId>,
    /// Wildcards of both families that were asked for, of which those of IPv6 alone are held.
    pub(super) narrow: Vec<(Listener, ListenerId)>,
}

pub(super) fn overlap(asked: Listener, who: Who) -> Refusal {
    let asked = Box::new(asked);
    match who {
        Who::New(other) => Refusal::OverlapInRequest { asked, other },
        Who::Held(held) => Refusal::Overlap { asked, held },
    }
}
