//! The steps of a handover, from a ready generation to the proof that no older one accepts, and the
//! comparison of the new generation's listeners with those claimed.
//! [`crate::generations::watching`] finds out whether an older generation has stopped;
//! [`crate::handover::ghosts`] removes what it leaves behind.

use std::time::Duration;

use bindonce_core::generation::{Event, GenerationId, Handover, Observation};
use bindonce_core::{duration, event};
use bindonce_sys::signals::Signal as Number;

use crate::control::requests;
use crate::generations::generation::Generation;
use crate::handover::compare::{self, Listeners};
use crate::handover::listening::Listening;
use crate::handover::opening::{self, Opening};
use crate::handover::promise;
use crate::kind::Kind;
use crate::message::{Compared, Message};
use crate::report::cause::Cause;
use crate::supervisor::Supervisor;

/// How long the broker may take to show a hidden listener. The older generation serves meanwhile.
const SHOWN: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Tells the timeline, once, that a generation is ready.
    pub(crate) fn ready(&mut self, id: GenerationId, how: &'static str) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        if std::mem::replace(&mut generation.readiness.ready, true) {
            return;
        }
        generation.own.over.set(true);
        let serving = self.timeline.serving().and_then(|id| self.generations.get(&id));
        let served = serving.map(|serving| serving.listeners.clone()).unwrap_or_default();
        let Some(generation) = self.generations.get_mut(&id) else { return };
        match promise::compare(&served, generation, self.starts.may_be_empty(id)) {
            Ok(unserved) => self.starts.unserved = unserved,
            Err(error) => {
                generation.refuse(Cause::new(error.to_string(), error.hint()));
                return self.feed(Event::Refused(id));
            }
        }
        let held = generation.is_held();
        let first = self.timeline.accepting(id).is_empty();
        // A generation that is not held already accepts beside an older one: nothing may delay the
        // handover.
        if !((held || first) && compare::begin(&self.cx, generation, how, first && !held)) {
            self.take_over_now(id, how);
        }
    }

    /// Begins the handover to a ready generation.
    fn take_over_now(&mut self, id: GenerationId, how: &'static str) {
        let Some(newer) = self.generations.get_mut(&id) else { return };
        let took = newer.start.ready();
        let Some(newer) = self.generations.get(&id) else { return };
        let (pid, kind, version) = (newer.pid(), &self.cx.settings.kind, self.starts.version);
        let older = self.timeline.accepting(id);
        let older: Vec<_> = older.iter().filter_map(|id| self.generations.get(id)).collect();
        let handover = match kind {
            Kind::Program(_) => Handover::StopFirst,
            Kind::Haproxy(_) if older.iter().all(|one| one.can_pause(version)) => Handover::Pause,
            Kind::Haproxy(_) if newer.is_held() => Handover::StopFirst,
            Kind::Haproxy(_) => Handover::SoftStop,
        };
        let lines = older.iter().flat_map(|one| &one.own.lines).cloned();
        self.report.stopped_first = lines.collect();
        // From here on the new generation takes over even if the supervisor dies.
        let shown = newer.show_new();
        // Sent before the first signal: if the supervisor dies now, one of the generations still
        // serves.
        self.handover.finish_without_us(&self.cx, newer, &older);
        let waits = newer.is_held();
        let drained = self.handover.hide_leaving(newer, &older, &self.leases.ours);
        // Saved before the handover continues: the next supervisor must not take this generation
        // for one that is starting.
        self.save();
        let after = took.map(|took| format!(", {} after its start began", duration::format(took)));
        let text = format!("{how}{}", after.unwrap_or_default());
        tracing::info!(generation = id.0, pid, "ready: {text}");
        self.record(id, event::Kind::GenerationReady, text);
        self.report.ready(took);
        if !waits || shown.is_none() && drained.is_none() {
            return self.feed(Event::Ready(id, handover));
        }
        let cx = self.cx.clone();
        crate::tasks::spawn(async move {
            if let Some(shown) = shown {
                // If this fails, the broker shows the listeners when the new generation serves.
                let _ = tokio::time::timeout(SHOWN, shown).await;
            }
            if let Some(drained) = drained {
                drained.await;
            }
            cx.later(Event::Ready(id, handover));
        });
    }

    /// Continues the start after the comparison, or ends it.
    pub(crate) fn compared(&mut self, id: GenerationId, how: &'static str, seen: &Compared) {
        let refused = self.generations.get(&id).is_none_or(|g| g.readiness.refused.is_some());
        if refused {
            return;
        }
        let missing = seen.missing.as_deref();
        let rendering = self.rendering(id);
        let text = rendering.and_then(|rendering| compare::unclaimed(rendering, &seen.own));
        let text = text.or_else(|| self.passed_over(id, missing));
        if !text.is_some_and(|text| self.reads_otherwise(id, text)) {
            self.note_listening(id, missing);
            self.take_over_now(id, how);
        }
    }

    /// No process accepts, as far as `proof` shows. The new generation continues. Before the older
    /// ones are told to stop for good, two things must hold: the new generation listens on all its
    /// listeners, and the QUIC connections that the older ones began are open.
    pub(crate) fn proved(&mut self, proof: Event) {
        // If one of the older generations may still accept, the new one cannot continue yet.
        let may_go_on = match proof {
            Event::ProvedInPart { all_paused } => all_paused || self.timeline.is_stopping(),
            _ => true,
        };
        let newer = self.handover.newer().filter(|_| may_go_on);
        let asked = newer.and_then(|id| {
            let newer = self.generations.get_mut(&id)?;
            let listening = Listening::of(&self.cx.settings.kind, newer)?;
            if newer.is_held() {
                newer.release();
            } else {
                newer.pidfd.send(Number::SIGCONT).ok()?;
            }
            Some((id, listening))
        });
        let Some((id, listening)) = asked else { return self.feed(proof) };
        let older = match self.timeline.is_stopping() {
            true => Vec::new(),
            false => self.timeline.accepting(id),
        };
        let opening = Opening::of(older.iter().filter_map(|id| self.generations.get(id)));
        if !opening.is_none() {
            // No older generation needs another pause signal.
            self.feed(Event::Unproved(Observation::default()));
        }
        let limit = opening::LIMIT.min(self.cx.settings.timing.retire_timeout / 2);
        let cx = self.cx.clone();
        crate::tasks::spawn(async move {
            let missing = listening.missing(compare::ANSWER).await;
            opening.settle(limit).await;
            cx.send(Message::Listens(id, missing, proof));
        });
    }

    /// The comparison of a continued generation's listeners is done, or did not complete in time.
    pub(crate) fn listens(&mut self, id: GenerationId, missing: Option<&[usize]>, proof: Event) {
        if self.handover.newer() != Some(id) {
            return; // It has died, or the service is being shut down.
        }
        let text = self.passed_over(id, missing);
        if !text.is_some_and(|text| self.reads_otherwise(id, text)) {
            self.note_listening(id, missing);
            self.feed(proof);
        }
    }

    fn note_listening(&mut self, id: GenerationId, missing: Option<&[usize]>) {
        if let Some(generation) = self.generations.get_mut(&id) {
            generation.readiness.listens = missing.is_some();
        }
    }

    /// Logs the difference and ends the generation: true. A restart on a configuration that serves,
    /// or served, is not ended, since no other generation would serve.
    fn reads_otherwise(&mut self, id: GenerationId, text: String) -> bool {
        let fresh = self.timeline.configuration_of(id) == Some(id);
        tracing::error!(generation = id.0, pid = self.generations.pid(id), "{text}");
        self.record(id, event::Kind::GenerationFailed, text.as_str());
        if fresh {
            let hint = Some(requests::READS_OTHERWISE.to_owned());
            if let Some(generation) = self.generations.get_mut(&id) {
                generation.refuse(Cause::new(text, hint));
            }
            // The older generations may finish their stop until the end of the new one is seen.
            self.feed(Event::Refused(id));
        }
        fresh
    }

    /// Listeners that haproxy was given but does not listen on.
    fn passed_over(&self, id: GenerationId, missing: Option<&[usize]>) -> Option<String> {
        let listeners = self.listeners(self.generations.get(&id)?);
        Some(format!("haproxy does not listen on {}", listeners.some(missing?)?))
    }

    /// The listeners of a generation, named as users know them.
    pub(crate) fn listeners(&self, generation: &Generation) -> Listeners {
        let of = self.timeline.configuration_of(generation.id);
        let prepared = of.and_then(|of| self.starts.prepared(of).cloned());
        Listeners { prepared, listeners: generation.listeners.clone() }
    }

    /// Signals a generation again that should accept but does not confirm it.
    pub(crate) fn still_paused(&mut self, id: GenerationId) {
        if self.timeline.serving() == Some(id)
            && !self.timeline.is_paused(id)
            && let Some(generation) = self.generations.get(&id)
        {
            // The process may have ended; its exit message is on its way.
            let _ = generation.pidfd.send(Number::SIGTTIN);
        }
    }
}
