//! Counts the leases of each user: each takes memory, whichever user created the listener.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

#[derive(Debug, Default)]
pub(super) struct Leases(BTreeMap<u32, usize>);

impl Leases {
    pub(super) fn of(&self, uid: u32) -> usize {
        self.0.get(&uid).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, uid: u32, count: usize) {
        if count != 0 {
            *self.0.entry(uid).or_default() += count;
        }
    }

    pub(super) fn remove(&mut self, uid: u32, count: usize) {
        if let Entry::Occupied(mut of_user) = self.0.entry(uid) {
            *of_user.get_mut() -= count.min(*of_user.get());
            if *of_user.get() == 0 {
                of_user.remove();
            }
        }
    }
}
