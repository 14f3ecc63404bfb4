//! How many leases each user has: every one takes memory, whoever created the listener.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::Registry;
use super::event::Want;
use super::ids::ConnectionId;
use crate::listener::{Listener, Wanted};

/// How many leases the connections of each user have together.
#[derive(Debug, Default)]
pub(super) struct Leases(BTreeMap<u32, usize>);

impl Leases {
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

impl<H> Registry<H> {
    /// How many leases the connections of a user have, and will have when the claims that are in hand
    /// are granted.
    pub fn leases_of(&self, uid: u32) -> usize {
        let of_user = |id| self.connections.get(id).is_some_and(|found| found.peer.uid == uid);
        let pending = self.pending.iter().filter(|(id, _)| of_user(id));
        let pending: usize = pending.map(|(_, plan)| plan.entries.len()).sum();
        self.leases.0.get(&uid).copied().unwrap_or_default() + pending
    }

    /// How many of these a connection has no lease on.
    pub fn not_leased(&self, id: ConnectionId, wants: &[Want]) -> usize {
        let leased = self.connections.get(&id).map(|connection| &connection.leases);
        let is_leased = |id| leased.is_some_and(|leases| leases.contains_key(&id));
        let new = |want: &Want| match &want.wanted {
            Wanted::Named(name) => usize::from(!self.index.name(name).is_some_and(is_leased)),
            Wanted::Listen(spec) => {
                let is_new = |one: &Listener| !self.index.key(&one.key()).is_some_and(is_leased);
                spec.expand().filter(is_new).count()
            }
        };
        wants.iter().map(new).fold(0, usize::saturating_add)
    }
}
