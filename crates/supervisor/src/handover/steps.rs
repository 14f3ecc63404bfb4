//! The steps of a handover, from a ready generation to the proof that no older one accepts, and the
//! comparison of the new generation's listeners with those claimed.
//! [`crate::generations::watching`] finds out whether an older generation has stopped;
//! [`crate::handover::ghosts`] removes what it leaves behind.

use std::time::Duration;

use bindonce_core::generation::{Event, GenerationId, Handover, Observation, State};
use bindonce_core::{duration, event};
use bindonce_sys::signals::Signal as Number;

use crate::control::requests;
use crate::generations::foreign;
use crate::generations::generation::Generation;
use crate::generations::listeners::put_options_back;
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
        generation.listeners.iter().for_each(|held| held.lift_mss());
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
        // handover. It is compared when it is the only one that accepts.
        if !((held || first) && compare::begin(&self.cx, generation, how, first && !held)) {
            generation.readiness.uncompared = true;
            self.take_over_now(id, how);
        }
    }

    /// Begins the handover to a ready generation, unless it is being ended.
    fn take_over_now(&mut self, id: GenerationId, how: &'static str) {
        if self.timeline.state_of(id) != Some(State::Starting) {
            return;
        }
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
                let _ = bindonce_sys::patience::timeout(SHOWN, shown).await;
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
        if !self.differs(id, seen) {
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
            } else if newer.pidfd.send(Number::SIGCONT).is_err() {
                return Some(None);
            }
            let own = newer.readiness.uncompared.then(|| foreign::own(&self.cx, newer));
            Some(Some((id, listening, own)))
        });
        let Some(asked) = asked else { return self.feed(proof) };
        // None if it has ended: that is about to be seen, and no older one may be told to stop.
        let Some((id, listening, own)) = asked else { return };
        let older = match self.timeline.is_stopping() {
            true => Vec::new(),
            false => self.timeline.accepting(id),
        };
        let opening = Opening::of(older.iter().filter_map(|id| self.generations.get(id)));
        // Meanwhile no older generation needs another pause signal, nor must one be ended.
        self.feed(Event::Unproved(Observation::default()));
        let limit = opening::LIMIT.min(self.cx.settings.timing.retire_timeout / 2);
        let cx = self.cx.clone();
        crate::tasks::spawn(async move {
            let seen = compare::look(&listening, own).await;
            opening.settle(limit).await;
            cx.send(Message::Listens(id, seen, proof));
        });
    }

    /// The comparison of a continued generation's listeners is done, or did not complete in time.
    pub(crate) fn listens(&mut self, id: GenerationId, seen: &Compared, proof: Event) {
        if self.handover.newer() != Some(id) {
            return; // It has died, or the service is being shut down.
        }
        if !self.differs(id, seen) {
            self.feed(proof);
        }
    }

    /// Whether a generation is ended because it has bound, or listens on, something else than was
    /// claimed for it. Otherwise notes what is known of that.
    fn differs(&mut self, id: GenerationId, seen: &Compared) -> bool {
        let text = self.rendering(id).zip(seen.own.as_ref());
        let text = text.and_then(|(rendering, own)| compare::unclaimed(rendering, own));
        let text = text.or_else(|| self.passed_over(id, seen.missing.as_deref()));
        if text.is_some_and(|text| self.reads_otherwise(id, text)) {
            return true;
        }
        if let Some(generation) = self.generations.get_mut(&id) {
            generation.readiness.listens = seen.missing.is_some();
            generation.readiness.uncompared &= seen.own.is_none();
        }
        false
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
                // The older generations accept again before the end of this one is seen.
                put_options_back(id, &generation.listeners);
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
            let _ = generation.deliver(Number::SIGTTIN);
        }
    }
}
