//! What is started in place of a generation that ended by itself.

use super::*;

#[test]
fn a_crash_starts_the_same_configuration_again_and_backs_off() {
    let mut scenario = Scenario::serving();
    let actions = scenario.on(Event::Exited(ONE));
    assert_eq!(starts(&actions), [(2, Configuration::Of(ONE))]);
    let mut waits = Vec::new();
    for id in 2..13 {
        scenario.on(Event::Ready(GenerationId(id), Handover::Pause));
        let actions = scenario.on(Event::Exited(GenerationId(id)));
        let wait = actions.iter().find_map(|action| match action {
            Action::Restart { after, rollback: false, .. } => Some(*after),
            _ => None,
        });
        waits.push(wait.expect("a restart").as_millis());
        scenario.pass(Duration::from_secs(10));
    }
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000, 10000, 10000]);
}

#[test]
fn one_that_served_for_a_while_is_started_again_at_once_each_time() {
    let mut scenario = Scenario::serving();
    for id in 1..8 {
        scenario.pass(SERVED_A_WHILE);
        let actions = scenario.on(Event::Exited(GenerationId(id)));
        assert_eq!(starts(&actions), [(id + 1, Configuration::Of(ONE))]);
        scenario.on(Event::Ready(GenerationId(id + 1), Handover::Pause));
    }
}

#[test]
fn a_configuration_that_keeps_dying_gives_way_to_the_last_that_worked() {
    let mut scenario = Scenario::serving();
    scenario.pass(WORKED_AFTER);
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    scenario.on(Event::Proved);
    scenario.on(Event::Exited(ONE));
    for id in 2..4 {
        let actions = scenario.on(Event::Exited(GenerationId(id)));
        assert!(!actions.iter().any(|a| matches!(a, Action::Restart { rollback: true, .. })));
        scenario.pass(Duration::from_secs(1));
        scenario.on(Event::Ready(GenerationId(id + 1), Handover::Pause));
    }
    let mut actions = scenario.on(Event::Exited(GenerationId(4)));
    assert!(actions.iter().any(|a| matches!(a, Action::Restart { rollback: true, .. })));
    actions.extend(scenario.pass(Duration::from_secs(1)));
    assert_eq!(starts(&actions), [(5, Configuration::Of(ONE))]);
}

/// The wait that was announced.
fn wait(actions: &[Action]) -> Option<Duration> {
    actions.iter().find_map(|action| match action {
        Action::Restart { after, .. } => Some(*after),
        _ => None,
    })
}

/// The host lacks something, say, that every configuration needs by now.
#[test]
fn where_the_last_that_worked_fails_too_the_waits_grow_all_the_same() {
    let mut scenario = Scenario::serving();
    scenario.pass(WORKED_AFTER);
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    scenario.on(Event::Proved);
    scenario.on(Event::Exited(ONE));
    let (mut waits, mut started) = (Vec::new(), Vec::new());
    for id in 2..13 {
        let mut actions = scenario.on(Event::Exited(GenerationId(id)));
        waits.push(wait(&actions).expect("a restart").as_millis());
        actions.extend(scenario.pass(BACKOFF_LAST));
        started.extend(starts(&actions).into_iter().map(|(_, of)| of));
    }
    assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000, 10000]);
    for of in [ONE, TWO] {
        assert!(started.contains(&Configuration::Of(of)), "both are tried: {started:?}");
    }
}

#[test]
fn a_new_configuration_does_not_wait_for_the_crashes_of_the_one_before() {
    let mut scenario = Scenario::serving();
    for id in 1..6 {
        scenario.on(Event::Exited(GenerationId(id)));
        scenario.pass(BACKOFF_LAST);
        scenario.on(Event::Ready(GenerationId(id + 1), Handover::Pause));
    }
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(GenerationId(7), Handover::Pause));
    scenario.on(Event::Proved);
    scenario.on(Event::Exited(GenerationId(6)));
    let actions = scenario.on(Event::Exited(GenerationId(7)));
    assert_eq!(starts(&actions), [(8, Configuration::Of(GenerationId(7)))]);
}

#[test]
fn an_older_generation_that_drains_is_not_revived() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    scenario.on(Event::Proved);
    scenario.on(Event::Stopped(ONE));
    let actions = scenario.on(Event::Exited(TWO));
    assert_eq!(signals(&actions), []);
    assert_eq!(starts(&actions), [(3, Configuration::Of(TWO))]);
}

#[test]
fn a_serving_generation_that_somebody_else_stopped_is_replaced() {
    let mut scenario = Scenario::serving();
    let actions = scenario.on(Event::Stopped(ONE));
    assert_eq!(starts(&actions), [(2, Configuration::Of(ONE))]);
}
