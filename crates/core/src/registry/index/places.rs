//! What listeners occupy in the kernel, and who would be in whose way there.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use super::super::ids::ListenerId;
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
        self.meeting_plain(slot).or_else(|| self.meeting_scoped(slot).next())
    }

    /// Whether there is one that the kernel would not bind this slot's beside.
    pub(super) fn is_met(&self, slot: &Slot) -> bool {
        if slot.is_wildcard() && slot.meets_plain() {
            let met = slot.places().any(|place| self.at_place.contains_key(&place));
            return met || self.meeting_scoped(slot).next().is_some();
        }
        self.meeting(slot).is_some()
    }

    /// The one that has exactly this slot.
    pub(super) fn at(&self, slot: &Slot) -> Option<ListenerId> {
        let found = if slot.is_plain() { self.plain.get(&slot.at) } else { self.scoped.get(slot) };
        found.copied()
    }

    /// All that meet one of these slots, each as the number given with the slot and its own.
    pub(super) fn all_meeting<T: Copy>(
        &self,
        slots: impl IntoIterator<Item = (T, Slot)>,
        mut found: impl FnMut(T, ListenerId),
    ) {
        let mut wildcards: HashMap<Place, Vec<T>> = HashMap::new();
        for (whose, slot) in slots {
            self.meeting_scoped(&slot).for_each(|id| found(whose, id));
            if !slot.is_ip() || !slot.meets_plain() {
                continue;
            }
            if slot.is_wildcard() {
                slot.places().for_each(|place| wildcards.entry(place).or_default().push(whose));
            } else {
                self.plain_over(&slot).for_each(|id| found(whose, id));
            }
        }
        if wildcards.keys().any(|place| self.at_place.contains_key(place)) {
            for (at, id) in &self.plain {
                let there = wildcards.get(&at.place).into_iter().flatten();
                there.for_each(|whose| found(*whose, *id));
            }
        }
    }

    /// Those at the address of one that is no wildcard, and the wildcards over it.
    fn plain_over(&self, slot: &Slot) -> impl Iterator<Item = ListenerId> {
        let over = (self.wildcards > 0).then(|| slot.wildcards()).into_iter().flatten();
        std::iter::once(slot.at).chain(over).filter_map(|at| self.plain.get(&at).copied())
    }

    fn meeting_plain(&self, slot: &Slot) -> Option<ListenerId> {
        if !slot.is_ip() || !slot.meets_plain() {
            return None;
        }
        if !slot.is_wildcard() {
            return self.plain_over(slot).next();
        }
        let places = || slot.places().filter(|place| self.at_place.contains_key(place));
        places().next()?;
        // There is one, and it takes time to name the first.
        let there = self.plain.iter().filter(|(at, _)| places().any(|place| place == at.place));
        there.min_by_key(|(at, _)| **at).map(|(_, id)| *id)
    }

    fn meeting_scoped(&self, slot: &Slot) -> impl Iterator<Item = ListenerId> {
        let some = !self.scoped.is_empty();
        let name = (some && !slot.is_ip()).then(|| self.scoped.get(slot).copied()).flatten();
        let places = (some && slot.is_ip()).then(|| slot.places()).into_iter().flatten();
        let beside = places.flat_map(move |place| self.scoped_at(slot, place));
        name.into_iter().chain(beside)
    }

    /// Those of one place that meet a slot.
    fn scoped_at(&self, slot: &Slot, place: Place) -> impl Iterator<Item = ListenerId> {
        let from = |start: At| self.scoped.range(Slot::from(start)..);
        let first = At::first(place);
        let all =
            slot.is_wildcard().then(|| from(first).take_while(move |(o, _)| o.at.place == place));
        let exact = !slot.is_wildcard() && slot.at.place == place;
        let at = exact.then(|| from(slot.at).take_while(move |(o, _)| o.at == slot.at));
        let over = (!slot.is_wildcard() && self.wildcards > 0)
            .then(|| from(first).take_while(move |(o, _)| o.at == first));
        let near = all.into_iter().flatten();
        let near = near.chain(at.into_iter().flatten()).chain(over.into_iter().flatten());
        near.filter(|(other, _)| slot.meets(other)).map(|(_, id)| *id)
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
