//! Telling a generation to stop, and ending it when it does not.

use super::life::{Life, Stage};
use super::operation::Operation;
use super::timeline::Timeline;
use super::{
    Action, Failure, GenerationId, KILLED_TO_GONE, Moment, Outcome, Reason, SOFT_STOP_AGAIN,
    Signal, TERM_TO_KILL,
};

impl Timeline {
    /// Tells a generation to close its listeners. `proved`: it is known to have stopped accepting.
    pub(super) fn soft_stop(
        &mut self,
        now: Moment,
        id: GenerationId,
        proved: bool,
        reason: Reason,
        out: &mut Vec<Action>,
    ) {
        let Some(life) = self.lives.get_mut(&id) else {
            return;
        };
        if let Stage::Serving { since } = life.stage {
            self.restarts.served(life.configuration, now.saturating_sub(since));
        }
        if let Stage::Starting { .. } | Stage::Serving { .. } | Stage::Stopping { .. } = life.stage
        {
            let again = now + SOFT_STOP_AGAIN;
            life.stage = Stage::Stopping { since: now, again, proved, says: false };
            out.push(Action::Signal { id, signal: Signal::SoftStop, reason });
            out.push(Action::WatchStop(id));
        }
    }

    pub(super) fn stopped(&mut self, now: Moment, id: GenerationId, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else {
            return;
        };
        let drain = life.drain_timeout.unwrap_or(self.settings.drain_timeout);
        let told = match life.stage {
            Stage::Stopping { .. } => true,
            // Another program told it to stop; a serving generation must be started again.
            Stage::Serving { .. } => {
                out.push(Action::WatchStop(id));
                false
            }
            _ => return,
        };
        life.stage = Stage::Draining { until: now.saturating_add(drain), told };
        out.push(Action::Detach(id));
    }

    /// Sets how long a generation may drain: from now, or from when it has stopped.
    pub(super) fn drain_within(&mut self, now: Moment, id: GenerationId, time: Moment) {
        let Some(life) = self.lives.get_mut(&id).filter(|life| life.lingers()) else { return };
        life.drain_timeout = Some(time);
        if let Stage::Draining { until, .. } = &mut life.stage {
            *until = now.saturating_add(time);
        }
    }

    /// The generation confirms that it was told to stop.
    pub(super) fn confirmed_stop(&mut self, id: GenerationId) {
        if let Some(Stage::Stopping { says, .. }) =
            self.lives.get_mut(&id).map(|life| &mut life.stage)
        {
            *says = true;
        }
    }

    /// The generation had closed its listeners and has them again: it is told to stop again, and
    /// the operation in progress waits for it too.
    pub(super) fn listens_again(&mut self, now: Moment, id: GenerationId, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        if let Stage::Draining { .. } = life.stage {
            let again = now + SOFT_STOP_AGAIN;
            life.stage = Stage::Stopping { since: now, again, proved: false, says: false };
            let (signal, reason) = (Signal::SoftStop, Reason::ListensAgain);
            out.push(Action::Signal { id, signal, reason });
            out.push(Action::WatchStop(id));
            self.wait_for_another(id, out);
        }
    }

    pub(super) fn connections(&mut self, id: GenerationId, left: u64, out: &mut Vec<Action>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        if let (0, false, Stage::Draining { .. }) = (left, life.let_go, &life.stage) {
            life.let_go = true;
            out.push(Action::LetGo(id));
        }
    }

    /// The generation has no connection left and does not exit. It obeys only SIGKILL.
    pub(super) fn hangs(&mut self, now: Moment, id: GenerationId, out: &mut Vec<Action>) {
        let stage = self.lives.get(&id).map(|life| &life.stage);
        if matches!(stage, Some(Stage::Draining { .. })) {
            self.kill(now, id, Reason::Hangs, out);
        }
    }

    /// Ends a replaced generation now, together with its connections. One that serves or starts
    /// stays as it is.
    pub(super) fn retire(&mut self, now: Moment, id: GenerationId, out: &mut Vec<Action>) {
        if self.lives.get(&id).is_some_and(Life::lingers) {
            self.operation.note_ended(id);
            self.terminate(now, id, Reason::Retired, out);
        }
    }

    pub(super) fn terminate(
        &mut self,
        now: Moment,
        id: GenerationId,
        reason: Reason,
        out: &mut Vec<Action>,
    ) {
        let Some(life) = self.lives.get_mut(&id) else {
            return;
        };
        if !matches!(life.stage, Stage::Ending { .. } | Stage::Killed { .. }) {
            let accepts = life.may_accept();
            life.stage = Stage::Ending { kill: now + TERM_TO_KILL, accepts };
            out.push(Action::Signal { id, signal: Signal::Terminate, reason });
        }
    }

    pub(super) fn kill(
        &mut self,
        now: Moment,
        id: GenerationId,
        reason: Reason,
        out: &mut Vec<Action>,
    ) {
        let Some(life) = self.lives.get_mut(&id) else {
            return;
        };
        let gone_by = match life.stage {
            Stage::Killed { gone_by, .. } => gone_by,
            _ => now + KILLED_TO_GONE,
        };
        let (again, accepts) = (now + TERM_TO_KILL, life.may_accept());
        life.stage = Stage::Killed { again, gone_by, accepts };
        out.push(Action::Signal { id, signal: Signal::Kill, reason });
    }

    /// Goes on without a new generation that not even SIGKILL ends in time, unless too many such
    /// processes are left already.
    pub(super) fn give_up(&mut self, now: Moment, out: &mut Vec<Action>) {
        let (id, failure) = match self.operation {
            Operation::Starting { newer, .. } => (newer, Failure::NotReady),
            Operation::Refused { newer, failure, .. } => (newer, failure),
            _ => return,
        };
        let Some(life) = self.lives.get(&id).filter(|life| life.is_overdue(now)) else { return };
        let overdue = self.lives.values().filter(|life| life.is_overdue(now)).count();
        if overdue > self.settings.max_draining {
            return;
        }
        if !self.reloads.is_running() {
            self.restarts.crashed(life.configuration, Moment::ZERO);
        }
        self.newer_died(out);
        out.push(Action::GivenUp(id));
        self.answer(Outcome::Failed(id, failure), out);
    }

    /// Acts on every deadline that has passed.
    pub(super) fn advance(&mut self, now: Moment, out: &mut Vec<Action>) {
        let due: Vec<_> = self
            .lives
            .iter()
            .filter(|(_, life)| life.deadline().is_some_and(|at| at <= now))
            .map(|(id, life)| (*id, life.stage.clone()))
            .collect();
        for (id, stage) in due {
            match stage {
                Stage::Starting { .. } => self.terminate(now, id, Reason::NotReady, out),
                Stage::Stopping { since, proved, says, .. } => {
                    self.stop_is_due(now, id, since, (proved, says), out);
                }
                Stage::Draining { .. } => self.terminate(now, id, Reason::DrainTimeout, out),
                Stage::Ending { .. } | Stage::Killed { .. } => {
                    self.kill(now, id, Reason::DidNotExit, out);
                }
                Stage::Waiting | Stage::Serving { .. } => {}
            }
        }
        self.yielding_is_due(now, out);
        self.pause_is_due(now, out);
        self.hold_is_due(now, out);
        self.proof_is_due(now, out);
    }

    /// Signals a generation again whose soft stop is not complete, or ends it. Even one that is
    /// proved not to accept must confirm that it stops: a proof holds only for the moment it was
    /// made. Once it has confirmed, it may close its listeners later (`grace`), for as long as its
    /// connections may last.
    fn stop_is_due(
        &mut self,
        now: Moment,
        id: GenerationId,
        since: Moment,
        (proved, says): (bool, bool),
        out: &mut Vec<Action>,
    ) {
        let own = self.lives.get(&id).and_then(|life| life.drain_timeout);
        let until = match proved && says {
            true => since.saturating_add(own.unwrap_or(self.settings.drain_timeout)),
            false => since + self.settings.retire_timeout,
        };
        if now >= until {
            let reason = match (proved, says) {
                (true, true) => Reason::DrainTimeout,
                (true, false) => Reason::NotConfirmed,
                (false, _) => Reason::StillAccepts,
            };
            if reason != Reason::DrainTimeout {
                self.operation.note_ended(id);
            }
            self.terminate(now, id, reason, out);
        } else if let Some(life) = self.lives.get_mut(&id) {
            let again = (now + SOFT_STOP_AGAIN).min(until);
            life.stage = Stage::Stopping { since, again, proved, says };
            if !(proved && says) {
                out.push(Action::Signal { id, signal: Signal::SoftStop, reason: Reason::Again });
            }
        }
    }

    /// Ends the oldest draining generations, if there are more than allowed.
    pub(super) fn limit_draining(&mut self, now: Moment, out: &mut Vec<Action>) {
        let lingering: Vec<_> =
            self.lives.iter().filter(|(_, l)| l.lingers()).map(|(id, _)| *id).collect();
        let too_many = lingering.len().saturating_sub(self.settings.max_draining);
        for &id in &lingering[..too_many] {
            self.terminate(now, id, Reason::TooManyDraining, out);
        }
    }
}
