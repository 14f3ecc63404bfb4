//! Finding listeners by key, by name, and by what they would collide with, each
//! in logarithmic time, so that a request for ten thousand stays linear.

use std::collections::{BTreeMap, HashMap};

use super::ListenerId;
use crate::key::{Key, Slot, devices_meet};
use crate::name::Name;

type Device = Option<Box<str>>;

/// Which listener has which key, name and place in the kernel.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: HashMap<Key, ListenerId>,
    names: HashMap<Name, ListenerId>,
    /// Ordered by place, then address, then device: all that a wildcard meets
    /// stand together.
    slots: BTreeMap<(Slot, Device), ListenerId>,
    /// How many of them are wildcards: where there is none, none is looked for.
    wildcards: usize,
}

impl Index {
    /// The listener with this key.
    pub(super) fn key(&self, key: &Key) -> Option<ListenerId> {
        self.keys.get(key).copied()
    }

    /// The listener with this name.
    pub(super) fn name(&self, name: &Name) -> Option<ListenerId> {
        self.names.get(name).copied()
    }

    /// A listener that the kernel would not bind this one beside.
    pub(super) fn overlapping(&self, key: &Key) -> Option<ListenerId> {
        key.slots().find_map(|slot| {
            if slot.is_wildcard() {
                // No address sorts before `None`.
                let start = Slot { place: slot.place.clone(), ip: None };
                return self.meeting(&start, key.interface(), |other| other.place == slot.place);
            }
            let wildcard = (self.wildcards > 0).then(|| slot.wildcard()).flatten();
            self.meeting(&slot, key.interface(), |other| *other == slot).or_else(|| {
                let wildcard = wildcard?;
                self.meeting(&wildcard, key.interface(), |other| *other == wildcard)
            })
        })
    }

    fn meeting(
        &self,
        start: &Slot,
        device: Option<&str>,
        same: impl Fn(&Slot) -> bool,
    ) -> Option<ListenerId> {
        self.slots
            .range((start.clone(), None)..)
            .take_while(|((slot, _), _)| same(slot))
            .find(|((_, other), _)| devices_meet(device, other.as_deref()))
            .map(|(_, id)| *id)
    }

    /// Enters a listener under its key. The caller has looked for one that overlaps.
    pub(super) fn insert(&mut self, id: ListenerId, key: &Key) {
        self.keys.insert(key.clone(), id);
        self.occupy(id, key);
    }

    /// Enters what a listener occupies in the kernel, which for port 0 is known
    /// only once it is bound.
    pub(super) fn occupy(&mut self, id: ListenerId, key: &Key) {
        for slot in key.slots() {
            let wildcard = slot.is_wildcard();
            if self.slots.insert((slot, key.interface().map(Box::from)), id).is_none() && wildcard {
                self.wildcards += 1;
            }
        }
    }

    /// Takes a listener out.
    pub(super) fn remove(&mut self, id: ListenerId, key: &Key) {
        if self.keys.get(key) == Some(&id) {
            self.keys.remove(key);
        }
        self.vacate(id, key);
    }

    /// Undoes [`Index::occupy`].
    pub(super) fn vacate(&mut self, id: ListenerId, key: &Key) {
        for slot in key.slots() {
            let place = (slot, key.interface().map(Box::from));
            if self.slots.get(&place) == Some(&id) {
                self.slots.remove(&place);
                if place.0.is_wildcard() {
                    self.wildcards -= 1;
                }
            }
        }
    }

    /// Gives a listener a name. The caller has looked whether it is free.
    pub(super) fn insert_name(&mut self, id: ListenerId, name: &Name) {
        self.names.insert(name.clone(), id);
    }

    /// Frees a name.
    pub(super) fn remove_name(&mut self, id: ListenerId, name: &Name) {
        if self.names.get(name) == Some(&id) {
            self.names.remove(name);
        }
    }

    /// How many entries there are of each kind: keys, names, slots.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.keys.len(), self.names.len(), self.slots.len())
    }
}
