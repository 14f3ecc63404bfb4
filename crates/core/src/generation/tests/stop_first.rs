//! The handover of programs that cannot pause: the older one stops for good, the accept queues are
//! watched, then the new one continues.

use super::*;

/// A service whose second generation waits and whose first is told to stop.
fn stopping() -> Scenario {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    let actions = scenario.on(Event::Ready(TWO, Handover::StopFirst));
    assert_eq!(signals(&actions), [(2, Signal::Stop), (1, Signal::SoftStop)]);
    assert_eq!(answers(&actions), []);
    scenario
}

/// The same once the first has confirmed.
fn proving() -> Scenario {
    let mut scenario = stopping();
    let actions = scenario.on(Event::Stopped(ONE));
    let prove = Action::Prove { newer: TWO, older: vec![ONE] };
    assert_eq!(actions, [Action::Detach(ONE), prove]);
    assert_eq!(scenario.timeline.serving(), None, "nobody accepts while it is proved");
    scenario
}

#[test]
fn the_new_one_goes_on_when_the_queues_stand_still() {
    let mut scenario = proving();
    let actions = scenario.on(Event::Proved);
    assert_eq!(actions[0], Action::EndProof);
    assert_eq!(signals(&actions), [(2, Signal::Continue)]);
    assert_eq!(answers(&actions), [serves(TWO)]);
    assert_eq!(scenario.timeline.serving(), Some(TWO));
}

#[test]
fn without_a_client_the_closed_descriptors_must_do() {
    let mut scenario = proving();
    assert_eq!(scenario.on(Event::Unproved(Observation::default())), []);
    let actions = scenario.pass(QUEUES_STILL);
    assert_eq!(signals(&actions), [(2, Signal::Continue)]);
    assert_eq!(answers(&actions), [serves(TWO)]);
}

#[test]
fn somebody_who_still_accepts_is_nobody_of_ours() {
    let mut scenario = proving();
    let seen = Observation { moving: true, ..Observation::default() };
    scenario.on(Event::Unproved(seen));
    let actions = scenario.pass(QUEUES_STILL);
    assert_eq!(answers(&actions), [Outcome::Serving { id: TWO, ended: vec![], alone: false }]);
    assert_eq!(scenario.timeline.serving(), Some(TWO));
}

#[test]
fn one_that_does_not_stop_is_signalled_again_and_ended() {
    let mut scenario = stopping();
    let actions = scenario.pass(Duration::from_secs(5));
    let again = signals(&actions);
    assert!(again.iter().filter(|s| **s == (1, Signal::SoftStop)).count() > 10, "{again:?}");
    assert_eq!(again.last(), Some(&(1, Signal::Terminate)));
    assert_eq!(signals(&scenario.pass(TERM_TO_KILL)), [(1, Signal::Kill)]);
    scenario.on(Event::Exited(ONE));
    let actions = scenario.on(Event::Proved);
    let ended = vec![ONE];
    assert_eq!(answers(&actions), [Outcome::Serving { id: TWO, ended, alone: true }]);
}

#[test]
fn a_new_one_that_dies_meanwhile_is_replaced_by_what_served() {
    for mut scenario in [stopping(), proving()] {
        let actions = scenario.on(Event::Exited(TWO));
        assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::DiedInHandover)]);
        assert_eq!(starts(&actions), [(3, Configuration::Of(ONE))]);
    }
}

#[test]
fn a_shutdown_meanwhile_ends_the_new_one_and_leaves_nobody_stopped() {
    let mut scenario = proving();
    let actions = scenario.on(Event::Shutdown);
    assert!(actions.contains(&Action::EndProof));
    assert_eq!(signals(&actions), [(2, Signal::Terminate), (2, Signal::Continue)]);
    assert_eq!(answers(&actions), [Outcome::ShuttingDown]);
}

/// Until the refused process is gone, nothing that the older one does makes it serve.
#[test]
fn a_new_one_that_is_refused_serves_never() {
    for mut scenario in [stopping(), proving()] {
        scenario.on(Event::Refused(TWO));
        let stopped = scenario.on(Event::Stopped(ONE));
        let proved = scenario.on(Event::Proved);
        let ready = scenario.on(Event::Ready(TWO, Handover::StopFirst));
        let late = scenario.pass(QUEUES_STILL);
        for actions in [stopped, proved, ready, late] {
            assert_eq!(answers(&actions), []);
            assert_eq!(scenario.timeline.serving(), None);
        }
        let actions = scenario.on(Event::Exited(TWO));
        assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::DiedInHandover)]);
        assert_eq!(starts(&actions), [(3, Configuration::Of(ONE))]);
    }
}
