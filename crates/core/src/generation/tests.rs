//! The life of generations, by example; random interleavings are in `interleavings`.

mod ending;
mod interleavings;
mod own_stop;
mod paced;
mod restart;
mod stop_first;
mod unkillable;
mod watched;
mod yielding;

use std::time::Duration;

use super::*;

const MS: Duration = Duration::from_millis(1);
const ONE: GenerationId = GenerationId(1);
const TWO: GenerationId = GenerationId(2);
const THREE: GenerationId = GenerationId(3);

/// A timeline with a clock, for tests that play a scenario.
struct Scenario {
    timeline: Timeline,
    now: Moment,
    log: Vec<Action>,
}

impl Scenario {
    fn new() -> Self {
        let timeline = Timeline::new(Settings::default(), ONE);
        Self { timeline, now: Moment::ZERO, log: Vec::new() }
    }

    /// A service whose first generation serves.
    fn serving() -> Self {
        let mut scenario = Self::new();
        scenario.on(Event::Reload(Caller(0)));
        scenario.on(Event::Ready(ONE, Handover::Pause));
        assert_eq!(scenario.timeline.serving(), Some(ONE));
        scenario
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
    let mut scenario = Scenario::new();
    let actions = scenario.on(Event::Reload(Caller(7)));
    let start = Action::Start { id: ONE, configuration: Configuration::Fresh, older_alive: false };
    assert_eq!(actions, [start]);
    let actions = scenario.on(Event::Ready(ONE, Handover::Pause));
    assert_eq!(actions, [Action::Serving(ONE), Action::Answer(vec![Caller(7)], serves(ONE))]);
    assert_eq!(scenario.timeline.deadline(), None);
}

#[test]
fn a_handover_waits_for_the_proof() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    let actions = scenario.on(Event::Ready(TWO, Handover::Pause));
    assert_eq!(signals(&actions), [(2, Signal::Stop), (1, Signal::Pause)]);
    assert_eq!(answers(&actions), []);
    let seen = Observation { moving: true, accepting: vec![ONE], silent: vec![] };
    assert_eq!(answers(&scenario.on(Event::Unproved(seen))), []);
    assert_eq!(signals(&scenario.pass(100 * MS)), [(1, Signal::Pause)]);
    let actions = scenario.on(Event::Proved);
    assert_eq!(signals(&actions), [(2, Signal::Continue), (1, Signal::SoftStop)]);
    assert_eq!(answers(&actions), [serves(TWO)]);
    // A lost soft stop is sent again until it is confirmed; then the connections are counted.
    assert_eq!(signals(&scenario.pass(250 * MS)), [(1, Signal::SoftStop)]);
    assert_eq!(scenario.on(Event::Stopped(ONE)), [Action::Detach(ONE)]);
    assert_eq!(scenario.on(Event::Connections(ONE, 3)), []);
    assert_eq!(scenario.on(Event::Connections(ONE, 0)), [Action::LetGo(ONE)]);
    assert_eq!(scenario.on(Event::Exited(ONE)), [Action::Gone(ONE)]);
    assert_eq!(scenario.timeline.deadline(), None);
}

#[test]
fn one_that_hangs_at_its_end_is_killed_and_no_other() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    scenario.on(Event::Proved);
    assert_eq!(scenario.on(Event::Hangs(ONE)), [], "it may still accept");
    scenario.on(Event::Stopped(ONE));
    assert_eq!(scenario.on(Event::Hangs(TWO)), [], "it serves");
    assert_eq!(signals(&scenario.on(Event::Hangs(ONE))), [(1, Signal::Kill)]);
    assert_eq!(scenario.on(Event::Exited(ONE)), [Action::Gone(ONE)]);
}

#[test]
fn an_older_generation_that_goes_on_accepting_is_ended() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    let seen = Observation { moving: true, accepting: vec![ONE], silent: vec![] };
    scenario.on(Event::Unproved(seen));
    let actions = scenario.pass(Duration::from_secs(5));
    assert_eq!(signals(&actions).last(), Some(&(1, Signal::Terminate)));
    assert_eq!(signals(&scenario.pass(MS * 1000)).last(), Some(&(1, Signal::Kill)));
    scenario.on(Event::Exited(ONE));
    let outcome = Outcome::Serving { id: TWO, ended: vec![ONE], alone: true };
    assert_eq!(answers(&scenario.on(Event::Proved)), [outcome]);
}

#[test]
fn a_stranger_that_accepts_is_told_when_no_older_generation_is_left() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    let moving = || Event::Unproved(Observation { moving: true, ..Observation::default() });
    scenario.on(moving());
    let actions = scenario.pass(Duration::from_secs(5));
    assert_eq!(signals(&actions).last(), Some(&(1, Signal::Terminate)));
    assert_eq!(answers(&actions), []);
    scenario.on(Event::Exited(ONE));
    scenario.on(moving());
    let mut actions = scenario.pass(Duration::from_secs(2));
    assert_eq!(answers(&actions), [], "it was seen before all were gone, for all that is known");
    scenario.on(moving());
    actions.extend(scenario.pass(Duration::from_secs(1)));
    let outcome = Outcome::Serving { id: TWO, ended: vec![ONE], alone: false };
    assert_eq!(answers(&actions), [outcome]);
}

#[test]
fn one_that_the_kernel_ends_late_is_not_taken_for_a_stranger() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    let moving = || Event::Unproved(Observation { moving: true, ..Observation::default() });
    scenario.on(moving());
    scenario.pass(Duration::from_secs(5));
    // It ignores SIGTERM too, and takes two seconds to die of SIGKILL.
    let mut actions = Vec::new();
    for _ in 0..30 {
        actions.extend(scenario.pass(100 * MS));
        actions.extend(scenario.on(moving()));
    }
    assert_eq!(answers(&actions), []);
    scenario.on(Event::Exited(ONE));
    let outcome = Outcome::Serving { id: TWO, ended: vec![ONE], alone: true };
    assert_eq!(answers(&scenario.on(Event::Proved)), [outcome]);
}

#[test]
fn one_that_the_kernel_never_ends_does_not_keep_clients_waiting_for_ever() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    let moving = || Event::Unproved(Observation { moving: true, ..Observation::default() });
    scenario.on(moving());
    let mut actions = scenario.pass(Duration::from_secs(5));
    for _ in 0..80 {
        actions.extend(scenario.on(moving()));
        actions.extend(scenario.pass(100 * MS));
    }
    let outcome = Outcome::Serving { id: TWO, ended: vec![ONE], alone: false };
    assert_eq!(answers(&actions), [outcome]);
}

#[test]
fn one_that_is_proved_not_to_accept_must_confirm_its_stop_all_the_same() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    assert_eq!(answers(&scenario.on(Event::Proved)), [serves(TWO)]);
    let actions = scenario.pass(Duration::from_secs(5));
    assert_eq!(signals(&actions).last(), Some(&(1, Signal::Terminate)));
    assert_eq!(signals(&scenario.pass(Duration::from_secs(1))), [(1, Signal::Kill)]);
}

#[test]
fn a_silent_generation_is_continued_then_killed_so_that_the_service_does_not_stand_still() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    let silent = || Event::Unproved(Observation { silent: vec![ONE], ..Observation::default() });
    scenario.on(silent());
    scenario.pass(250 * MS);
    assert_eq!(signals(&scenario.on(silent())), [(1, Signal::Continue)]);
    scenario.pass(750 * MS);
    assert_eq!(signals(&scenario.on(silent())), [(1, Signal::Kill)]);
    assert_eq!(signals(&scenario.on(silent())), []);
}

#[test]
fn without_a_client_each_older_generation_must_confirm() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    scenario.on(Event::Unproved(Observation::default()));
    let actions = scenario.pass(Duration::from_secs(5));
    assert_eq!(answers(&actions), []);
    assert_eq!(signals(&actions).last(), Some(&(1, Signal::SoftStop)));
    let actions = scenario.on(Event::Stopped(ONE));
    assert_eq!(signals(&actions), [(2, Signal::Continue)]);
    assert_eq!(answers(&actions), [serves(TWO)]);
}

#[test]
fn where_nothing_can_be_paused_the_newer_waits_until_the_older_has_stopped() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    let actions = scenario.on(Event::Ready(TWO, Handover::StopFirst));
    assert_eq!(signals(&actions), [(2, Signal::Stop), (1, Signal::SoftStop)]);
    assert_eq!(scenario.timeline.serving(), None);
    assert_eq!(signals(&scenario.on(Event::Stopped(ONE))), []);
    let actions = scenario.on(Event::Proved);
    assert_eq!(signals(&actions), [(2, Signal::Continue)]);
    assert!(actions.contains(&Action::Serving(TWO)));
    assert_eq!(answers(&actions), [serves(TWO)]);
    // If it dies while it waits, the older one cannot come back: its configuration starts again.
    scenario.on(Event::Reload(Caller(2)));
    scenario.on(Event::Ready(THREE, Handover::StopFirst));
    let actions = scenario.on(Event::Exited(THREE));
    assert_eq!(answers(&actions), [Outcome::Failed(THREE, Failure::DiedInHandover)]);
    assert_eq!(starts(&actions), [(4, Configuration::Of(TWO))]);
}

#[test]
fn a_new_generation_that_dies_while_stopped_gives_way_to_the_older() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    let actions = scenario.on(Event::Exited(TWO));
    assert_eq!(signals(&actions), [(1, Signal::Resume)]);
    assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::DiedInHandover)]);
    assert_eq!(scenario.timeline.serving(), Some(ONE));
    assert_eq!(starts(&actions), []);
}

#[test]
fn a_bad_configuration_touches_nothing() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    let actions = scenario.on(Event::StartFailed(TWO));
    assert_eq!(signals(&actions), []);
    assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::NotStarted)]);
    scenario.on(Event::Reload(Caller(2)));
    let actions = scenario.on(Event::Exited(THREE));
    assert_eq!(signals(&actions), []);
    assert_eq!(answers(&actions), [Outcome::Failed(THREE, Failure::Exited)]);
    assert_eq!(scenario.timeline.serving(), Some(ONE));
}

#[test]
fn a_generation_that_is_not_ready_in_time_is_ended() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    assert_eq!(signals(&scenario.pass(Duration::from_secs(30))), [(2, Signal::Terminate)]);
    assert_eq!(signals(&scenario.pass(Duration::from_secs(1))), [(2, Signal::Kill)]);
    assert_eq!(scenario.on(Event::Ready(TWO, Handover::Pause)), []);
    let actions = scenario.on(Event::Exited(TWO));
    assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::NotReady)]);
}

#[test]
fn reloads_coalesce() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    for caller in 2..50 {
        assert_eq!(scenario.on(Event::Reload(Caller(caller))), []);
    }
    scenario.on(Event::Ready(TWO, Handover::Pause));
    let actions = scenario.on(Event::Proved);
    assert!(actions.contains(&Action::Answer(vec![Caller(1)], serves(TWO))));
    assert_eq!(starts(&actions), [(3, Configuration::Fresh)]);
    scenario.on(Event::Ready(THREE, Handover::Pause));
    let actions = scenario.on(Event::Proved);
    let all: Vec<_> = (2..50).map(Caller).collect();
    assert!(actions.contains(&Action::Answer(all, serves(THREE))));
    assert_eq!(starts(&actions), []);
}

fn found(id: GenerationId, state: State, configuration: GenerationId) -> Found {
    Found { id, state, configuration, served: Moment::ZERO }
}

/// The next supervisor, or the next image of this one, rolls back as this one would.
#[test]
fn what_worked_is_known_to_the_next_supervisor() {
    let now = Moment::from_secs(60);
    for (served, worked) in [(8, None), (8, Some(ONE)), (12, None)] {
        let mut scenario = Scenario::new();
        scenario.pass(now);
        let serves = Found { served: Moment::from_secs(served), ..found(TWO, State::Serving, TWO) };
        scenario.timeline.adopt(now, [serves], worked);
        // The total serving time counts.
        scenario.pass(Moment::from_secs(3));
        scenario.on(Event::Reload(Caller(1)));
        scenario.on(Event::Ready(THREE, Handover::Pause));
        scenario.on(Event::Proved);
        assert_eq!(scenario.timeline.worked(), Some(TWO), "{served} s, {worked:?}");
        assert!(scenario.timeline.configurations().any(|of| of == TWO), "its copies stay");
    }
    let mut scenario = Scenario::new();
    scenario.pass(now);
    scenario.timeline.adopt(now, [found(TWO, State::Serving, TWO)], Some(ONE));
    for id in 2..5 {
        assert!(scenario.timeline.configurations().any(|of| of == ONE), "its copies stay");
        scenario.on(Event::Exited(GenerationId(id)));
        scenario.pass(Duration::from_secs(1));
        scenario.on(Event::Ready(GenerationId(id + 1), Handover::Pause));
    }
    assert_eq!(scenario.timeline.configuration_of(GenerationId(5)), Some(ONE));
}

#[test]
fn adopted_generations_go_on_and_ids_only_grow() {
    let mut scenario = Scenario::new();
    let found = [found(ONE, State::Draining, ONE), found(THREE, State::Serving, THREE)];
    let actions = scenario.timeline.adopt(Moment::ZERO, found, None);
    assert_eq!(signals(&actions), [(1, Signal::SoftStop)]);
    assert_eq!(scenario.timeline.serving(), Some(THREE));
    assert_eq!(starts(&scenario.on(Event::Reload(Caller(1)))), [(4, Configuration::Fresh)]);
}
