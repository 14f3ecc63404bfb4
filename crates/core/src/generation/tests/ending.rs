//! How generations are ended: those that drain, and all at shutdown.

use super::*;

#[test]
fn too_many_draining_end_the_oldest() {
    let settings = Settings { max_draining: 2, ..Settings::default() };
    let mut scenario = Scenario::new();
    scenario.timeline = Timeline::new(settings, ONE);
    let mut ended = Vec::new();
    for id in 1..6 {
        scenario.on(Event::Reload(Caller(id)));
        scenario.on(Event::Ready(GenerationId(id), Handover::Pause));
        let actions = scenario.on(Event::Proved);
        ended.extend(signals(&actions).into_iter().filter(|(_, s)| *s == Signal::Terminate));
        if id > 1 {
            scenario.on(Event::Stopped(GenerationId(id - 1)));
        }
    }
    assert_eq!(ended, [(1, Signal::Terminate), (2, Signal::Terminate)]);
}

#[test]
fn a_reload_may_say_how_long_older_generations_drain() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    scenario.on(Event::Proved);
    let hour = Duration::from_secs(3600);
    // Both before it has stopped and after.
    assert_eq!(scenario.on(Event::DrainTimeout(ONE, hour)), []);
    scenario.on(Event::Stopped(ONE));
    assert_eq!(scenario.pass(hour - Duration::from_secs(1)), []);
    assert_eq!(scenario.on(Event::DrainTimeout(ONE, Duration::from_secs(5))), []);
    assert_eq!(scenario.on(Event::DrainTimeout(TWO, Duration::ZERO)), [], "it serves");
    assert_eq!(scenario.pass(Duration::from_secs(4)), []);
    assert_eq!(signals(&scenario.pass(Duration::from_secs(1))), [(1, Signal::Terminate)]);
}

#[test]
fn retiring_ends_what_drains_and_leaves_what_serves() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    assert_eq!(scenario.on(Event::Retire(TWO)), [], "it is being started");
    scenario.on(Event::Ready(TWO, Handover::Pause));
    scenario.on(Event::Proved);
    scenario.on(Event::Stopped(ONE));
    assert_eq!(scenario.on(Event::Retire(TWO)), [], "it serves");
    assert_eq!(signals(&scenario.on(Event::Retire(ONE))), [(1, Signal::Terminate)]);
    assert_eq!(scenario.on(Event::Retire(ONE)), [], "it is on its way");
    assert_eq!(signals(&scenario.pass(TERM_TO_KILL)), [(1, Signal::Kill)]);
    assert_eq!(scenario.on(Event::Exited(ONE)), [Action::Gone(ONE)]);
    assert_eq!(scenario.timeline.serving(), Some(TWO));
}

#[test]
fn shutdown_drains_and_a_second_one_ends_at_once() {
    let mut scenario = Scenario::serving();
    assert_eq!(signals(&scenario.on(Event::Shutdown)), [(1, Signal::SoftStop)]);
    let late = scenario.on(Event::Reload(Caller(9)));
    assert_eq!(late, [Action::Answer(vec![Caller(9)], Outcome::ShuttingDown)]);
    assert_eq!(signals(&scenario.on(Event::Shutdown)), [(1, Signal::Terminate)]);
    assert_eq!(
        scenario.on(Event::Exited(ONE)),
        [Action::Gone(ONE), Action::Exit(Ending::Shutdown)]
    );
}

#[test]
fn shutdown_cuts_nobody_who_was_accepted_before_the_readiness_was_known() {
    let mut scenario = Scenario::new();
    scenario.on(Event::Reload(Caller(0)));
    let actions = scenario.on(Event::Shutdown);
    assert_eq!(signals(&actions), [(1, Signal::SoftStop)]);
    assert_eq!(answers(&actions), [Outcome::ShuttingDown]);
    assert!(actions.contains(&Action::WatchStop(ONE)));
    assert_eq!(scenario.on(Event::Ready(ONE, Handover::Pause)), [], "it is too late");
    scenario.on(Event::Stopped(ONE));
    assert_eq!(
        scenario.on(Event::Exited(ONE)),
        [Action::Gone(ONE), Action::Exit(Ending::Shutdown)]
    );
}

#[test]
fn a_service_that_never_served_exits() {
    let mut scenario = Scenario::new();
    scenario.on(Event::Reload(Caller(0)));
    let actions = scenario.on(Event::Exited(ONE));
    assert_eq!(answers(&actions), [Outcome::Failed(ONE, Failure::Exited)]);
    assert_eq!(actions.last(), Some(&Action::Exit(Ending::NeverServed)));
}

/// A start that fails has an answer, also beside what an earlier supervisor has left.
#[test]
fn what_drains_keeps_no_service_that_never_served() {
    let mut scenario = Scenario::new();
    scenario.timeline.adopt(Moment::ZERO, [found(ONE, State::Draining, ONE)], None);
    scenario.on(Event::Reload(Caller(0)));
    let actions = scenario.on(Event::Exited(TWO));
    assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::Exited)]);
    assert_eq!(actions.last(), Some(&Action::Exit(Ending::NeverServed)));
}
