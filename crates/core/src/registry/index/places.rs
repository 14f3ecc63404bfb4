//! What listeners occupy in the kernel, and who would be in whose way there.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use super::ListenerId;
use crate::key::{At, Place, Slot};

/// Which listener occupies which slot.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// The plain ones: nearly all.
    plain: HashMap<At, ListenerId>,
    /// How many of those are at a place, where a wildcard would meet each of them.
    at_place: HashMap<Place, usize>,
    /// Those of a device or of another network namespace, and UNIX names: all that a wildcard
    /// meets stand together.
    scoped: BTreeMap<Slot, ListenerId>,
    /// How many slots are wildcards: where there is none, none is looked for.
    wildcards: usize,
}

impl Places {
    /// A listener that the kernel would not bind this slot's beside.
    pub(super) fn meeting(&self, slot: &Slot) -> Option<ListenerId> {
        self.meeting_plain(slot).or_else(|| self.meeting_scoped(slot))
    }

    fn meeting_plain(&self, slot: &Slot) -> Option<ListenerId> {
        if !slot.is_ip() || !slot.meets_plain() {
            return None;
        }
        if !slot.is_wildcard() {
            let covered = || (self.wildcards > 0).then(|| self.plain.get(&slot.wildcard()))?;
            return self.plain.get(&slot.at).or_else(covered).copied();
        }
        self.at_place.get(&slot.at.place)?;
        // There is one, so the request ends here, and may take the time to name the first.
        let there = self.plain.iter().filter(|(at, _)| at.place == slot.at.place);
        there.min_by_key(|(at, _)| **at).map(|(_, id)| *id)
    }

    fn meeting_scoped(&self, slot: &Slot) -> Option<ListenerId> {
        if self.scoped.is_empty() {
            return None;
        }
        if !slot.is_ip() {
            return self.scoped.get(slot).copied();
        }
        let from = |start: At| self.scoped.range(Slot::from(start)..);
        let meeting = |(other, id): (&Slot, &ListenerId)| slot.meets(other).then_some(*id);
        if slot.is_wildcard() {
            let beside = |(other, _): &(&Slot, _)| other.at.place == slot.at.place;
            return from(slot.at).take_while(beside).find_map(meeting);
        }
        let at = |start: At| {
            from(start).take_while(move |(other, _)| other.at == start).find_map(meeting)
        };
        at(slot.at).or_else(|| if self.wildcards > 0 { at(slot.wildcard()) } else { None })
    }

    /// Enters what a listener occupies. The caller has looked whether it meets another.
    pub(super) fn insert(&mut self, slot: Slot, id: ListenerId) {
        let wildcard = slot.is_wildcard();
        let before = if slot.is_plain() {
            let before = self.plain.insert(slot.at, id);
            if before.is_none() {
                *self.at_place.entry(slot.at.place).or_default() += 1;
            }
            before
        } else {
            self.scoped.insert(slot, id)
        };
        if before.is_none() && wildcard {
            self.wildcards += 1;
        }
    }

    /// Takes out what a listener occupies, if it is this one.
    pub(super) fn remove(&mut self, slot: &Slot, id: ListenerId) {
        let occupied = if slot.is_plain() {
            let occupied = self.plain.get(&slot.at) == Some(&id);
            if occupied {
                self.plain.remove(&slot.at);
                self.leave(slot.at.place);
            }
            occupied
        } else {
            let occupied = self.scoped.get(slot) == Some(&id);
            if occupied {
                self.scoped.remove(slot);
            }
            occupied
        };
        if occupied && slot.is_wildcard() {
            self.wildcards -= 1;
        }
    }

    fn leave(&mut self, place: Place) {
        if let Entry::Occupied(mut count) = self.at_place.entry(place) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// How many slots are occupied.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.at_place.values().sum::<usize>(), self.plain.len());
        self.plain.len() + self.scoped.len()
    }
}
