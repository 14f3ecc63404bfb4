//! Data for `list` and `status`: every listener with its holders, and the connected generations.

use std::ops::Bound;
use std::sync::Arc;

use super::Registry;
use super::connection::{Holder, State};
use super::held::Held;
use super::ids::{ConnectionId, ListenerId};
use super::wants::Want;
use crate::listener::{Listener, Wanted};
use crate::name::Name;
use crate::time::Timestamp;

/// A held listener and its holders.
#[derive(Debug)]
pub struct View<'a, H> {
    /// Its id.
    pub id: ListenerId,
    /// The listener.
    pub held: &'a Held<H>,
    /// Its holders, in the order in which they connected.
    pub holders: Vec<Holder>,
}

impl<H> View<'_, H> {
    /// Whether its socket was replaced, and all who use it have the old one.
    pub fn has_only_old_users(&self) -> bool {
        let is_old = |holder: &Holder| holder.since < self.held.since;
        !self.holders.is_empty() && self.holders.iter().all(is_old)
    }
}

/// A generation that is connected.
#[derive(Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// Its state.
    pub state: State,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// The names on the wire of those of its listeners that may be seen, in the order of creation.
    pub listeners: Vec<String>,
}

impl<H> Registry<H> {
    /// Every listener in the order of creation, with its holders.
    pub fn list(&self) -> Vec<View<'_, H>> {
        self.list_after(None, usize::MAX)
    }

    /// Up to `most` of the listeners created after this one, for a listing in many steps.
    pub fn list_after(&self, after: Option<ListenerId>, most: usize) -> Vec<View<'_, H>> {
        let view = |(id, held)| View { id, held, holders: Vec::new() };
        let mut views: Vec<View<'_, H>> = self.after(after).take(most).map(view).collect();
        let (Some(first), Some(last)) = (views.first(), views.last()) else { return views };
        let range = first.id..=last.id;
        for connection in self.connections.values() {
            let mut rest = views.as_mut_slice();
            for (id, since) in connection.leases.range(range.clone()) {
                // Both are in order.
                let place = rest.partition_point(|view| view.id < *id);
                rest = &mut rest[place..];
                let Some(view) = rest.first_mut().filter(|view| view.id == *id) else { continue };
                let label = connection.label.as_ref().map(|(label, _)| label.clone());
                view.holders.push(Holder { peer: connection.peer, label, since: *since });
            }
        }
        views
    }

    /// The listeners created after this one, in order.
    pub fn after(&self, after: Option<ListenerId>) -> impl Iterator<Item = (ListenerId, &Held<H>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.held.range((from, Bound::Unbounded)).map(|(id, held)| (*id, held.as_ref()))
    }

    /// The connections that have joined as a generation.
    pub fn joined(&self) -> Vec<ConnectionId> {
        let joined = self.connections.iter().filter(|(_, connection)| connection.label.is_some());
        joined.map(|(id, _)| *id).collect()
    }

    /// The generation that a connection has joined as, and the name of its service. `sees` tells
    /// which listeners the reader may see.
    pub fn generation(
        &self,
        id: ConnectionId,
        sees: impl Fn(&Arc<Listener>) -> bool,
    ) -> Option<(&Name, Generation)> {
        let (label, since) = self.connections.get(&id)?.label.as_ref()?;
        let seen = self.leased(id).filter(|held| sees(&held.listener));
        let generation = Generation {
            generation: label.generation,
            pid: label.pid,
            state: label.state,
            since: *since,
            listeners: seen.map(|held| held.listener.label()).collect(),
        };
        Some((&label.service, generation))
    }

    /// The listeners that a connection uses, in the order of their ids.
    pub fn leased(&self, id: ConnectionId) -> impl Iterator<Item = &Held<H>> {
        let leases = self.connections.get(&id).into_iter().flat_map(|found| found.leases.keys());
        leases.filter_map(|id| self.held.get(id).map(Box::as_ref))
    }

    /// The holders of a listener.
    pub(super) fn holders(&self, id: ListenerId) -> impl Iterator<Item = (ConnectionId, Holder)> {
        self.connections.iter().filter_map(move |(connection_id, connection)| {
            let since = *connection.leases.get(&id)?;
            let label = connection.label.as_ref().map(|(label, _)| label.clone());
            Some((*connection_id, Holder { peer: connection.peer, label, since }))
        })
    }

    /// How many leases the connections of a user have, plus those that undecided claims will add.
    pub fn leases_of(&self, uid: u32) -> usize {
        let of_user = |id| self.connections.get(id).is_some_and(|found| found.peer.uid == uid);
        let pending = self.pending.iter().filter(|(id, _)| of_user(id));
        let pending: usize = pending.map(|(_, plan)| plan.entries.len()).sum();
        self.leases.of(uid) + pending
    }

    /// Of `most` listeners of `want` from `from` on, how many a connection has no lease on.
    pub fn not_leased(&self, id: ConnectionId, want: &Want, from: usize, most: usize) -> usize {
        let leased = self.connections.get(&id).map(|connection| &connection.leases);
        let is_leased = |id| leased.is_some_and(|leases| leases.contains_key(&id));
        match &want.wanted {
            Wanted::Named(name) => usize::from(!self.index.name(name).is_some_and(is_leased)),
            Wanted::Listen(spec) => {
                let is_new = |one: &Listener| !self.index.key(&one.key()).is_some_and(is_leased);
                spec.expand_from(from).take(most).filter(|one| is_new(one)).count()
            }
        }
    }
}
