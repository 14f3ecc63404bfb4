//! Processes that not even SIGKILL ends: they wait for a disk, or their cgroup is frozen.

use super::*;

const RETIRE: Duration = Duration::from_secs(5);

#[test]
fn an_older_one_does_not_keep_the_new_one_waiting_for_ever() {
    for how in [Handover::Pause, Handover::StopFirst, Handover::SoftStop] {
        let mut scenario = Scenario::serving();
        scenario.on(Event::Reload(Caller(1)));
        scenario.on(Event::Ready(TWO, how));
        let actions = scenario.pass(RETIRE + TERM_TO_KILL);
        assert_eq!(signals(&actions).last(), Some(&(1, Signal::Kill)), "{how:?}");
        assert_eq!(answers(&actions), [], "{how:?}");
        let actions = scenario.pass(KILLED_TO_GONE + QUEUES_STILL);
        let outcome = Outcome::Serving { id: TWO, ended: vec![ONE], alone: false };
        assert_eq!(answers(&actions), [outcome], "{how:?}");
        assert_eq!(scenario.timeline.serving(), Some(TWO), "{how:?}");
    }
}

#[test]
fn an_older_one_that_is_still_there_delays_no_later_reload() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::StopFirst));
    scenario.pass(RETIRE + TERM_TO_KILL + KILLED_TO_GONE + QUEUES_STILL);
    for (newer, proof) in [(THREE, false), (GenerationId(4), true)] {
        scenario.on(Event::Reload(Caller(newer.0)));
        scenario.on(Event::Ready(newer, Handover::StopFirst));
        scenario.on(Event::Stopped(GenerationId(newer.0 - 1)));
        let actions = match proof {
            true => scenario.on(Event::Proved),
            false => scenario.pass(QUEUES_STILL),
        };
        // Without a client nothing shows that it does not accept.
        let outcome = match proof {
            true => serves(newer),
            false => Outcome::Serving { id: newer, ended: vec![ONE], alone: false },
        };
        assert_eq!(answers(&actions), [outcome]);
    }
}

#[test]
fn a_new_one_is_given_up_and_the_next_reload_begins() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Reload(Caller(2)));
    let actions = scenario.pass(Duration::from_secs(30) + TERM_TO_KILL);
    assert_eq!(signals(&actions), [(2, Signal::Terminate), (2, Signal::Kill)]);
    assert_eq!(answers(&actions), []);
    let actions = scenario.pass(KILLED_TO_GONE);
    assert!(actions.contains(&Action::GivenUp(TWO)), "{actions:?}");
    assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::NotReady)]);
    assert_eq!(starts(&actions), [(3, Configuration::Fresh)]);
    scenario.on(Event::Ready(THREE, Handover::Pause));
    assert_eq!(answers(&scenario.on(Event::Proved)), [serves(THREE)]);
    assert_eq!(scenario.on(Event::Exited(TWO)), [Action::Gone(TWO)]);
}

#[test]
fn a_new_one_that_is_refused_is_given_up_too() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    scenario.on(Event::Refused(TWO));
    let actions = scenario.pass(2 * TERM_TO_KILL + KILLED_TO_GONE);
    assert_eq!(signals(&actions).last(), Some(&(1, Signal::Resume)), "{actions:?}");
    assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::DiedInHandover)]);
    assert_eq!(scenario.timeline.serving(), Some(ONE));
    assert_eq!(scenario.on(Event::Ready(TWO, Handover::Pause)), [], "it is too late");
}
