//! The steps of a handover, from a generation that is ready to the proof that no older one accepts. Whether
//! an older one has stopped is in [`crate::generations::watching`], what it leaves behind in [`crate::handover::ghosts`].

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::event;
use bindonce_core::generation::{Event, GenerationId, Handover};
use bindonce_sys::tree;

use crate::generations::generation::Generation;
use crate::generations::listeners::tcp_addresses;
use crate::handover::promise;
use crate::handover::proof::{Older, Proof};
use crate::handover::watchdog::{Duty, Named};
use crate::kind::Kind;
use crate::report::cause::Cause;
use crate::supervisor::Supervisor;

/// How much longer than it should a pause may last before the watchdog ends it.
const GRACE: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Tells the timeline that a generation is ready, once.
    pub(crate) fn ready(&mut self, id: GenerationId, how: &'static str) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        if std::mem::replace(&mut generation.ready, true) {
            return;
        }
        let served = self.generations.labels(self.timeline.serving());
        let Some(generation) = self.generations.get_mut(&id) else { return };
        match promise::compare(served, generation, self.starts.may_be_empty(id)) {
            Ok(unserved) => self.starts.leaves(unserved),
            Err(error) => {
                let (text, hint) = (error.to_string(), error.hint());
                return generation.refuse(Cause { text, hint, ..Cause::default() });
            }
        }
        let held = self.generations.get(&id).is_some_and(|generation| generation.hold.is_some());
        let first = self.timeline.accepting(id).is_empty();
        // One that is not held accepts already, beside an older one: nothing may delay the handover.
        if !((held || first) && self.compare(id, how, first && !held)) {
            self.take_over_now(id, how);
        }
    }

    /// Begins the handover to a generation that is ready.
    pub(crate) fn take_over_now(&mut self, id: GenerationId, how: &'static str) {
        let Some(pid) = self.generations.get(&id).map(Generation::pid) else { return };
        let older = self.timeline.accepting(id);
        let held = self.generations.get(&id).is_some_and(|generation| generation.hold.is_some());
        let handover = match &self.cx.settings.kind {
            Kind::Program(_) => Handover::StopFirst,
            Kind::Haproxy(_) if self.can_pause(&older) => Handover::Pause,
            Kind::Haproxy(_) if held => Handover::StopFirst,
            Kind::Haproxy(_) => Handover::SoftStop,
        };
        // Before the first signal: whatever becomes of us now, somebody will serve.
        let within = self.cx.settings.timing.retire_timeout + GRACE;
        let named = |id: &GenerationId| Named::of(self.generations.get(id)?.pid());
        let generations = older.iter().filter_map(|id| self.generations.get(id));
        let listeners: BTreeSet<_> =
            generations.flat_map(|older| older.listeners.iter().map(|held| held.inode)).collect();
        let older = older.iter().filter_map(named).collect();
        let retire = self.cx.settings.kind.retire();
        let duty = Named::of(pid).map(|newer| Duty::Finish {
            within,
            retire,
            newer,
            older,
            listeners: listeners.into_iter().collect(),
        });
        self.handover.tell(&duty.unwrap_or(Duty::None));
        // Should we die now it goes on: the next supervisor must not take it for one that starts.
        self.save();
        tracing::info!(generation = id.0, pid, "ready: {how}");
        self.record(id, event::Kind::GenerationReady, how);
        self.report.measured.ready = Some(Instant::now());
        self.feed(Event::Ready(id, handover));
    }

    /// Whether these generations can be paused without harm to the shared sockets, so that the
    /// accept queues prove it.
    fn can_pause(&self, older: &[GenerationId]) -> bool {
        let older: Vec<_> = older.iter().filter_map(|id| self.generations.get(id)).collect();
        let pauses = |generation: &&Generation| {
            let version = generation.version.or(self.starts.version()).unwrap_or_default();
            !generation.listeners.is_empty()
                && generation.listeners.iter().all(|held| held.can_pause(version))
                && !generation.has_master()
        };
        older.iter().all(pauses)
    }

    /// Begins to watch the accept queues of the older generations' listeners.
    pub(crate) fn prove(&mut self, newer: GenerationId, older: &[GenerationId]) {
        let taken = tcp_addresses(self.generations.listeners());
        let find = |id: &GenerationId| Some((*id, self.generations.get(id)?));
        let older: Vec<_> = older.iter().filter_map(find).collect();
        let mut listeners = BTreeMap::new();
        let of_older = older.iter().flat_map(|(_, generation)| &generation.listeners);
        // An older one may be gone by now: what the new one has of the same counts too.
        let newer_has = self.generations.get(&newer).into_iter().flat_map(|g| &g.listeners);
        for held in of_older.chain(newer_has.filter(|held| !held.created)) {
            if held.has_queue() {
                listeners.entry(held.inode).or_insert_with(|| Rc::clone(held));
            }
        }
        let older = older.into_iter().map(|(id, generation)| Older {
            id,
            admin: generation.admin.clone(),
            inodes: generation.listeners.iter().map(|held| held.inode).collect(),
        });
        let newer_runs = self.generations.get(&newer).filter(|newer| newer.hold.is_none());
        let proof = Proof {
            stopping: newer_runs.map(|newer| tree::Stopping::of(newer.pid())),
            older: older.collect(),
            listeners: listeners.into_values().collect(),
            probe: self.cx.settings.probe,
            taken,
        };
        let cx = self.cx.clone();
        let task = crate::tasks::spawn(async move {
            let begun = Instant::now();
            let watched = proof.watch(|event| cx.later(event)).await;
            let took = begun.elapsed();
            match watched {
                Ok(shown) => tracing::debug!(
                    generation = newer.0,
                    probes = shown.probes,
                    unseen = shown.unseen,
                    ?took,
                    "nobody accepts any more, as far as the queues show it"
                ),
                Err(error) => tracing::error!(generation = newer.0, %error, "proof not possible"),
            }
        });
        self.handover.watch(newer, task.abort_handle());
    }
}
