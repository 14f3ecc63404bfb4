//! Single stories; the random ones are in [`interleavings`].

mod interleavings;

use super::*;

const NOW: Moment = Moment::ZERO;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn speaker(connection: u64, uid: u32) -> Speaker {
    let (connection, is_root) = (ConnectionId(connection), uid == 0);
    Speaker { connection, pid: 9, uid, privileged: is_root, takes_back: is_root }
}

fn joining(generation: Option<u64>, state: State, ordered: bool) -> Joining {
    Joining { service: name("edge"), generation, pid: Some(9), state, ordered, successor: None }
}

/// A generation that was told to retire for a newer one has stopped.
fn obeys(connection: u64, generation: u64, successor: u64) -> Event {
    let stopped = joining(Some(generation), State::Draining, true);
    Event::Join(speaker(connection, 7), Joining { successor: Some(successor), ..stopped })
}

fn join(connection: u64, generation: impl Into<Option<u64>>, state: State) -> Event {
    Event::Join(speaker(connection, 7), joining(generation.into(), state, true))
}

/// The answer to a connection's join.
fn entered(actions: &[Action], connection: u64) -> Option<(u64, State)> {
    actions.iter().rev().find_map(|action| match action {
        Action::Enter(at, label) if at.0 == connection => Some((label.generation, label.state)),
        _ => None,
    })
}

fn retired(actions: &[Action]) -> Vec<u64> {
    let told = actions.iter().filter_map(|action| match action {
        Action::Retire(connection, ..) => Some(connection.0),
        _ => None,
    });
    told.collect()
}

fn served(actions: &[Action]) -> Vec<u64> {
    let told = actions.iter().filter_map(|action| match action {
        Action::Serve(connection, _) => Some(connection.0),
        _ => None,
    });
    told.collect()
}

/// A service whose generation 1 serves on connection 1.
fn serving() -> Succession {
    let mut succession = Succession::default();
    succession.on(NOW, join(1, None, State::Starting));
    let actions = succession.on(NOW, join(1, None, State::Serving));
    assert_eq!(entered(&actions, 1), Some((1, State::Serving)), "{actions:?}");
    assert_eq!(served(&actions), [], "it hears it in the answer");
    succession
}

#[test]
fn the_newer_one_serves_when_the_older_one_has_stopped() {
    let mut succession = serving();
    let actions = succession.on(NOW, join(2, None, State::Starting));
    assert_eq!(entered(&actions, 2), Some((2, State::Starting)));
    assert_eq!(retired(&actions), [], "it is not ready yet");
    let actions = succession.on(NOW, join(2, None, State::Serving));
    assert_eq!(entered(&actions, 2), Some((2, State::Starting)), "it waits");
    assert_eq!(retired(&actions), [1]);
    assert_eq!(succession.deadline(), Some(PATIENCE));
    let actions = succession.on(NOW, join(1, 1, State::Draining));
    assert_eq!(served(&actions), [2]);
    assert_eq!(succession.deadline(), None);
    let record = Record { name: name("edge"), last: 2, serving: Some(2) };
    assert_eq!(actions[0], Action::Record(record), "written down before anybody acts on it");
}

#[test]
fn the_end_of_a_connection_is_the_end_of_its_generation() {
    let mut succession = serving();
    succession.on(NOW, join(2, None, State::Serving));
    let actions = succession.on(NOW, Event::Gone(ConnectionId(1)));
    assert_eq!(served(&actions), [2]);
    // Its number is not given again, and a generation that goes before it was ready disturbs
    // nobody.
    let actions = succession.on(NOW, join(3, None, State::Starting));
    assert_eq!(entered(&actions, 3), Some((3, State::Starting)));
    assert_eq!(succession.on(NOW, Event::Gone(ConnectionId(3))), []);
    assert_eq!(entered(&succession.on(NOW, join(4, None, State::Starting)), 4).expect("in").0, 4);
}

#[test]
fn who_does_not_stop_in_time_is_cut_off_and_finds_its_place_taken() {
    let mut succession = serving();
    succession.on(NOW, join(2, None, State::Serving));
    assert_eq!(succession.on(PATIENCE / 2, Event::Tick), []);
    let actions = succession.on(PATIENCE, Event::Tick);
    let cut = |action: &Action| matches!(action, Action::Cut(ConnectionId(1), _, Cause::Overdue));
    assert!(actions.iter().any(cut), "{actions:?}");
    assert_eq!(served(&actions), [2]);
    let actions = succession.on(PATIENCE, join(3, 1, State::Serving));
    assert_eq!(entered(&actions, 3), Some((1, State::Draining)));
}

#[test]
fn one_that_goes_before_it_is_let_in_leaves_the_older_ones_as_they_were() {
    let stayed = |actions: &[Action]| -> Vec<u64> {
        let told = actions.iter().filter_map(|action| match action {
            Action::Stay(connection, _) => Some(connection.0),
            _ => None,
        });
        told.collect()
    };
    let mut succession = serving();
    succession.on(NOW, join(2, None, State::Starting));
    assert_eq!(retired(&succession.on(NOW, join(3, None, State::Serving))), [1, 2]);
    let gone = succession.on(NOW, Event::Gone(ConnectionId(3)));
    assert_eq!(stayed(&gone), [1, 2]);
    assert_eq!(succession.deadline(), None, "nobody has to stop any more");
    // The report of 1 that it stopped for 3 crosses the order to stay.
    let crossing = succession.on(NOW, obeys(1, 1, 3));
    assert_eq!(entered(&crossing, 1), Some((1, State::Serving)));
    // 2 may still become ready, and 1 stops for it.
    assert_eq!(retired(&succession.on(NOW, join(2, 2, State::Serving))), [1]);
    let stopped = succession.on(NOW, obeys(1, 1, 2));
    assert_eq!(entered(&stopped, 1), Some((1, State::Draining)));
    assert_eq!(served(&stopped), [2]);
    // A generation that gives up counts as gone; one that stops by itself has stopped.
    succession.on(NOW, join(4, None, State::Serving));
    assert_eq!(stayed(&succession.on(NOW, join(4, None, State::Draining))), [2]);
    let actions = succession.on(NOW, join(2, 2, State::Draining));
    assert_eq!(entered(&actions, 2), Some((2, State::Draining)));
    // A generation that has already stopped does not come back.
    succession.on(NOW, Event::Gone(ConnectionId(4)));
    assert_eq!(entered(&succession.on(NOW, obeys(2, 2, 4)), 2), Some((2, State::Draining)));
}

#[test]
fn under_the_next_broker_one_that_stopped_for_nobody_serves_on() {
    let record = Record { name: name("edge"), last: 2, serving: Some(1) };
    let mut succession = Succession::default();
    succession.on(NOW, Event::Recall(vec![record.clone()], 0));
    assert_eq!(entered(&succession.on(NOW, obeys(8, 1, 2)), 8), Some((1, State::Serving)));
    assert_eq!(retired(&succession.on(NOW, join(9, 2, State::Serving))), [8], "it is back");
    // 2 had been let in: whatever happened to it, 1 is over.
    let let_in = Record { serving: Some(2), ..record };
    let mut succession = Succession::default();
    succession.on(NOW, Event::Recall(vec![let_in], 0));
    assert_eq!(entered(&succession.on(NOW, obeys(8, 1, 2)), 8), Some((1, State::Draining)));
}

#[test]
fn one_whose_successor_was_lost_in_an_upgrade_is_told_to_stay() {
    let mut succession = serving();
    succession.on(NOW, join(2, None, State::Serving));
    let mut places: Vec<Place> = succession.places().collect();
    places.retain(|place| place.label.generation == 1);
    let mut next = Succession::default();
    let actions = next.on(NOW, Event::Resume(places));
    assert!(matches!(actions[..], [_, Action::Stay(ConnectionId(1), _)]), "{actions:?}");
    assert_eq!(next.deadline(), None);
}

#[test]
fn one_that_is_overtaken_before_it_was_ready_never_serves() {
    let mut succession = serving();
    succession.on(NOW, join(2, None, State::Starting));
    let actions = succession.on(NOW, join(3, None, State::Serving));
    assert_eq!(retired(&actions), [1, 2]);
    let actions = succession.on(NOW, join(2, 2, State::Serving));
    assert_eq!(entered(&actions, 2), Some((2, State::Draining)));
    assert_eq!(served(&succession.on(NOW, join(1, 1, State::Draining))), [3]);
}

#[test]
fn under_the_next_broker_the_one_that_served_is_waited_for() {
    let records = |serving| vec![Record { name: name("edge"), last: 2, serving }];
    let mut succession = Succession::default();
    succession.on(NOW, Event::Recall(records(Some(1)), 0));
    let actions = succession.on(NOW, join(8, 2, State::Serving));
    assert_eq!(entered(&actions, 8), Some((2, State::Starting)), "1 may still accept");
    let actions = succession.on(NOW, join(9, 1, State::Serving));
    assert_eq!(entered(&actions, 9), Some((1, State::Serving)));
    assert_eq!(retired(&actions), [9]);
    assert_eq!(served(&succession.on(NOW, join(9, 1, State::Draining))), [8]);
    // A generation that does not come back is not waited for forever.
    let mut succession = Succession::default();
    succession.on(NOW, Event::Recall(records(Some(1)), 0));
    succession.on(NOW, join(8, None, State::Serving));
    let actions = succession.on(succession.deadline().expect("a deadline"), Event::Tick);
    assert!(actions.contains(&Action::Missed(name("edge"), 1)));
    assert_eq!(served(&actions), [8]);
    assert_eq!(entered(&succession.on(NOW, join(9, None, State::Starting)), 9).expect("in").0, 4);
}

#[test]
fn the_same_generation_on_another_connection_takes_its_own_place() {
    let mut succession = serving();
    let actions = succession.on(NOW, join(2, 1, State::Serving));
    let cut = |action: &Action| matches!(action, Action::Cut(ConnectionId(1), _, Cause::Replaced));
    assert!(actions.iter().any(cut), "{actions:?}");
    assert_eq!(entered(&actions, 2), Some((1, State::Serving)));
    assert_eq!(succession.on(NOW, Event::Gone(ConnectionId(1))), [], "it was cut off already");
}

#[test]
fn a_service_belongs_to_a_user_and_to_one_way_of_ordering() {
    let refused = |succession: &mut Succession, speaker, joining| {
        let before: Vec<Place> = succession.places().collect();
        let actions = succession.on(NOW, Event::Join(speaker, joining));
        assert_eq!(succession.places().collect::<Vec<_>>(), before, "it changes nothing");
        let [Action::Refuse(at, refusal)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(*at, speaker.connection);
        assert!(!refusal.hint().is_empty());
        refusal.clone()
    };
    let mut succession = serving();
    let next = || joining(None, State::Starting, true);
    let other = refused(&mut succession, speaker(2, 8), next());
    assert!(matches!(other, Refusal::OtherUser { uid: 7, .. }));
    let plain = joining(Some(5), State::Serving, false);
    let mixed = refused(&mut succession, speaker(2, 7), plain.clone());
    assert!(matches!(mixed, Refusal::Ordered { .. }));
    let fixed = refused(&mut succession, speaker(1, 7), joining(Some(2), State::Serving, true));
    assert!(matches!(fixed, Refusal::Fixed { generation: 1, .. }));
    let elsewhere = Joining { service: name("other"), ..next() };
    let fixed = refused(&mut succession, speaker(1, 7), elsewhere);
    assert!(matches!(fixed, Refusal::Fixed { .. }));
    for number in [0, LARGEST_BROUGHT + 1] {
        let wrong = joining(Some(number), State::Starting, true);
        let refusal = refused(&mut succession, speaker(2, 7), wrong);
        assert!(matches!(refusal, Refusal::Number { .. }));
    }
    let root = succession.on(NOW, Event::Join(speaker(3, 0), next()));
    assert_eq!(entered(&root, 3), Some((2, State::Starting)));

    let mut succession = Succession::default();
    let actions = succession.on(NOW, Event::Join(speaker(1, 7), plain.clone()));
    assert_eq!(actions.len(), 1, "a supervisor's is merely entered: {actions:?}");
    let mixed = refused(&mut succession, speaker(2, 7), next());
    assert!(matches!(mixed, Refusal::Supervised { generation: 5, .. }));
    // Two connections of a supervisor may join as the same, and one may join as another later.
    succession.on(NOW, Event::Join(speaker(2, 7), plain));
    let elsewhere = Joining { service: name("other"), ..joining(Some(9), State::Draining, false) };
    let actions = succession.on(NOW, Event::Join(speaker(2, 7), elsewhere));
    assert_eq!(entered(&actions, 2), Some((9, State::Draining)));
    assert_eq!(succession.records().count(), 0);
}

#[test]
fn services_that_ended_are_forgotten_and_their_numbers_are_not_given_again() {
    let mut succession = Succession::default();
    let mut rewrites = 0;
    let newcomer = |n: usize| Joining {
        service: name(&format!("s{n}")),
        ..joining(None, State::Starting, true)
    };
    for n in 0..=REMEMBERED + 1 {
        let now = Moment::from_millis(n as u64);
        for _ in 0..2 {
            let actions = succession.on(now, Event::Join(speaker(1, 7), newcomer(n)));
            rewrites += actions.iter().filter(|action| **action == Action::Rewrite).count();
            succession.on(now, Event::Gone(ConnectionId(1)));
        }
    }
    assert_eq!(rewrites, 1);
    assert!(succession.records().count() <= REMEMBERED);
    let again = succession.on(NOW, Event::Join(speaker(1, 7), newcomer(0)));
    assert!(entered(&again, 1).expect("in").0 > 2, "{again:?}");
}
