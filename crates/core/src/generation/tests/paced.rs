//! Reloads that come too fast, and starts that take long.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn paced(min_interval: Duration) -> Scenario {
    let settings = Settings { min_interval, ..Settings::default() };
    let mut scenario = Scenario { timeline: Timeline::new(settings, ONE), ..Scenario::new() };
    scenario.on(Event::Reload(Caller(0)));
    scenario.on(Event::Ready(ONE, Handover::Pause));
    scenario
}

#[test]
fn reloads_that_come_while_one_waits_are_answered_by_the_one_that_runs() {
    let mut scenario = paced(10 * SECOND);
    for caller in 1..4 {
        assert_eq!(starts(&scenario.pass(SECOND)), []);
        assert_eq!(scenario.on(Event::Reload(Caller(caller))), []);
    }
    assert_eq!(scenario.timeline.reload_due(), Some(10 * SECOND));
    assert_eq!(scenario.timeline.reloads_waiting(), 3);
    // The files are read then, after all three callers have asked.
    assert_eq!(starts(&scenario.pass(7 * SECOND)), [(2, Configuration::Fresh)]);
    // A later caller may have newer files than those that were read.
    assert_eq!(scenario.on(Event::Reload(Caller(4))), []);
    let failed = Outcome::Failed(TWO, Failure::Exited);
    let answer = Action::Answer(vec![Caller(1), Caller(2), Caller(3)], failed);
    assert_eq!(scenario.on(Event::Exited(TWO)), [Action::Gone(TWO), answer]);
    assert_eq!(starts(&scenario.pass(9 * SECOND)), []);
    assert_eq!(starts(&scenario.pass(SECOND)), [(3, Configuration::Fresh)]);
    scenario.on(Event::Ready(THREE, Handover::Pause));
    let answer = Action::Answer(vec![Caller(4)], serves(THREE));
    assert!(scenario.on(Event::Proved).contains(&answer));
}

#[test]
fn a_reload_does_not_wait_where_nothing_serves_or_what_serves_is_about_to_leave() {
    let mut scenario = paced(10 * SECOND);
    scenario.on(Event::Reload(Caller(1)));
    let actions = scenario.on(Event::Exited(ONE));
    assert_eq!(starts(&actions), [(2, Configuration::Fresh)]);
    scenario.on(Event::Ready(TWO, Handover::Pause));
    scenario.on(Event::Reload(Caller(2)));
    let actions = scenario.on(Event::ReloadAtOnce(Caller(3)));
    assert_eq!(starts(&actions), [(3, Configuration::Fresh)]);
}

#[test]
fn one_that_cannot_share_a_reload_has_the_next_one_and_what_comes_later_shares_that() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Reload(Caller(2)));
    scenario.on(Event::ReloadApart(Caller(3)));
    scenario.on(Event::Reload(Caller(4)));
    assert_eq!(scenario.timeline.callers(), [Caller(1)]);
    assert_eq!(scenario.timeline.reloads_waiting(), 3);
    for (newer, callers) in [(TWO, vec![1]), (THREE, vec![2]), (GenerationId(4), vec![3, 4])] {
        let callers: Vec<_> = callers.into_iter().map(Caller).collect();
        assert_eq!(scenario.timeline.callers(), callers);
        scenario.on(Event::Ready(newer, Handover::Pause));
        let answer = Action::Answer(callers, serves(newer));
        assert!(scenario.on(Event::Proved).contains(&answer));
    }
    assert_eq!(scenario.timeline.reloads_waiting(), 0);
    // At a shutdown each of them is answered.
    scenario.on(Event::Reload(Caller(5)));
    scenario.on(Event::ReloadApart(Caller(6)));
    scenario.on(Event::ReloadApart(Caller(7)));
    let all = vec![Caller(5), Caller(6), Caller(7)];
    let answer = Action::Answer(all, Outcome::ShuttingDown);
    assert!(scenario.on(Event::Shutdown).contains(&answer));
}

#[test]
fn a_start_may_take_long_while_it_makes_progress_and_not_for_ever() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    let limit = Settings::default().ready_timeout;
    // Progress 19 times just before the deadline: longer in all than without progress.
    for _ in 1..LONGEST_START {
        assert_eq!(signals(&scenario.pass(limit - MS)), []);
        scenario.on(Event::Progress(TWO));
    }
    assert_eq!(signals(&scenario.pass(limit)), [(2, Signal::Terminate)], "no further progress");
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    for _ in 0..2 * LONGEST_START - 1 {
        assert_eq!(signals(&scenario.pass(limit / 2)), []);
        scenario.on(Event::Progress(TWO));
    }
    assert_eq!(signals(&scenario.pass(limit / 2)), [(2, Signal::Terminate)], "the bound");
}
