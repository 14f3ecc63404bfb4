//! An older generation shows by its own stop what the accept queues do not show.

use super::*;

/// A service whose second generation waits and whose first is paused.
fn pausing() -> Scenario {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    scenario
}

#[test]
fn one_that_is_paused_closes_its_listeners_before_the_new_one_goes_on() {
    let mut scenario = pausing();
    let actions = scenario.on(Event::ProvedInPart { all_paused: true });
    assert_eq!(signals(&actions), [(1, Signal::SoftStop)]);
    assert_eq!(answers(&scenario.on(Event::Stopping(ONE))), [], "it may not have closed them");
    let actions = scenario.on(Event::Stopped(ONE));
    assert_eq!(signals(&actions), [(2, Signal::Continue)]);
    assert_eq!(answers(&actions), [serves(TWO)]);
}

#[test]
fn clients_do_not_wait_for_one_that_is_paused_and_closes_late() {
    let mut scenario = pausing();
    scenario.on(Event::ProvedInPart { all_paused: true });
    let actions = scenario.pass(PAUSED_TO_CLOSED);
    assert_eq!(signals(&actions), [(2, Signal::Continue)]);
    assert_eq!(scenario.timeline.serving(), Some(TWO));
    assert_eq!(answers(&actions), [], "whoever asked is told when it is proved");
    assert_eq!(answers(&scenario.on(Event::Stopped(ONE))), [serves(TWO)]);
}

/// Another process may send it the signal of a soft stop.
#[test]
fn one_that_stops_while_the_older_one_closes_does_not_serve() {
    let mut scenario = pausing();
    scenario.on(Event::ProvedInPart { all_paused: true });
    scenario.pass(PAUSED_TO_CLOSED);
    scenario.on(Event::Stopped(TWO));
    let failed = Outcome::Failed(TWO, Failure::StoppedInHandover);
    assert_eq!(answers(&scenario.on(Event::Stopped(ONE))), [failed]);
}

#[test]
fn where_no_queue_shows_anything_the_older_one_accepts_until_it_has_closed() {
    let mut scenario = pausing();
    let actions = scenario.on(Event::ProvedInPart { all_paused: false });
    assert_eq!(signals(&actions), [(1, Signal::Resume), (1, Signal::SoftStop)]);
    assert_eq!(scenario.timeline.serving(), None);
    let actions = scenario.on(Event::Stopped(ONE));
    assert_eq!(signals(&actions), [(2, Signal::Continue)]);
    assert_eq!(answers(&actions), [serves(TWO)]);
}

#[test]
fn one_that_never_closes_what_no_queue_shows_is_ended() {
    for all_paused in [true, false] {
        let mut scenario = pausing();
        scenario.on(Event::ProvedInPart { all_paused });
        scenario.on(Event::Stopping(ONE));
        let actions = scenario.pass(Duration::from_secs(5));
        assert_eq!(answers(&actions), []);
        assert_eq!(signals(&actions).last(), Some(&(1, Signal::Terminate)));
        let outcome = Outcome::Serving { id: TWO, ended: vec![ONE], alone: true };
        assert_eq!(answers(&scenario.on(Event::Exited(ONE))), [outcome]);
    }
}

#[test]
fn one_that_is_proved_not_to_accept_and_says_that_it_stops_may_close_later() {
    let mut scenario = pausing();
    assert_eq!(answers(&scenario.on(Event::Proved)), [serves(TWO)]);
    scenario.on(Event::Stopping(ONE));
    assert_eq!(signals(&scenario.pass(Duration::from_secs(599))), []);
    assert_eq!(signals(&scenario.pass(Duration::from_secs(1))), [(1, Signal::Terminate)]);
}

#[test]
fn one_that_listens_again_is_told_to_stop_again_and_ended() {
    let mut scenario = pausing();
    scenario.on(Event::Proved);
    scenario.on(Event::Stopped(ONE));
    let actions = scenario.on(Event::Listens(ONE));
    assert_eq!(signals(&actions), [(1, Signal::SoftStop)]);
    assert!(actions.contains(&Action::WatchStop(ONE)));
    // A reload waits for it.
    scenario.on(Event::Reload(Caller(2)));
    let actions = scenario.on(Event::Ready(THREE, Handover::StopFirst));
    assert!(signals(&actions).contains(&(1, Signal::SoftStop)), "{actions:?}");
    scenario.on(Event::Stopped(TWO));
    assert_eq!(answers(&scenario.on(Event::Proved)), [], "one may still accept");
    let actions = scenario.pass(Duration::from_secs(5));
    assert_eq!(signals(&actions).last(), Some(&(1, Signal::Terminate)));
    scenario.on(Event::Exited(ONE));
    let outcome = Outcome::Serving { id: THREE, ended: vec![ONE], alone: true };
    assert_eq!(answers(&scenario.on(Event::Proved)), [outcome]);
}

#[test]
fn one_that_listens_again_while_the_queues_are_watched_is_waited_for() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::StopFirst));
    scenario.on(Event::Stopped(ONE));
    let actions = scenario.on(Event::Listens(ONE));
    assert_eq!(signals(&actions), [(1, Signal::SoftStop)]);
    assert!(actions.contains(&Action::EndProof));
    assert_eq!(answers(&scenario.on(Event::Proved)), []);
    scenario.on(Event::Stopped(ONE));
    assert_eq!(answers(&scenario.on(Event::Proved)), [serves(TWO)]);
}

/// It cannot be told apart from a draining generation: it accepts no more, and has confirmed its
/// stop.
#[test]
fn one_that_is_late_to_close_its_listeners_ends_as_one_that_drains() {
    let mut scenario = Scenario::serving();
    scenario.on(Event::Reload(Caller(1)));
    scenario.on(Event::Ready(TWO, Handover::Pause));
    scenario.on(Event::Proved);
    scenario.on(Event::Stopping(ONE));
    scenario.on(Event::DrainTimeout(ONE, 500 * MS));
    let (signal, reason) = (Signal::Terminate, Reason::DrainTimeout);
    let ends = Action::Signal { id: ONE, signal, reason };
    assert!(scenario.pass(Duration::from_secs(1)).contains(&ends));
}

/// It has closed its listeners for some reason: bindonce has not told it to end.
#[test]
fn one_that_has_stopped_by_itself_is_told_to_at_the_shutdown_once() {
    let mut scenario = Scenario::serving();
    let actions = scenario.on(Event::Stopped(ONE));
    assert_eq!(signals(&actions), []);
    let actions = scenario.on(Event::Shutdown);
    assert_eq!(signals(&actions).iter().filter(|one| **one == (1, Signal::SoftStop)).count(), 1);
    assert_eq!(signals(&scenario.on(Event::Tick)), []);
    // A generation that was told drains.
    let mut scenario = pausing();
    scenario.on(Event::Proved);
    scenario.on(Event::Stopped(ONE));
    let actions = scenario.on(Event::Shutdown);
    assert_eq!(signals(&actions), [(2, Signal::SoftStop)]);
}
