//! The handover: makes the new generation the one that accepts, with proof that no other does.

use std::collections::{BTreeMap, BTreeSet};

use super::life::{Life, Stage};
use super::operation::{Operation, Pausing, Stopping};
use super::timeline::Timeline;
use super::{
    Action, Failure, GenerationId, KILLED_TO_GONE, Moment, OBSERVED_AGAIN, Observation, Outcome,
    PAUSE_AGAIN, PAUSED_TO_CLOSED, QUEUES_STILL, Reason, SILENCE_CONTINUE, SILENCE_KILL, Signal,
    TERM_TO_KILL,
};

impl Timeline {
    /// Stops the new generation and pauses the older ones.
    pub(super) fn pause(
        &mut self,
        now: Moment,
        newer: GenerationId,
        older: Vec<GenerationId>,
        out: &mut Vec<Action>,
    ) {
        if let Some(life) = self.lives.get_mut(&newer) {
            life.stage = Stage::Waiting;
        }
        let reason = Reason::Handover;
        out.push(Action::Signal { id: newer, signal: Signal::Stop, reason });
        for &id in &older {
            out.push(Action::Signal { id, signal: Signal::Pause, reason });
        }
        out.push(Action::Prove { newer, older: older.clone() });
        self.operation = Operation::Pausing(Pausing {
            newer,
            older: older.into_iter().collect(),
            again: now + PAUSE_AGAIN,
            until: now + self.settings.retire_timeout,
            latest: None,
            silent: BTreeMap::new(),
            ended: Vec::new(),
            gone_by: now,
            alone: false,
        });
    }

    /// No generation accepts: the new one continues, the older ones stop.
    pub(super) fn proved(&mut self, now: Moment, out: &mut Vec<Action>) {
        if let Some(Pausing { newer: id, older, ended, .. }) = self.pausing().cloned() {
            out.push(Action::EndProof);
            go_on(id, out);
            for &old in &older {
                self.soft_stop(now, old, true, Reason::Handover, out);
            }
            self.accept_no_more(&older);
            self.serve(now, id, out);
            self.operation = Operation::None;
            self.answer(Outcome::Serving { id, ended, alone: true }, out);
        } else if let Operation::Proving { stopping, .. } = &self.operation {
            let stopping = stopping.clone();
            self.accept_no_more(&stopping.older);
            self.finish_proving(now, stopping, true, out);
        }
    }

    /// It is proved that these do not accept, not even those that are being ended.
    fn accept_no_more<'a>(&mut self, older: impl IntoIterator<Item = &'a GenerationId>) {
        for id in older {
            if let Some(life) = self.lives.get_mut(id) {
                life.accepts_no_more();
            }
        }
    }

    /// No process accepts where the queues can show it. The older generations must show the rest by
    /// their own stop, and clients of all listeners must not wait for that.
    pub(super) fn proved_in_part(&mut self, now: Moment, all_paused: bool, out: &mut Vec<Action>) {
        if let Operation::Proving { stopping, .. } = &self.operation {
            // Each older generation has closed its listeners.
            let stopping = stopping.clone();
            return self.finish_proving(now, stopping, true, out);
        }
        let Some(pausing) = self.pausing().cloned() else { return };
        out.push(Action::EndProof);
        if !all_paused {
            // Nothing is proved: the older ones accept until they have closed, rather than nobody.
            self.resume(&pausing.older, Reason::Handover, out);
        }
        for &id in &pausing.older {
            self.soft_stop(now, id, false, Reason::Handover, out);
        }
        let Pausing { newer, older, ended, .. } = pausing;
        let older = older.into_iter().collect();
        let held = all_paused.then_some(now + PAUSED_TO_CLOSED);
        self.operation = Operation::Stopping(Stopping { newer, older, ended, prove: false, held });
    }

    /// Ends the wait for older generations that are known to be paused and have not closed their
    /// listeners in the time for which clients may wait.
    pub(super) fn hold_is_due(&mut self, now: Moment, out: &mut Vec<Action>) {
        let Operation::Stopping(stopping) = &mut self.operation else { return };
        if stopping.held.is_none_or(|until| now < until) {
            return;
        }
        stopping.held = None;
        let id = stopping.newer;
        if self.waits(id) {
            self.let_in(now, id, out);
        }
    }

    /// One more older generation may accept: the operation in progress must wait for it.
    pub(super) fn wait_for_another(&mut self, id: GenerationId, out: &mut Vec<Action>) {
        match &mut self.operation {
            Operation::Pausing(pausing) => drop(pausing.older.insert(id)),
            Operation::Stopping(stopping) if !stopping.older.contains(&id) => {
                stopping.older.push(id);
            }
            Operation::Proving { stopping, .. } => {
                let mut stopping = stopping.clone();
                if !stopping.older.contains(&id) {
                    stopping.older.push(id);
                }
                out.push(Action::EndProof);
                self.operation = Operation::Stopping(stopping);
            }
            Operation::None
            | Operation::Starting { .. }
            | Operation::Stopping(_)
            | Operation::Refused { .. } => {}
        }
    }

    /// Lets the new generation continue, and serve.
    fn let_in(&mut self, now: Moment, id: GenerationId, out: &mut Vec<Action>) {
        go_on(id, out);
        self.serve(now, id, out);
    }

    pub(super) fn unproved(
        &mut self,
        now: Moment,
        observation: &Observation,
        out: &mut Vec<Action>,
    ) {
        if let Operation::Proving { moving, .. } = &mut self.operation {
            *moving = observation.moving;
        }
        let Some(pausing) = self.pausing() else {
            return;
        };
        // A silent generation matters only while nobody accepts: then the service stands still.
        let counts = |id: &GenerationId| !observation.moving && observation.silent.contains(id);
        pausing.silent.retain(|id, _| counts(id));
        let mut wake = Vec::new();
        let mut kill = Vec::new();
        for &id in pausing.older.iter().filter(|id| counts(id)) {
            let since = *pausing.silent.entry(id).or_insert(now);
            if now >= since + SILENCE_KILL {
                kill.push(id);
            } else if now >= since + SILENCE_CONTINUE {
                wake.push(id);
            }
        }
        pausing.latest = Some(observation.clone());
        for id in wake {
            out.push(Action::Signal { id, signal: Signal::Continue, reason: Reason::Silent });
        }
        for id in kill {
            let known = self.lives.get(&id).map(|life| &life.stage);
            if !matches!(known, Some(Stage::Killed { .. })) {
                self.operation.note_ended(id);
                self.kill(now, id, Reason::Silent, out);
            }
        }
    }

    /// Acts on the deadlines of a pause.
    pub(super) fn pause_is_due(&mut self, now: Moment, out: &mut Vec<Action>) {
        let Some(pausing) = self.pausing() else {
            return;
        };
        if now >= pausing.until {
            let pausing = pausing.clone();
            self.pause_timed_out(now, &pausing, out);
        } else if now >= pausing.again {
            pausing.again = now + PAUSE_AGAIN;
            if pausing.latest.as_ref().is_some_and(Observation::is_quiet) {
                return; // nobody accepts; only a client to prove it is missing
            }
            let older = pausing.older.clone();
            // A generation that is being ended needs no further pause signal.
            let paused = |id: &GenerationId| {
                self.lives.get(id).is_some_and(|life| matches!(life.stage, Stage::Serving { .. }))
            };
            for id in older.into_iter().filter(paused) {
                let (signal, reason) = (Signal::Pause, Reason::Again);
                out.push(Action::Signal { id, signal, reason });
            }
        }
    }

    fn pause_timed_out(&mut self, now: Moment, pausing: &Pausing, out: &mut Vec<Action>) {
        let suspects = self.suspects(pausing);
        if !suspects.is_empty() {
            if let Some(pausing) = self.pausing() {
                pausing.until = now + TERM_TO_KILL + OBSERVED_AGAIN;
                pausing.again = now + PAUSE_AGAIN;
                pausing.gone_by = now + TERM_TO_KILL + KILLED_TO_GONE;
            }
            for id in suspects {
                self.operation.note_ended(id);
                self.terminate(now, id, Reason::StillAccepts, out);
            }
            return;
        }
        let moving = pausing.latest.as_ref().is_some_and(|seen| seen.moving);
        let still_there = |id: &GenerationId| self.lives.get(id).is_some_and(Life::is_being_ended);
        let in_time = now < pausing.gone_by;
        let ending = in_time && pausing.older.iter().any(still_there);
        let unseen = in_time && pausing.alone && pausing.latest.is_none();
        if unseen || (moving && (ending || !pausing.alone)) {
            // A process that was sent SIGKILL accepts until the kernel has ended it, which may take
            // a while on a busy machine. Observations until then prove nothing against others.
            if let Some(pausing) = self.pausing() {
                pausing.until = now + OBSERVED_AGAIN;
                pausing.again = now + PAUSE_AGAIN;
                pausing.alone = !ending;
                pausing.latest = None;
            }
            return;
        }
        let (newer, ended) = (pausing.newer, pausing.ended.clone());
        out.push(Action::EndProof);
        if moving {
            go_on(newer, out);
        }
        for &id in &pausing.older {
            self.soft_stop(now, id, moving, Reason::Handover, out);
        }
        if moving {
            // Every older generation is ended, so an unknown process accepts from the queue.
            self.serve(now, newer, out);
            self.operation = Operation::None;
            self.answer(Outcome::Serving { id: newer, ended, alone: false }, out);
        } else {
            // A queue that was always empty proves nothing: each older generation must confirm.
            let older = pausing.older.iter().copied().collect();
            let (prove, held) = (false, None);
            self.operation = Operation::Stopping(Stopping { newer, older, ended, prove, held });
        }
    }

    /// The older generations to end because a process still accepts: those seen accepting, and
    /// those that do not answer. If none was seen, all of them, since an answer may be late.
    fn suspects(&self, pausing: &Pausing) -> Vec<GenerationId> {
        let can_be_ended = |id: &&GenerationId| {
            self.lives.get(id).is_some_and(|life| matches!(life.stage, Stage::Serving { .. }))
        };
        let alive = || pausing.older.iter().filter(can_be_ended).copied();
        let Some(seen) = &pausing.latest else { return alive().collect() };
        let named = |id: &GenerationId| seen.accepting.contains(id) || seen.silent.contains(id);
        match alive().filter(named).collect::<Vec<_>>() {
            none if none.is_empty() && seen.moving => alive().collect(),
            suspects => suspects,
        }
    }

    /// Ends a handover once all older generations have confirmed or are gone; or continues it by
    /// watching the accept queues.
    pub(super) fn finish_stopping(&mut self, now: Moment, out: &mut Vec<Action>) {
        let Operation::Stopping(stopping) = &self.operation else { return };
        // One that not even SIGKILL ends must not keep the new one waiting for ever.
        let accepts = |id: &GenerationId| {
            self.lives.get(id).is_some_and(|life| life.may_accept() && !life.is_overdue(now))
        };
        if stopping.older.iter().any(accepts) {
            return;
        }
        let stopping = stopping.clone();
        if stopping.prove && self.waits(stopping.newer) {
            let (newer, older) = (stopping.newer, stopping.older.clone());
            out.push(Action::Prove { newer, older });
            let until = now + QUEUES_STILL;
            self.operation = Operation::Proving { stopping, until, moving: false };
        } else {
            self.finish(now, stopping, true, out);
        }
    }

    /// Ends the watch of the accept queues when its time is over.
    pub(super) fn proof_is_due(&mut self, now: Moment, out: &mut Vec<Action>) {
        if let Operation::Proving { stopping, until, moving } = &self.operation {
            if now >= *until {
                // Each older generation has closed its listeners, or does not end.
                let (stopping, alone) = (stopping.clone(), !moving);
                self.finish_proving(now, stopping, alone, out);
            }
        }
    }

    fn finish_proving(
        &mut self,
        now: Moment,
        stopping: Stopping,
        alone: bool,
        out: &mut Vec<Action>,
    ) {
        out.push(Action::EndProof);
        self.finish(now, stopping, alone, out);
    }

    /// Lets the new generation continue, if it waits, and answers every caller.
    fn finish(&mut self, now: Moment, stopping: Stopping, alone: bool, out: &mut Vec<Action>) {
        let Stopping { newer: id, mut older, mut ended, .. } = stopping;
        // What does not end may still accept.
        older.retain(|old| self.lives.get(old).is_some_and(Life::may_accept));
        let alone = alone && older.is_empty();
        older.retain(|old| !ended.contains(old));
        ended.append(&mut older);
        self.operation = Operation::None;
        if self.waits(id) {
            self.let_in(now, id, out);
        }
        // Another process may have told it to stop since it was let in.
        let serves =
            self.lives.get(&id).is_some_and(|life| matches!(life.stage, Stage::Serving { .. }));
        let outcome = match serves {
            true => Outcome::Serving { id, ended, alone },
            false => Outcome::Failed(id, Failure::StoppedInHandover),
        };
        self.answer(outcome, out);
    }

    fn waits(&self, id: GenerationId) -> bool {
        self.lives.get(&id).is_some_and(|life| life.stage == Stage::Waiting)
    }

    /// The generation that was to take over is killed: it never serves, whatever the older ones do
    /// until it is gone.
    pub(super) fn refused(&mut self, now: Moment, id: GenerationId, out: &mut Vec<Action>) {
        if self.operation.newer() != Some(id) {
            return;
        }
        let Some(life) = self.lives.get_mut(&id) else { return };
        let failure = match life.stage {
            Stage::Starting { .. } => Failure::Exited,
            Stage::Waiting => Failure::DiedInHandover,
            // It accepts, or is being ended.
            _ => return,
        };
        // It gets another signal at that time: even this wait has a deadline.
        let until = now + TERM_TO_KILL;
        life.stage = Stage::Starting { until, latest: until };
        let paused = self.operation.paused();
        out.push(Action::Guard { newer: id, paused: paused.iter().copied().collect() });
        self.newer_died(out);
        self.operation = Operation::Refused { newer: id, failure, paused };
    }

    /// The generation that was to take over is refused or gone: those paused for it serve on. Tells
    /// even those that were told before: with the end of the new one they get their own addresses
    /// back.
    pub(super) fn newer_died(&mut self, out: &mut Vec<Action>) {
        let operation = std::mem::replace(&mut self.operation, Operation::None);
        if operation.proves() {
            out.push(Action::EndProof);
        }
        self.resume(&operation.paused(), Reason::NewerDied, out);
    }

    /// Lets the paused generations that still serve accept again.
    pub(super) fn resume(
        &self,
        paused: &BTreeSet<GenerationId>,
        reason: Reason,
        out: &mut Vec<Action>,
    ) {
        for &id in paused {
            let stage = self.lives.get(&id).map(|life| &life.stage);
            if let Some(Stage::Serving { .. }) = stage {
                out.push(Action::Signal { id, signal: Signal::Resume, reason });
            }
        }
    }

    /// Gives up the operation in progress, because the service is being shut down.
    pub(super) fn abandon(&mut self, now: Moment, out: &mut Vec<Action>) {
        let operation = std::mem::replace(&mut self.operation, Operation::None);
        if operation.proves() {
            out.push(Action::EndProof);
        }
        let Some(id) = operation.newer() else { return };
        let waits = self.waits(id) || matches!(operation, Operation::Refused { .. });
        let starts = matches!(operation, Operation::Starting { .. });
        if starts && self.lives.len() == 1 {
            // The first generation is never held back: it may accept already. If not, the signal
            // ends it.
            self.soft_stop(now, id, false, Reason::Shutdown, out);
        } else if waits || starts {
            self.terminate(now, id, Reason::Shutdown, out);
        }
        if waits {
            // It may be stopped by SIGSTOP, and handles no other signal until it continues.
            let (signal, reason) = (Signal::Continue, Reason::Shutdown);
            out.push(Action::Signal { id, signal, reason });
        }
    }
}

/// The new generation continues.
fn go_on(id: GenerationId, out: &mut Vec<Action>) {
    out.push(Action::Signal { id, signal: Signal::Continue, reason: Reason::Handover });
}
