//! The decision itself: what to do about each event of a service.

use std::collections::BTreeMap;

use super::life::{Life, Stage};
use super::operation::{Operation, Pausing, Stopping};
use super::reloads::Reloads;
use super::restart::Restarts;
use super::{
    Action, Caller, Configuration, Ending, Event, Failure, Found, GenerationId, Handover,
    LONGEST_START, Moment, Outcome, Reason, Settings, Signal, State,
};

/// One service: all its generations, the reload in progress, and what comes next.
#[derive(Debug, Clone)]
pub struct Timeline {
    pub(super) settings: Settings,
    next_id: u64,
    pub(super) lives: BTreeMap<GenerationId, Life>,
    pub(super) operation: Operation,
    pub(super) reloads: Reloads,
    pub(super) restarts: Restarts,
    started: bool,
    shutdown: bool,
    exited: bool,
}

impl Timeline {
    /// A service without a generation; the first will be `next_id`. Nothing happens until a reload
    /// is requested.
    pub fn new(settings: Settings, next_id: GenerationId) -> Self {
        Self {
            settings,
            next_id: next_id.0,
            lives: BTreeMap::new(),
            operation: Operation::None,
            reloads: Reloads::default(),
            restarts: Restarts::default(),
            started: false,
            shutdown: false,
            exited: false,
        }
    }

    /// Takes over generations that an earlier supervisor started. The newest that was not told to
    /// stop serves; every other one is told to stop (again). `worked`: the last working
    /// configuration that the earlier supervisor knew, from [`Self::worked`].
    pub fn adopt(
        &mut self,
        now: Moment,
        found: impl IntoIterator<Item = Found>,
        worked: Option<GenerationId>,
    ) -> Vec<Action> {
        let mut out = Vec::new();
        self.restarts.resume(worked);
        let found: BTreeMap<_, _> = found.into_iter().map(|found| (found.id, found)).collect();
        let serving = found.values().rev().find(|found| found.state == State::Serving);
        let serving = serving.map(|found| found.id);
        for (&id, &Found { configuration, served, .. }) in &found {
            self.next_id = self.next_id.max(id.0 + 1);
            // Only the serving one's time matters.
            let served = if Some(id) == serving { served } else { Moment::ZERO };
            let stage = Stage::Serving { since: now.saturating_sub(served) };
            self.lives
                .insert(id, Life { stage, configuration, let_go: false, drain_timeout: None });
            if Some(id) == serving {
                self.restarts.serves(configuration);
                out.push(Action::Serving(id));
            } else {
                self.soft_stop(now, id, false, Reason::TakenOver, &mut out);
            }
        }
        out
    }

    /// Takes an event at `now` and returns what to do. `now` never goes back, and leaves out time
    /// that the caller has missed: no generation is ended because a deadline was checked late.
    #[must_use]
    pub fn on(&mut self, now: Moment, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Reload(caller) | Event::ReloadApart(caller) | Event::ReloadAtOnce(caller)
                if self.shutdown =>
            {
                out.push(Action::Answer(vec![caller], Outcome::ShuttingDown));
            }
            Event::Reload(caller) => self.reloads.ask(caller),
            Event::ReloadApart(caller) => self.reloads.ask_apart(caller),
            Event::ReloadAtOnce(caller) => self.reloads.ask_at_once(caller),
            Event::Progress(id) => self.progress(now, id),
            Event::StartFailed(id) => self.ended(now, id, Some(Failure::NotStarted), &mut out),
            Event::AddressInUse(id) => self.address_in_use(now, id, &mut out),
            Event::GaveUp(id) => self.gave_up(id, &mut out),
            Event::Ready(id, handover) => self.ready(now, id, handover, &mut out),
            Event::Refused(id) => self.refused(now, id, &mut out),
            Event::Exited(id) => self.ended(now, id, None, &mut out),
            Event::Proved => self.proved(now, &mut out),
            Event::Unproved(observation) => self.unproved(now, &observation, &mut out),
            Event::ProvedInPart { all_paused } => self.proved_in_part(now, all_paused, &mut out),
            Event::Stopping(id) => self.confirmed_stop(id),
            Event::Stopped(id) => self.stopped(now, id, &mut out),
            Event::Listens(id) => self.listens_again(now, id, &mut out),
            Event::Connections(id, left) => self.connections(id, left, &mut out),
            Event::Hangs(id) => self.hangs(now, id, &mut out),
            Event::DrainTimeout(id, time) => self.drain_within(now, id, time),
            Event::Retire(id) => self.retire(now, id, &mut out),
            Event::Tick => {}
            Event::Shutdown => self.shut_down(now, &mut out),
        }
        self.advance(now, &mut out);
        self.settle(now, &mut out);
        out
    }

    /// When [`Event::Tick`] is due if nothing else happens.
    pub fn deadline(&self) -> Option<Moment> {
        let lives = self.lives.values().filter_map(Life::deadline);
        let restart = self.restarts.planned().filter(|_| self.operation.is_none());
        let reload = self.reload_due().filter(|_| self.is_idle());
        lives.chain(self.operation.deadline()).chain(restart.map(|(at, _)| at)).chain(reload).min()
    }

    /// When the callers that wait for a reload can have it, once nothing else is in progress; none
    /// if nobody waits.
    pub fn reload_due(&self) -> Option<Moment> {
        self.reloads.due(self.settings.min_interval, self.serving().is_some())
    }

    /// How many callers wait for a later reload.
    pub fn reloads_waiting(&self) -> usize {
        self.reloads.waiting()
    }

    /// The callers of the reload in progress.
    pub fn callers(&self) -> &[Caller] {
        self.reloads.running()
    }

    /// Every generation that has not ended, with its state, oldest first.
    pub fn generations(&self) -> impl Iterator<Item = (GenerationId, State)> + '_ {
        self.lives.iter().map(|(id, life)| (*id, life.state()))
    }

    /// The state of a generation; none if it has ended.
    pub fn state_of(&self, id: GenerationId) -> Option<State> {
        self.lives.get(&id).map(Life::state)
    }

    /// The generation that serves.
    pub fn serving(&self) -> Option<GenerationId> {
        let mut newest_first = self.lives.iter().rev();
        newest_first.find(|(_, l)| matches!(l.stage, Stage::Serving { .. })).map(|(id, _)| *id)
    }

    /// The generations whose copies of the configuration are being served or may be started again.
    pub fn configurations(&self) -> impl Iterator<Item = GenerationId> + '_ {
        self.lives.values().map(|l| l.configuration).chain(self.restarts.kept())
    }

    /// The configuration that a generation serves, named by the generation that first had it.
    pub fn configuration_of(&self, id: GenerationId) -> Option<GenerationId> {
        self.lives.get(&id).map(|life| life.configuration)
    }

    /// The last configuration that served for [`WORKED_AFTER`](super::WORKED_AFTER).
    pub fn worked(&self) -> Option<GenerationId> {
        self.restarts.worked()
    }

    /// The id of the next generation.
    pub fn next_id(&self) -> GenerationId {
        GenerationId(self.next_id)
    }

    /// Whether no generation is being started or handed over to, and no shutdown is in progress.
    pub fn is_idle(&self) -> bool {
        self.operation.is_none() && !self.shutdown
    }

    /// Whether the older generations have been told to stop.
    pub fn is_stopping(&self) -> bool {
        matches!(self.operation, Operation::Stopping(_) | Operation::Proving { .. })
    }

    /// Whether a generation is told not to accept for now, because another is to take over.
    pub fn is_paused(&self, id: GenerationId) -> bool {
        match &self.operation {
            Operation::Pausing(pausing) => pausing.older.contains(&id),
            Operation::Starting { yielding: Some(yielding), .. } => {
                yielding.until.is_some() && yielding.paused.contains(&id)
            }
            _ => false,
        }
    }

    /// Generations that may accept connections now, other than `except`.
    pub fn accepting(&self, except: GenerationId) -> Vec<GenerationId> {
        let others = self.lives.iter().filter(|(id, life)| **id != except && life.may_accept());
        others.map(|(id, _)| *id).collect()
    }

    fn ready(&mut self, now: Moment, id: GenerationId, how: Handover, out: &mut Vec<Action>) {
        let starting =
            matches!(self.lives.get(&id), Some(l) if matches!(l.stage, Stage::Starting { .. }));
        let refused = matches!(&self.operation, Operation::Refused { newer, .. } if *newer == id);
        if !starting || refused {
            return; // a second readiness signal, or one that came too late
        }
        let older = self.accepting(id);
        match how {
            _ if older.is_empty() => {
                self.serve(now, id, out);
                self.operation = Operation::None;
                self.answer(Outcome::Serving { id, ended: Vec::new(), alone: true }, out);
            }
            Handover::Pause => self.pause(now, id, older, out),
            Handover::StopFirst | Handover::SoftStop => {
                let prove = how == Handover::StopFirst;
                if let Some(life) = self.lives.get_mut(&id).filter(|_| prove) {
                    life.stage = Stage::Waiting;
                    let (signal, reason) = (Signal::Stop, Reason::Handover);
                    out.push(Action::Signal { id, signal, reason });
                }
                for &old in &older {
                    self.soft_stop(now, old, false, Reason::Handover, out);
                }
                if !prove {
                    self.serve(now, id, out);
                }
                let stopping = Stopping { newer: id, older, ended: Vec::new(), prove, held: None };
                self.operation = Operation::Stopping(stopping);
            }
        }
    }

    fn progress(&mut self, now: Moment, id: GenerationId) {
        let timeout = self.settings.ready_timeout;
        if let Some(Stage::Starting { until, latest }) =
            self.lives.get_mut(&id).map(|life| &mut life.stage)
        {
            *until = now.saturating_add(timeout).min(*latest);
        }
    }

    /// Marks `id` as serving from now on. The older ones are told to stop before that: until it
    /// serves, another process tells them if the supervisor ends.
    pub(super) fn serve(&mut self, now: Moment, id: GenerationId, out: &mut Vec<Action>) {
        if let Some(life) = self.lives.get_mut(&id) {
            life.stage = Stage::Serving { since: now };
            self.restarts.serves(life.configuration);
            out.push(Action::Serving(id));
        }
    }

    fn ended(
        &mut self,
        now: Moment,
        id: GenerationId,
        failure: Option<Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(life) = self.lives.remove(&id) else {
            return;
        };
        let takes_over = self.operation.newer() == Some(id);
        match life.stage {
            Stage::Serving { since } if !self.shutdown => {
                self.restarts.crashed(life.configuration, now.saturating_sub(since));
            }
            // A restart without a caller has failed; the next one waits longer.
            _ if takes_over && !self.reloads.is_running() => {
                self.restarts.crashed(life.configuration, Moment::ZERO);
            }
            _ => {}
        }
        let refused = match &self.operation {
            Operation::Refused { newer, failure, .. } if *newer == id => Some(*failure),
            _ => None,
        };
        let failure = failure.or(refused).unwrap_or(match life.stage {
            Stage::Starting { .. } => Failure::Exited,
            Stage::Ending { .. } | Stage::Killed { .. } => Failure::NotReady,
            _ => Failure::DiedInHandover,
        });
        if takes_over {
            self.newer_died(out);
        }
        // After the signals: its end is not forgotten while a generation is paused for it.
        out.push(Action::Gone(id));
        if takes_over {
            self.answer(Outcome::Failed(id, failure), out);
        }
    }

    /// Whether a shutdown is in progress: every generation drains, and none is started.
    pub fn is_shutting_down(&self) -> bool {
        self.shutdown
    }

    fn shut_down(&mut self, now: Moment, out: &mut Vec<Action>) {
        let again = std::mem::replace(&mut self.shutdown, true);
        self.restarts.call_off();
        self.abandon(now, out);
        self.reloads.begin_all();
        self.answer(Outcome::ShuttingDown, out);
        let ids: Vec<_> = self.lives.keys().copied().collect();
        for id in ids {
            let stage = self.lives.get(&id).map(|life| life.stage.clone());
            match stage {
                Some(Stage::Serving { .. }) if !again => {
                    self.soft_stop(now, id, false, Reason::Shutdown, out);
                }
                // It may have closed its listeners for another reason and never exit.
                Some(Stage::Draining { until, told: false }) if !again => {
                    if let Some(life) = self.lives.get_mut(&id) {
                        life.stage = Stage::Draining { until, told: true };
                    }
                    let (signal, reason) = (Signal::SoftStop, Reason::Shutdown);
                    out.push(Action::Signal { id, signal, reason });
                }
                Some(Stage::Stopping { .. } | Stage::Draining { .. }) if !again => {}
                Some(_) => self.terminate(now, id, Reason::Shutdown, out),
                None => {}
            }
        }
    }

    /// Acts on the current state, whatever event led to it.
    fn settle(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.finish_stopping(now, out);
        self.give_up(now, out);
        self.limit_draining(now, out);
        if self.shutdown {
            if self.lives.is_empty() {
                self.exit(Ending::Shutdown, out);
            }
            return;
        }
        if !self.operation.is_none() {
            return;
        }
        if self.reload_due().is_some_and(|due| due <= now) {
            self.reloads.begin();
            self.start(now, Configuration::Fresh, out);
        } else if self.serving().is_none() {
            if self.restarts.planned().is_none() {
                out.extend(self.restarts.plan(now));
            }
            match self.restarts.planned() {
                Some((at, of)) if at <= now => self.start(now, Configuration::Of(of), out),
                // What an earlier supervisor has left may drain for longer.
                None if self.started
                    && self.reload_due().is_none()
                    && self.lives.values().all(Life::drains) =>
                {
                    self.exit(Ending::NeverServed, out);
                }
                _ => {}
            }
        }
    }

    pub(super) fn start(
        &mut self,
        now: Moment,
        configuration: Configuration,
        out: &mut Vec<Action>,
    ) {
        let id = GenerationId(self.next_id);
        self.next_id += 1;
        self.started = true;
        self.restarts.call_off();
        let older_alive = !self.lives.is_empty();
        let of = match configuration {
            Configuration::Fresh => id,
            Configuration::Of(of) => of,
        };
        if configuration == Configuration::Fresh {
            self.reloads.started(now);
        }
        let timeout = self.settings.ready_timeout;
        let latest = now.saturating_add(timeout.saturating_mul(LONGEST_START));
        let stage = Stage::Starting { until: now.saturating_add(timeout), latest };
        self.lives
            .insert(id, Life { stage, configuration: of, let_go: false, drain_timeout: None });
        self.operation = Operation::Starting { newer: id, yielding: None };
        out.push(Action::Start { id, configuration, older_alive });
    }

    /// Answers every caller of the reload in progress.
    pub(super) fn answer(&mut self, outcome: Outcome, out: &mut Vec<Action>) {
        out.extend(self.reloads.answer(outcome));
    }

    fn exit(&mut self, ending: Ending, out: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.exited, true) {
            out.push(Action::Exit(ending));
        }
    }

    pub(super) fn pausing(&mut self) -> Option<&mut Pausing> {
        match &mut self.operation {
            Operation::Pausing(pausing) => Some(pausing),
            _ => None,
        }
    }
}
