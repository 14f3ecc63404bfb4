//! The order of the actions: if the supervisor ends between two of them, its watchdog does the
//! rest, as the last [`Action::Guard`] or the readiness of the new generation has told it.

use super::*;

fn position(actions: &[Action], wanted: &Action) -> Option<usize> {
    actions.iter().position(|action| action == wanted)
}

/// The watchdog has nothing to do any more when the new one serves.
#[test]
fn the_older_ones_are_told_to_stop_before_the_new_one_serves() {
    for how in [Handover::Pause, Handover::StopFirst, Handover::SoftStop] {
        let mut scenario = Scenario::serving();
        scenario.on(Event::Reload(Caller(1)));
        scenario.on(Event::Ready(TWO, how));
        if how == Handover::StopFirst {
            scenario.on(Event::Stopped(ONE));
        }
        scenario.on(Event::Proved);
        let (signal, reason) = (Signal::SoftStop, Reason::Handover);
        let told = position(&scenario.log, &Action::Signal { id: ONE, signal, reason });
        let serves = position(&scenario.log, &Action::Serving(TWO));
        assert!(told.is_some() && told < serves, "{how:?}: {:?}", scenario.log);
    }
}

/// An address of the older one may be free only when the new one is gone.
#[test]
fn those_paused_for_one_that_is_refused_accept_at_once_and_are_told_again_at_its_end() {
    let ready = Event::Ready(TWO, Handover::Pause);
    for (pauses, failure) in
        [(ready, Failure::DiedInHandover), (Event::AddressInUse(TWO), Failure::Exited)]
    {
        let mut scenario = Scenario::serving();
        scenario.on(Event::Reload(Caller(1)));
        scenario.on(pauses);
        let actions = scenario.on(Event::Refused(TWO));
        let guard = Action::Guard { newer: TWO, paused: vec![ONE] };
        assert_eq!(actions.first(), Some(&guard), "before the signal");
        assert_eq!(signals(&actions), [(1, Signal::Resume)]);
        assert_eq!(answers(&actions), []);
        let actions = scenario.on(Event::Exited(TWO));
        assert_eq!(signals(&actions), [(1, Signal::Resume)]);
        assert_eq!(answers(&actions), [Outcome::Failed(TWO, failure)]);
    }
}

/// The watchdog gets another duty only when the next generation has a process, which may take long.
#[test]
fn the_end_of_the_new_one_is_told_before_the_next_one_starts() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    scenario.on(Event::Reload(Caller(2)));
    let actions = scenario.on(Event::Exited(TWO));
    let (signal, reason) = (Signal::Resume, Reason::NewerDied);
    let resumed = position(&actions, &Action::Signal { id: ONE, signal, reason });
    let gone = position(&actions, &Action::Gone(TWO));
    let started = actions.iter().position(|action| matches!(action, Action::Start { .. }));
    assert!(resumed.is_some() && resumed < gone && gone < started, "{actions:?}");
}
