//! What `list` and `status` tell: every listener with those who use it, and
//! every service with its generations.

use std::collections::{BTreeMap, HashMap};

use super::Registry;
use super::connection::{Holder, JoinState};
use super::held::Held;
use super::ids::{ConnectionId, ListenerId};
use crate::name::Name;
use crate::time::Timestamp;

/// A held listener and those who use it.
#[derive(Debug)]
pub struct View<'a, H> {
    /// Its id.
    pub id: ListenerId,
    /// The listener.
    pub held: &'a Held<H>,
    /// Those who use it, in the order in which they connected.
    pub holders: Vec<Holder>,
}

/// A service of which a generation is connected.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: Name,
    /// Its generations, the oldest first.
    pub generations: Vec<Generation>,
}

/// A generation that is connected.
#[derive(Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// Where it is in its life.
    pub phase: JoinState,
    /// Since when it is there.
    pub since: Timestamp,
    /// The names on the wire of the listeners it uses, in the order they were created.
    pub listeners: Vec<String>,
}

impl<H> Registry<H> {
    /// Every listener in the order of creation, with those who use it.
    pub fn list(&self) -> Vec<View<'_, H>> {
        let mut holders: HashMap<ListenerId, Vec<Holder>> = HashMap::new();
        for connection in self.connections.values() {
            for (id, since) in &connection.leases {
                let label = connection.label.as_ref().map(|(label, _)| label.clone());
                let holder = Holder { peer: connection.peer, label, since: *since };
                holders.entry(*id).or_default().push(holder);
            }
        }
        let mut views = Vec::with_capacity(self.held.len());
        for (id, held) in &self.held {
            let holders = holders.remove(id).unwrap_or_default();
            views.push(View { id: *id, held, holders });
        }
        views
    }

    /// Every service of which a generation is connected, by name.
    pub fn services(&self) -> Vec<Service> {
        let mut services: BTreeMap<&Name, Vec<Generation>> = BTreeMap::new();
        for connection in self.connections.values() {
            let Some((label, since)) = &connection.label else {
                continue;
            };
            let held = connection.leases.keys().filter_map(|id| self.held.get(id));
            services.entry(&label.service).or_default().push(Generation {
                generation: label.generation,
                pid: label.pid,
                phase: label.phase,
                since: *since,
                listeners: held.map(|held| held.listener.label()).collect(),
            });
        }
        let service = |(name, mut generations): (&Name, Vec<Generation>)| {
            generations.sort_by_key(|generation| generation.generation);
            Service { name: name.clone(), generations }
        };
        services.into_iter().map(service).collect()
    }

    /// What a connection uses, in the order of their ids.
    pub fn leased(&self, id: ConnectionId) -> impl Iterator<Item = &Held<H>> {
        let leases = self.connections.get(&id).into_iter().flat_map(|found| found.leases.keys());
        leases.filter_map(|id| self.held.get(id).map(Box::as_ref))
    }

    /// Those who use one listener.
    pub(super) fn holders(&self, id: ListenerId) -> impl Iterator<Item = (ConnectionId, Holder)> {
        self.connections.iter().filter_map(move |(connection_id, connection)| {
            let since = *connection.leases.get(&id)?;
            let label = connection.label.as_ref().map(|(label, _)| label.clone());
            Some((*connection_id, Holder { peer: connection.peer, label, since }))
        })
    }
}
