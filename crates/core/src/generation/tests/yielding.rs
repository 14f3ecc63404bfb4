//! Older generations let go of an address that the new one cannot bind, but only for a moment.

use super::*;

/// A service whose second generation starts and cannot bind an address of the first.
fn yielding() -> Scenario {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    let guard = Action::Guard { newer: TWO, paused: vec![ONE] };
    let actions = scenario.on(Event::AddressInUse(TWO));
    assert_eq!(actions.first(), Some(&guard), "before the signal");
    assert_eq!(signals(&actions), [(1, Signal::Pause)]);
    scenario
}

#[test]
fn the_new_one_takes_over_from_one_that_has_let_go() {
    let mut scenario = yielding();
    assert_eq!(scenario.on(Event::AddressInUse(TWO)), [], "asked again, 100 times a second");
    let actions = scenario.on(Event::Ready(TWO, Handover::Pause));
    assert_eq!(signals(&actions), [(2, Signal::Stop), (1, Signal::Pause)]);
    let actions = scenario.on(Event::Proved);
    assert_eq!(signals(&actions), [(2, Signal::Continue), (1, Signal::SoftStop)]);
    assert_eq!(answers(&actions), [serves(TWO)]);
}

#[test]
fn one_that_does_not_get_it_in_time_keeps_nobody_paused() {
    let mut scenario = yielding();
    let actions = scenario.pass(PAUSED_FOR_ADDRESS);
    assert_eq!(signals(&actions), [(1, Signal::Resume)]);
    assert_eq!(actions.last(), Some(&Action::Guard { newer: TWO, paused: vec![] }));
    assert_eq!(scenario.on(Event::AddressInUse(TWO)), [], "once for each start");
    assert_eq!(scenario.on(Event::GaveUp(TWO)), []);
    // It may have bound an address of the older one, which is free only now.
    let actions = scenario.on(Event::Exited(TWO));
    assert_eq!(signals(&actions), [(1, Signal::Resume)]);
    assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::Exited)]);
    assert_eq!(scenario.timeline.serving(), Some(ONE));
    scenario.on(Event::Reload(Caller(2)));
    assert_eq!(signals(&scenario.on(Event::AddressInUse(THREE))), [(1, Signal::Pause)]);
}

#[test]
fn one_that_gives_up_or_dies_lets_the_older_resume_at_once() {
    let mut scenario = yielding();
    assert_eq!(signals(&scenario.on(Event::GaveUp(TWO))), [(1, Signal::Resume)]);
    assert_eq!(signals(&scenario.on(Event::Exited(TWO))), [(1, Signal::Resume)]);
    let mut scenario = yielding();
    let actions = scenario.on(Event::Exited(TWO));
    let resumed = actions.iter().position(|a| matches!(a, Action::Signal { .. }));
    let gone = actions.iter().position(|a| *a == Action::Gone(TWO));
    assert!(resumed < gone, "its end is forgotten only then: {actions:?}");
}

#[test]
fn nobody_is_paused_for_one_that_does_not_start() {
    let mut scenario = Scenario::serving();
    assert_eq!(scenario.on(Event::AddressInUse(ONE)), [], "it serves");
    scenario.on(Event::Reload(Caller(1)));
    // Two signals at the same moment arrive in the order of their numbers.
    assert_eq!(scenario.on(Event::GaveUp(TWO)), []);
    assert_eq!(scenario.on(Event::AddressInUse(TWO)), []);
    scenario.on(Event::Exited(TWO));
    scenario.on(Event::Reload(Caller(2)));
    scenario.pass(Duration::from_secs(30));
    assert_eq!(scenario.on(Event::AddressInUse(THREE)), [], "it is being ended");
}
