//! The life of generations, by example and by random interleavings.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const ONE: GenerationId = GenerationId(1);
const TWO: GenerationId = GenerationId(2);
const THREE: GenerationId = GenerationId(3);

/// A timeline with a clock, for tests that tell a story.
struct Story {
    timeline: Timeline,
    now: Moment,
    log: Vec<Action>,
}

impl Story {
    fn new() -> Self {
        let timeline = Timeline::new(Settings::default(), ONE);
        Self { timeline, now: Moment::ZERO, log: Vec::new() }
    }

    /// A service whose first generation serves.
    fn serving() -> Self {
        let mut story = Self::new();
        story.on(Event::Reload(Caller(0)));
        story.on(Event::Ready(ONE, Handover::Pause));
        assert_eq!(story.timeline.serving(), Some(ONE));
        story
    }

    fn on(&mut self, event: Event) -> Vec<Action> {
        let actions = self.timeline.on(self.now, event);
        self.log.extend(actions.iter().cloned());
        actions
    }

    /// Lets time pass, deadline by deadline.
    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while let Some(at) = self.timeline.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            actions.extend(self.on(Event::Tick));
        }
        self.now = end;
        actions
    }
}

fn signals(actions: &[Action]) -> Vec<(u64, Signal)> {
    let signal = |action: &Action| match action {
        Action::Signal { id, signal, .. } => Some((id.0, *signal)),
        _ => None,
    };
    actions.iter().filter_map(signal).collect()
}

fn answers(actions: &[Action]) -> Vec<Outcome> {
    let answer = |action: &Action| match action {
        Action::Answer(_, outcome) => Some(outcome.clone()),
        _ => None,
    };
    actions.iter().filter_map(answer).collect()
}

fn starts(actions: &[Action]) -> Vec<(u64, Configuration)> {
    let start = |action: &Action| match action {
        Action::Start { id, configuration, .. } => Some((id.0, *configuration)),
        _ => None,
    };
    actions.iter().filter_map(start).collect()
}

fn serves(id: GenerationId) -> Outcome {
    Outcome::Serving { id, ended: Vec::new(), alone: true }
}

#[test]
fn the_first_start_needs_no_handover() {
    let mut story = Story::new();
    let actions = story.on(Event::Reload(Caller(7)));
    let start = Action::Start { id: ONE, configuration: Configuration::Fresh, older_alive: false };
    assert_eq!(actions, [start]);
    let actions = story.on(Event::Ready(ONE, Handover::Pause));
    assert_eq!(actions, [Action::Serving(ONE), Action::Answer(vec![Caller(7)], serves(ONE))]);
    assert_eq!(story.timeline.deadline(), None);
}

#[test]
fn a_handover_waits_for_the_proof() {
    let mut story = Story::serving();
    story.on(Event::Reload(Caller(1)));
    let actions = story.on(Event::Ready(TWO, Handover::Pause));
    assert_eq!(signals(&actions), [(2, Signal::Stop), (1, Signal::Pause)]);
    assert_eq!(answers(&actions), []);
    let seen = Observation { moving: true, accepting: vec![ONE], silent: vec![] };
    assert_eq!(answers(&story.on(Event::Unproved(seen))), []);
    assert_eq!(signals(&story.pass(100 * MS)), [(1, Signal::Pause)]);
    let actions = story.on(Event::Proved);
    assert_eq!(signals(&actions), [(2, Signal::Continue), (1, Signal::SoftStop)]);
    assert_eq!(answers(&actions), [serves(TWO)]);
    // A lost soft stop is sent again until it is confirmed; then the connections are counted.
    assert_eq!(signals(&story.pass(250 * MS)), [(1, Signal::SoftStop)]);
    assert_eq!(story.on(Event::Stopped(ONE)), [Action::Detach(ONE)]);
    assert_eq!(story.on(Event::Connections(ONE, 3)), []);
    assert_eq!(story.on(Event::Connections(ONE, 0)), [Action::LetGo(ONE)]);
    assert_eq!(story.on(Event::Exited(ONE)), [Action::Gone(ONE)]);
    assert_eq!(story.timeline.deadline(), None);
}

#[test]
fn an_older_generation_that_goes_on_accepting_is_ended() {
    let mut story = Story::serving();
    story.on(Event::Reload(Caller(1)));
    story.on(Event::Ready(TWO, Handover::Pause));
    let seen = Observation { moving: true, accepting: vec![ONE], silent: vec![] };
    story.on(Event::Unproved(seen));
    let actions = story.pass(Duration::from_secs(5));
    assert_eq!(signals(&actions).last(), Some(&(1, Signal::Terminate)));
    assert_eq!(signals(&story.pass(MS * 1000)).last(), Some(&(1, Signal::Kill)));
    story.on(Event::Exited(ONE));
    let outcome = Outcome::Serving { id: TWO, ended: vec![ONE], alone: true };
    assert_eq!(answers(&story.on(Event::Proved)), [outcome]);
}

#[test]
fn a_stranger_that_accepts_is_told_and_no_generation_is_ended_for_it() {
    let mut story = Story::serving();
    story.on(Event::Reload(Caller(1)));
    story.on(Event::Ready(TWO, Handover::Pause));
    story.on(Event::Unproved(Observation { moving: true, ..Observation::default() }));
    let actions = story.pass(Duration::from_secs(5));
    let outcome = Outcome::Serving { id: TWO, ended: vec![], alone: false };
    assert_eq!(answers(&actions), [outcome]);
    assert!(!signals(&actions).contains(&(1, Signal::Terminate)));
}

#[test]
fn a_silent_generation_is_continued_then_killed_so_that_the_service_does_not_stand_still() {
    let mut story = Story::serving();
    story.on(Event::Reload(Caller(1)));
    story.on(Event::Ready(TWO, Handover::Pause));
    let silent = || Event::Unproved(Observation { silent: vec![ONE], ..Observation::default() });
    story.on(silent());
    story.pass(250 * MS);
    assert_eq!(signals(&story.on(silent())), [(1, Signal::Continue)]);
    story.pass(750 * MS);
    assert_eq!(signals(&story.on(silent())), [(1, Signal::Kill)]);
    assert_eq!(signals(&story.on(silent())), []);
}

#[test]
fn without_a_client_each_older_generation_must_confirm() {
    let mut story = Story::serving();
    story.on(Event::Reload(Caller(1)));
    story.on(Event::Ready(TWO, Handover::Pause));
    story.on(Event::Unproved(Observation::default()));
    let actions = story.pass(Duration::from_secs(5));
    assert_eq!(answers(&actions), []);
    let last = [(2, Signal::Continue), (1, Signal::SoftStop)];
    assert!(signals(&actions).ends_with(&last), "{actions:?}");
    assert_eq!(answers(&story.on(Event::Stopped(ONE))), [serves(TWO)]);
}

#[test]
fn a_new_generation_that_dies_while_stopped_gives_way_to_the_older() {
    let mut story = Story::serving();
    story.on(Event::Reload(Caller(1)));
    story.on(Event::Ready(TWO, Handover::Pause));
    let actions = story.on(Event::Exited(TWO));
    assert_eq!(signals(&actions), [(1, Signal::Resume)]);
    assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::DiedInHandover)]);
    assert_eq!(story.timeline.serving(), Some(ONE));
    assert_eq!(starts(&actions), []);
}

#[test]
fn a_bad_configuration_touches_nothing() {
    let mut story = Story::serving();
    story.on(Event::Reload(Caller(1)));
    let actions = story.on(Event::StartFailed(TWO));
    assert_eq!(signals(&actions), []);
    assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::NotStarted)]);
    story.on(Event::Reload(Caller(2)));
    let actions = story.on(Event::Exited(THREE));
    assert_eq!(signals(&actions), []);
    assert_eq!(answers(&actions), [Outcome::Failed(THREE, Failure::Exited)]);
    assert_eq!(story.timeline.serving(), Some(ONE));
}

#[test]
fn a_generation_that_is_not_ready_in_time_is_ended() {
    let mut story = Story::serving();
    story.on(Event::Reload(Caller(1)));
    assert_eq!(signals(&story.pass(Duration::from_secs(30))), [(2, Signal::Terminate)]);
    assert_eq!(signals(&story.pass(Duration::from_secs(1))), [(2, Signal::Kill)]);
    assert_eq!(story.on(Event::Ready(TWO, Handover::Pause)), []);
    let actions = story.on(Event::Exited(TWO));
    assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::NotReady)]);
}

#[test]
fn reloads_coalesce() {
    let mut story = Story::serving();
    story.on(Event::Reload(Caller(1)));
    for caller in 2..50 {
        assert_eq!(story.on(Event::Reload(Caller(caller))), []);
    }
    story.on(Event::Ready(TWO, Handover::Pause));
    let actions = story.on(Event::Proved);
    assert!(actions.contains(&Action::Answer(vec![Caller(1)], serves(TWO))));
    assert_eq!(starts(&actions), [(3, Configuration::Fresh)]);
    story.on(Event::Ready(THREE, Handover::Pause));
    let actions = story.on(Event::Proved);
    let all: Vec<_> = (2..50).map(Caller).collect();
    assert!(actions.contains(&Action::Answer(all, serves(THREE))));
    assert_eq!(starts(&actions), []);
}

#[test]
fn a_crash_starts_the_same_configuration_again_and_backs_off() {
    let mut story = Story::serving();
    let actions = story.on(Event::Exited(ONE));
    assert_eq!(starts(&actions), [(2, Configuration::Of(ONE))]);
    let mut waits = Vec::new();
    for id in 2..13 {
        story.on(Event::Ready(GenerationId(id), Handover::Pause));
        let actions = story.on(Event::Exited(GenerationId(id)));
        let wait = actions.iter().find_map(|action| match action {
            Action::Restart { after, rollback: false, .. } => Some(*after),
            _ => None,
        });
        waits.push(wait.expect("a restart").as_millis());
        story.pass(Duration::from_secs(10));
    }
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000, 10000, 10000]);
}

#[test]
fn a_configuration_that_keeps_dying_gives_way_to_the_last_that_worked() {
    let mut story = Story::serving();
    story.pass(WORKED_AFTER);
    story.on(Event::Reload(Caller(1)));
    story.on(Event::Ready(TWO, Handover::Pause));
    story.on(Event::Proved);
    story.on(Event::Exited(ONE));
    for id in 2..4 {
        let actions = story.on(Event::Exited(GenerationId(id)));
        assert!(!actions.iter().any(|a| matches!(a, Action::Restart { rollback: true, .. })));
        story.pass(Duration::from_secs(1));
        story.on(Event::Ready(GenerationId(id + 1), Handover::Pause));
    }
    let mut actions = story.on(Event::Exited(GenerationId(4)));
    assert!(actions.iter().any(|a| matches!(a, Action::Restart { rollback: true, .. })));
    actions.extend(story.pass(Duration::from_secs(1)));
    assert_eq!(starts(&actions), [(5, Configuration::Of(ONE))]);
}

#[test]
fn an_older_generation_that_drains_is_not_revived() {
    let mut story = Story::serving();
    story.on(Event::Reload(Caller(1)));
    story.on(Event::Ready(TWO, Handover::Pause));
    story.on(Event::Proved);
    story.on(Event::Stopped(ONE));
    let actions = story.on(Event::Exited(TWO));
    assert_eq!(signals(&actions), []);
    assert_eq!(starts(&actions), [(3, Configuration::Of(TWO))]);
}

#[test]
fn a_serving_generation_that_somebody_else_stopped_is_replaced() {
    let mut story = Story::serving();
    let actions = story.on(Event::Stopped(ONE));
    assert_eq!(starts(&actions), [(2, Configuration::Of(ONE))]);
}

#[test]
fn too_many_draining_end_the_oldest() {
    let settings = Settings { max_draining: 2, ..Settings::default() };
    let mut story = Story::new();
    story.timeline = Timeline::new(settings, ONE);
    let mut ended = Vec::new();
    for id in 1..6 {
        story.on(Event::Reload(Caller(id)));
        story.on(Event::Ready(GenerationId(id), Handover::Pause));
        let actions = story.on(Event::Proved);
        ended.extend(signals(&actions).into_iter().filter(|(_, s)| *s == Signal::Terminate));
        if id > 1 {
            story.on(Event::Stopped(GenerationId(id - 1)));
        }
    }
    assert_eq!(ended, [(1, Signal::Terminate), (2, Signal::Terminate)]);
}

#[test]
fn shutdown_drains_and_a_second_one_ends_at_once() {
    let mut story = Story::serving();
    assert_eq!(signals(&story.on(Event::Shutdown)), [(1, Signal::SoftStop)]);
    let late = story.on(Event::Reload(Caller(9)));
    assert_eq!(late, [Action::Answer(vec![Caller(9)], Outcome::ShuttingDown)]);
    assert_eq!(signals(&story.on(Event::Shutdown)), [(1, Signal::Terminate)]);
    assert_eq!(story.on(Event::Exited(ONE)), [Action::Gone(ONE), Action::Exit(Ending::Shutdown)]);
}

#[test]
fn a_service_that_never_served_exits() {
    let mut story = Story::new();
    story.on(Event::Reload(Caller(0)));
    let actions = story.on(Event::Exited(ONE));
    assert_eq!(answers(&actions), [Outcome::Failed(ONE, Failure::Exited)]);
    assert_eq!(actions.last(), Some(&Action::Exit(Ending::NeverServed)));
}

#[test]
fn adopted_generations_go_on_and_ids_only_grow() {
    let mut story = Story::new();
    let found = [(ONE, State::Draining, ONE), (THREE, State::Serving, THREE)];
    let actions = story.timeline.adopt(Moment::ZERO, found);
    assert_eq!(signals(&actions), [(1, Signal::SoftStop)]);
    assert_eq!(story.timeline.serving(), Some(THREE));
    assert_eq!(starts(&story.on(Event::Reload(Caller(1)))), [(4, Configuration::Fresh)]);
}

/// One step of a random story. Indexes choose among the generations that exist then.
#[derive(Debug, Clone)]
enum Step {
    Reload,
    Ready(usize, bool),
    StartFailed(usize),
    Exited(usize),
    Proved,
    Unproved { moving: bool, accepting: usize, silent: usize },
    Stopped(usize),
    Connections(usize, u64),
    Pass(u64),
    Shutdown,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Reload),
        6 => (0..6usize, any::<bool>()).prop_map(|(i, pause)| Step::Ready(i, pause)),
        1 => (0..6usize).prop_map(Step::StartFailed),
        3 => (0..6usize).prop_map(Step::Exited),
        4 => Just(Step::Proved),
        3 => (any::<bool>(), 0..6usize, 0..6usize)
            .prop_map(|(moving, accepting, silent)| Step::Unproved { moving, accepting, silent }),
        4 => (0..6usize).prop_map(Step::Stopped),
        2 => (0..6usize, 0..2u64).prop_map(|(i, n)| Step::Connections(i, n)),
        4 => (0..7000u64).prop_map(Step::Pass),
        1 => Just(Step::Shutdown),
    ]
}

/// What a supervisor that performs the actions would see, small enough to trust.
#[derive(Default)]
struct Model {
    alive: BTreeSet<GenerationId>,
    starting: BTreeSet<GenerationId>,
    newest: u64,
    unanswered: BTreeSet<Caller>,
    stopped_by_us: BTreeMap<GenerationId, bool>,
    touched: BTreeSet<GenerationId>,
    exited: bool,
}

impl Model {
    fn perform(&mut self, timeline: &Timeline, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Start { id, .. } => {
                    assert!(id.0 > self.newest, "ids only grow");
                    assert!(self.starting.is_empty(), "one start at a time");
                    self.newest = id.0;
                    self.alive.insert(*id);
                    self.starting.insert(*id);
                }
                Action::Signal { id, signal, .. } => {
                    assert!(self.alive.contains(id), "a signal to a generation that is gone");
                    self.touched.insert(*id);
                    match signal {
                        Signal::Stop => drop(self.stopped_by_us.insert(*id, true)),
                        Signal::Continue => drop(self.stopped_by_us.remove(id)),
                        _ => {}
                    }
                }
                Action::Answer(callers, outcome) => {
                    for caller in callers {
                        assert!(self.unanswered.remove(caller), "answered once");
                    }
                    if let Outcome::Serving { id, alone: true, .. } = outcome {
                        // Invariant 2: at most one generation accepts once a reload is answered.
                        assert_eq!(timeline.accepting(*id), [], "{outcome:?}");
                    }
                }
                Action::Gone(id) => {
                    assert!(self.alive.remove(id));
                    self.stopped_by_us.remove(id);
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
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Invariants 2, 3 and 5 under random interleavings of everything that can happen.
    #[test]
    fn no_interleaving_breaks_the_invariants(steps in prop::collection::vec(step(), 1..60)) {
        let settings = Settings { max_draining: 3, ..Settings::default() };
        let mut timeline = Timeline::new(settings, ONE);
        let mut model = Model::default();
        let mut now = Moment::ZERO;
        for (n, step) in steps.into_iter().enumerate() {
            let ids: Vec<_> = timeline.generations().map(|(id, _)| id).collect();
            let pick = |i: usize| ids.get(i).copied();
            let serving = timeline.serving();
            model.touched.clear();
            let mut failed_start = false;
            let event = match step {
                Step::Reload => {
                    model.unanswered.insert(Caller(n as u64));
                    Some(Event::Reload(Caller(n as u64)))
                }
                Step::Ready(i, pause) => pick(i).map(|id| {
                    model.starting.remove(&id);
                    Event::Ready(id, if pause { Handover::Pause } else { Handover::SoftStop })
                }),
                Step::StartFailed(i) => pick(i).filter(|id| model.starting.remove(id)).map(|id| {
                    failed_start = true;
                    Event::StartFailed(id)
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
                Step::Stopped(i) => pick(i).map(Event::Stopped),
                Step::Connections(i, n) => pick(i).map(|id| Event::Connections(id, n)),
                Step::Pass(millis) => {
                    now += Duration::from_millis(millis);
                    Some(Event::Tick)
                }
                Step::Shutdown => Some(Event::Shutdown),
            };
            let Some(event) = event else { continue };
            let actions = timeline.on(now, event);
            // `perform` judges each answer by the state after the event.
            model.perform(&timeline, &actions);
            if let (true, Some(serving)) = (failed_start, serving) {
                prop_assert!(!model.touched.contains(&serving), "invariant 3: {actions:?}");
            }
            // Invariant 5: whatever is not simply serving has a deadline.
            let waits = timeline.lives.values().any(|life| life.state() != State::Serving);
            prop_assert!(!waits || timeline.deadline().is_some());
            // A deadline that has passed was acted on: asking again at once does nothing.
            prop_assert_eq!(timeline.on(now, Event::Tick), vec![]);
            // Nobody is left stopped, except while a proof is under way.
            if timeline.pausing().is_none() {
                prop_assert!(model.stopped_by_us.is_empty(), "left stopped: {:?}", actions);
            }
        }
        // From anywhere, a shutdown ends everything in bounded time, and everybody is answered.
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
