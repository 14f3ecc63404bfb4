//! The handover of programs that cannot be paused: the older one stops for good, then the accept
//! queues are watched, then the new one goes on.

use super::*;

/// A service whose second generation waits and whose first is told to stop.
fn stopping() -> Story {
    let mut story = Story::serving();
    story.on(Event::Reload(Caller(1)));
    let actions = story.on(Event::Ready(TWO, Handover::StopFirst));
    assert_eq!(signals(&actions), [(2, Signal::Stop), (1, Signal::SoftStop)]);
    assert_eq!(answers(&actions), []);
    story
}

/// The same when the first has confirmed.
fn proving() -> Story {
    let mut story = stopping();
    let actions = story.on(Event::Stopped(ONE));
    let prove = Action::Prove { newer: TWO, older: vec![ONE] };
    assert_eq!(actions, [Action::Detach(ONE), prove]);
    assert_eq!(story.timeline.serving(), None, "nobody accepts while it is proved");
    story
}

#[test]
fn the_new_one_goes_on_when_the_queues_stand_still() {
    let mut story = proving();
    let actions = story.on(Event::Proved);
    assert_eq!(actions[0], Action::EndProof);
    assert_eq!(signals(&actions), [(2, Signal::Continue)]);
    assert_eq!(answers(&actions), [serves(TWO)]);
    assert_eq!(story.timeline.serving(), Some(TWO));
}

#[test]
fn without_a_client_the_closed_descriptors_must_do() {
    let mut story = proving();
    assert_eq!(story.on(Event::Unproved(Observation::default())), []);
    let actions = story.pass(QUEUES_STILL);
    assert_eq!(signals(&actions), [(2, Signal::Continue)]);
    assert_eq!(answers(&actions), [serves(TWO)]);
}

#[test]
fn somebody_who_still_accepts_is_nobody_of_ours() {
    let mut story = proving();
    let seen = Observation { moving: true, ..Observation::default() };
    story.on(Event::Unproved(seen));
    let actions = story.pass(QUEUES_STILL);
    assert_eq!(answers(&actions), [Outcome::Serving { id: TWO, ended: vec![], alone: false }]);
    assert_eq!(story.timeline.serving(), Some(TWO));
}

#[test]
fn one_that_does_not_stop_is_signalled_again_and_ended() {
    let mut story = stopping();
    let actions = story.pass(Duration::from_secs(5));
    let again = signals(&actions);
    assert!(again.iter().filter(|s| **s == (1, Signal::SoftStop)).count() > 10, "{again:?}");
    assert_eq!(again.last(), Some(&(1, Signal::Terminate)));
    assert_eq!(signals(&story.pass(TERM_TO_KILL)), [(1, Signal::Kill)]);
    story.on(Event::Exited(ONE));
    let actions = story.on(Event::Proved);
    let ended = vec![ONE];
    assert_eq!(answers(&actions), [Outcome::Serving { id: TWO, ended, alone: true }]);
}

#[test]
fn a_new_one_that_dies_meanwhile_is_replaced_by_what_served() {
    for mut story in [stopping(), proving()] {
        let actions = story.on(Event::Exited(TWO));
        assert_eq!(answers(&actions), [Outcome::Failed(TWO, Failure::DiedInHandover)]);
        assert_eq!(starts(&actions), [(3, Configuration::Of(ONE))]);
    }
}

#[test]
fn a_shutdown_meanwhile_ends_the_new_one_and_leaves_nobody_stopped() {
    let mut story = proving();
    let actions = story.on(Event::Shutdown);
    assert!(actions.contains(&Action::EndProof));
    assert_eq!(signals(&actions), [(2, Signal::Terminate), (2, Signal::Continue)]);
    assert_eq!(answers(&actions), [Outcome::ShuttingDown]);
}
