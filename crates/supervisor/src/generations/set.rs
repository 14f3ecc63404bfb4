//! The set of all generations that have not ended.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use bindonce_core::generation::{GenerationId, State, Timeline};
use bindonce_sys::{holders, process};

use super::generation::{Generation, GivenBack};
use super::listeners::{HeldListener, Known};
use crate::kind::Kind;

#[derive(Default)]
pub(crate) struct Generations(BTreeMap<GenerationId, Generation>);

impl Generations {
    pub(crate) fn insert(&mut self, generation: Generation) {
        self.0.insert(generation.id, generation);
    }

    pub(crate) fn remove(&mut self, id: &GenerationId) -> Option<Generation> {
        self.0.remove(id)
    }

    pub(crate) fn get(&self, id: &GenerationId) -> Option<&Generation> {
        self.0.get(id)
    }

    pub(crate) fn get_mut(&mut self, id: &GenerationId) -> Option<&mut Generation> {
        self.0.get_mut(id)
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Generation> {
        self.0.values()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Generation> {
        self.0.values_mut()
    }

    pub(crate) fn pid(&self, id: GenerationId) -> Option<i32> {
        self.0.get(&id).map(Generation::pid)
    }

    /// The generation that a process belongs to: its first process, or a child of that.
    pub(crate) fn of_process(&self, pid: i32) -> Option<&Generation> {
        let parent = process::parent(pid);
        self.iter().find(|generation| [Some(pid), parent].contains(&Some(generation.pid())))
    }

    /// The listeners of all generations. One that several have appears several times.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = &Rc<HeldListener>> {
        self.iter().flat_map(|generation| &generation.listeners)
    }

    /// The names of the listeners that some generation has.
    pub(crate) fn used(&self) -> BTreeSet<String> {
        self.listeners().map(|held| held.label.clone()).collect()
    }

    /// The names of the listeners of this generation, and of those that a haproxy master keeps
    /// until it is gone.
    pub(crate) fn staying(&self, id: Option<GenerationId>) -> BTreeSet<String> {
        let older = self.iter().filter(|generation| generation.has_master());
        let kept = older.flat_map(|older| &older.listeners).filter(|held| !held.can_be_shut_down());
        self.labels(id).into_iter().chain(kept.map(|held| held.label.clone())).collect()
    }

    /// The names of the listeners of one generation.
    pub(crate) fn labels(&self, id: Option<GenerationId>) -> Vec<String> {
        let generation = id.and_then(|id| self.get(&id));
        let listeners = generation.into_iter().flat_map(|generation| &generation.listeners);
        listeners.map(|held| held.label.clone()).collect()
    }

    /// The descriptors of all listeners, by inode.
    pub(crate) fn descriptors(&self) -> Known {
        self.listeners().map(|held| (held.inode, Arc::clone(&held.fd))).collect()
    }

    /// Ends the leases on listeners that a draining generation has closed and no other generation
    /// needs. Gives what each generation has given back.
    pub(crate) fn give_back(&mut self, timeline: &Timeline) -> Vec<GivenBack> {
        let has_closed = |generation: &Generation| {
            generation.lease.closed && timeline.state_of(generation.id) == Some(State::Draining)
        };
        let needed = self.iter().filter(|generation| !has_closed(generation));
        let needed: BTreeSet<u64> = needed.flat_map(Generation::inodes).collect();
        let closed = self.iter_mut().filter(|generation| has_closed(generation));
        closed.filter_map(|generation| generation.keep_only(&needed)).collect()
    }

    /// Processes that hold these listeners and are neither a generation, nor this process, nor the
    /// broker; each with its command line.
    pub(crate) fn strangers<'a>(
        &self,
        kind: &Kind,
        broker: Option<i32>,
        listeners: impl Iterator<Item = &'a Rc<HeldListener>>,
    ) -> Vec<(i32, String)> {
        let inodes: BTreeSet<_> = listeners.map(|held| held.inode).collect();
        let inodes: Vec<_> = inodes.into_iter().collect();
        let mut ours: BTreeSet<_> = self.iter().flat_map(|g| kind.processes(g.pid())).collect();
        ours.insert(std::process::id().cast_signed());
        let holders: BTreeSet<_> = holders::of(&inodes).into_iter().map(|h| h.pid).collect();
        let is_ours = |pid: i32| {
            ours.contains(&pid) || process::parent(pid).is_some_and(|parent| ours.contains(&parent))
        };
        let strangers = holders.into_iter().filter(|pid| !is_ours(*pid) && Some(*pid) != broker);
        strangers.map(|pid| (pid, process::shown(pid))).collect()
    }
}
