//! Random interleavings of all events, against a small model.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::super::operation::Operation;
use super::super::*;
use super::ONE;

/// One step of a random scenario. Indexes choose among the existing generations.
#[derive(Debug, Clone)]
enum Step {
    Reload,
    ReloadApart,
    ReloadAtOnce,
    Progress(usize),
    AddressInUse(usize),
    GaveUp(usize),
    Ready(usize, Handover),
    StartFailed(usize),
    Refused(usize),
    Exited(usize),
    Proved,
    Unproved { moving: bool, accepting: usize, silent: usize },
    ProvedInPart(bool),
    Stopping(usize),
    Stopped(usize),
    Listens(usize),
    Connections(usize, u64),
    Hangs(usize),
    Retire(usize),
    Pass(u64),
    Shutdown,
}

fn handover() -> impl Strategy<Value = Handover> {
    prop_oneof![Just(Handover::Pause), Just(Handover::StopFirst), Just(Handover::SoftStop),]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Reload),
        1 => Just(Step::ReloadApart),
        1 => Just(Step::ReloadAtOnce),
        2 => (0..6usize).prop_map(Step::Progress),
        6 => (0..6usize, handover()).prop_map(|(i, how)| Step::Ready(i, how)),
        3 => (0..6usize).prop_map(Step::AddressInUse),
        1 => (0..6usize).prop_map(Step::GaveUp),
        1 => (0..6usize).prop_map(Step::StartFailed),
        2 => (0..6usize).prop_map(Step::Refused),
        3 => (0..6usize).prop_map(Step::Exited),
        4 => Just(Step::Proved),
        3 => (any::<bool>(), 0..6usize, 0..6usize)
            .prop_map(|(moving, accepting, silent)| Step::Unproved { moving, accepting, silent }),
        3 => any::<bool>().prop_map(Step::ProvedInPart),
        2 => (0..6usize).prop_map(Step::Stopping),
        4 => (0..6usize).prop_map(Step::Stopped),
        2 => (0..6usize).prop_map(Step::Listens),
        2 => (0..6usize, 0..2u64).prop_map(|(i, n)| Step::Connections(i, n)),
        1 => (0..6usize).prop_map(Step::Hangs),
        1 => (0..6usize).prop_map(Step::Retire),
        4 => (0..7000u64).prop_map(Step::Pass),
        2 => (0..1400u64).prop_map(Step::Pass),
        1 => Just(Step::Shutdown),
    ]
}

/// The view of a supervisor that performs the actions, small enough to trust.
#[derive(Default)]
struct Model {
    alive: BTreeSet<GenerationId>,
    starting: BTreeSet<GenerationId>,
    newest: u64,
    unanswered: BTreeSet<Caller>,
    stopped_by_us: BTreeMap<GenerationId, bool>,
    touched: BTreeSet<GenerationId>,
    /// Told to pause, and since then neither to accept again nor to stop.
    paused: BTreeSet<GenerationId>,
    /// The generations that resume if the supervisor ends.
    guarded: BTreeSet<GenerationId>,
    /// The generation that takes over even if the supervisor ends; the older ones are told to stop
    /// then.
    takes_over: Option<GenerationId>,
    /// Generations refused before they served.
    refused: BTreeSet<GenerationId>,
    /// Have served, and were not told to stop since then.
    untold: BTreeSet<GenerationId>,
    /// Sent SIGKILL.
    killed: BTreeSet<GenerationId>,
    exited: bool,
}

impl Model {
    fn perform(&mut self, timeline: &Timeline, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Start { id, .. } => {
                    assert!(id.0 > self.newest, "ids only grow");
                    // One that not even SIGKILL ends is given up.
                    assert!(self.starting.is_subset(&self.killed), "one start at a time");
                    self.newest = id.0;
                    self.alive.insert(*id);
                    self.starting.insert(*id);
                }
                Action::Signal { id, signal, .. } => {
                    assert!(self.alive.contains(id), "a signal to a generation that is gone");
                    // The generations that were paused for it resume when it has failed.
                    if *signal != Signal::Resume {
                        self.touched.insert(*id);
                    }
                    match signal {
                        Signal::Pause => drop(self.paused.insert(*id)),
                        Signal::Continue => {}
                        _ => drop(self.paused.remove(id)),
                    }
                    match signal {
                        Signal::Stop => drop(self.stopped_by_us.insert(*id, true)),
                        Signal::Continue => drop(self.stopped_by_us.remove(id)),
                        Signal::Kill => {
                            self.stopped_by_us.remove(id);
                            self.killed.insert(*id);
                        }
                        _ => {}
                    }
                    match signal {
                        Signal::SoftStop | Signal::Terminate | Signal::Kill => {
                            self.untold.remove(id);
                        }
                        Signal::Resume => {
                            let newer = self.takes_over.filter(|id| self.refused.contains(id));
                            assert_eq!(newer, None, "one that was refused would take over");
                        }
                        _ => {}
                    }
                }
                Action::Guard { newer, paused } => {
                    self.guarded = paused.iter().copied().collect();
                    self.takes_over.take_if(|id| id == newer && self.refused.contains(newer));
                }
                Action::Answer(callers, outcome) => {
                    for caller in callers {
                        assert!(self.unanswered.remove(caller), "answered once");
                    }
                    if let Outcome::Serving { id, .. } = outcome {
                        assert!(!self.refused.contains(id), "one that was refused serves");
                    }
                    if let Outcome::Serving { id, alone: true, .. } = outcome {
                        // Invariant 2: at most one generation accepts once a reload is answered.
                        assert_eq!(timeline.accepting(*id), [], "{outcome:?}");
                    }
                }
                Action::Gone(id) => {
                    assert!(self.alive.remove(id));
                    self.stopped_by_us.remove(id);
                    self.paused.remove(id);
                    self.untold.remove(id);
                    self.takes_over.take_if(|newer| newer == id);
                }
                Action::Serving(id) => {
                    assert!(!self.refused.contains(id), "one that was refused serves");
                    // From here on nobody tells them if the supervisor ends.
                    assert!(self.untold.is_empty(), "not told to stop: {:?}", self.untold);
                    self.untold.insert(*id);
                    self.takes_over = None;
                }
                Action::GivenUp(id) => {
                    assert!(self.alive.contains(id) && self.killed.contains(id));
                    self.takes_over.take_if(|newer| newer == id);
                }
                Action::Exit(_) => {
                    assert!(self.alive.is_empty(), "nothing is left behind");
                    self.exited = true;
                }
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    /// Invariants 2, 3 and 5 under random interleavings of all events.
    #[test]
    fn no_interleaving_breaks_the_invariants(steps in prop::collection::vec(step(), 1..60), interval in prop_oneof![Just(0), 0..9000u64]) {
        let min_interval = Duration::from_millis(interval);
        let settings = Settings { max_draining: 3, min_interval, ..Settings::default() };
        // When the last start for a reload began, and whether a reload since then cannot wait.
        let (mut begun, mut at_once) = (None::<Moment>, false);
        let mut timeline = Timeline::new(settings, ONE);
        let mut model = Model::default();
        let mut now = Moment::ZERO;
        for (n, step) in steps.into_iter().enumerate() {
            let ids: Vec<_> = timeline.generations().map(|(id, _)| id).collect();
            let pick = |i: usize| ids.get(i).copied();
            let serving = timeline.serving();
            model.touched.clear();
            let (mut failed_start, mut retired) = (false, false);
            let event = match step {
                Step::Reload => {
                    model.unanswered.insert(Caller(n as u64));
                    Some(Event::Reload(Caller(n as u64)))
                }
                Step::ReloadApart => {
                    model.unanswered.insert(Caller(n as u64));
                    Some(Event::ReloadApart(Caller(n as u64)))
                }
                Step::ReloadAtOnce => {
                    at_once = true;
                    model.unanswered.insert(Caller(n as u64));
                    Some(Event::ReloadAtOnce(Caller(n as u64)))
                }
                Step::Progress(i) => pick(i).map(Event::Progress),
                Step::Ready(i, how) => pick(i).map(|id| {
                    model.starting.remove(&id);
                    let starts = timeline.state_of(id) == Some(State::Starting);
                    if starts && !model.refused.contains(&id) {
                        model.takes_over = Some(id);
                    }
                    Event::Ready(id, how)
                }),
                Step::AddressInUse(i) => pick(i).map(Event::AddressInUse),
                Step::GaveUp(i) => pick(i).map(Event::GaveUp),
                Step::StartFailed(i) => pick(i).filter(|id| model.starting.remove(id)).map(|id| {
                    failed_start = true;
                    Event::StartFailed(id)
                }),
                Step::Refused(i) => pick(i).map(|id| {
                    let starts = timeline.state_of(id) == Some(State::Starting);
                    if starts && timeline.operation.newer() == Some(id) {
                        model.refused.insert(id);
                    }
                    Event::Refused(id)
                }),
                Step::Exited(i) => pick(i).map(|id| {
                    failed_start = model.starting.remove(&id);
                    Event::Exited(id)
                }),
                Step::Proved => Some(Event::Proved),
                Step::Unproved { moving, accepting, silent } => {
                    Some(Event::Unproved(Observation {
                        moving,
                        accepting: pick(accepting).into_iter().collect(),
                        silent: pick(silent).into_iter().collect(),
                    }))
                }
                Step::ProvedInPart(all_paused) => Some(Event::ProvedInPart { all_paused }),
                Step::Stopping(i) => pick(i).map(Event::Stopping),
                Step::Stopped(i) => pick(i).map(|id| {
                    model.untold.remove(&id);
                    Event::Stopped(id)
                }),
                Step::Listens(i) => pick(i).map(Event::Listens),
                Step::Connections(i, n) => pick(i).map(|id| Event::Connections(id, n)),
                Step::Hangs(i) => pick(i).map(|id| {
                    retired = true;
                    Event::Hangs(id)
                }),
                Step::Retire(i) => pick(i).map(|id| {
                    retired = true;
                    Event::Retire(id)
                }),
                Step::Pass(millis) => {
                    now += Duration::from_millis(millis);
                    Some(Event::Tick)
                }
                Step::Shutdown => Some(Event::Shutdown),
            };
            let Some(event) = event else { continue };
            let actions = timeline.on(now, event);
            for action in &actions {
                if let Action::Start { configuration: Configuration::Fresh, .. } = action {
                    let waited = begun.is_none_or(|begun| now >= begun + min_interval);
                    // A serving generation is not replaced sooner.
                    prop_assert!(waited || at_once || timeline.serving().is_none(), "too soon");
                    (begun, at_once) = (Some(now), false);
                }
            }
            // A waiting caller has a due time in the future: a reload that is due has begun.
            if timeline.reloads_waiting() > 0 && timeline.is_idle() {
                prop_assert!(timeline.reload_due().is_some_and(|due| due > now));
                prop_assert!(timeline.deadline() <= timeline.reload_due());
            }
            // `perform` judges each answer by the state after the event.
            model.perform(&timeline, &actions);
            if let (true, Some(serving)) = (failed_start, serving) {
                prop_assert!(!model.touched.contains(&serving), "invariant 3: {actions:?}");
            }
            if let (true, Some(serving)) = (retired, serving) {
                prop_assert!(!model.touched.contains(&serving), "retired the serving generation: {actions:?}");
            }
            // Invariant 5: with any generation that does not simply serve, there is a deadline.
            let waits = timeline.lives.values().any(|life| life.state() != State::Serving);
            prop_assert!(!waits || timeline.deadline().is_some());
            // A passed deadline was acted on: an immediate second tick does nothing.
            prop_assert_eq!(timeline.on(now, Event::Tick), vec![]);
            prop_assert!(timeline.deadline().is_none_or(|due| due > now), "time stands still");
            // No generation is left stopped, except during a handover. One that has stopped serving
            // is not paused any more.
            let serves = |id| timeline.generations().any(|known| known == (id, State::Serving));
            model.paused.retain(|id| serves(*id));
            // No generation is left paused either. While a generation starts, those paused for it
            // resume soon, even if the supervisor ends.
            match &timeline.operation {
                Operation::None => {
                    prop_assert!(model.paused.is_empty(), "left paused: {:?}", actions);
                }
                Operation::Starting { .. } if !model.paused.is_empty() => {
                    prop_assert!(timeline.deadline() <= Some(now + PAUSED_FOR_ADDRESS));
                    prop_assert!(model.paused.is_subset(&model.guarded));
                }
                _ => {}
            }
            if timeline.operation.is_none() {
                prop_assert!(model.stopped_by_us.is_empty(), "left stopped: {:?}", actions);
            }
        }
        // From any state, a shutdown ends everything in bounded time, and every caller is answered.
        let actions = timeline.on(now, Event::Shutdown);
        model.perform(&timeline, &actions);
        let drain = Duration::from_secs(3600);
        now += drain;
        let actions = timeline.on(now, Event::Tick);
        model.perform(&timeline, &actions);
        let left: Vec<_> = timeline.generations().map(|(id, _)| id).collect();
        for id in left {
            let actions = timeline.on(now, Event::Exited(id));
            model.perform(&timeline, &actions);
        }
        prop_assert!(model.exited);
        prop_assert!(model.unanswered.is_empty());
    }
}
