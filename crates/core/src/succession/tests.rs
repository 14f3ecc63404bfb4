//! Stories one by one, and random interleavings of everything that can happen against a small
//! model of processes that do as they are told (or do not).

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const NOW: Moment = Moment::ZERO;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn speaker(connection: u64, uid: u32) -> Speaker {
    Speaker { connection: ConnectionId(connection), uid, privileged: uid == 0 }
}

fn joining(generation: Option<u64>, phase: Phase, ordered: bool) -> Joining {
    Joining { service: name("edge"), generation, pid: 9, phase, ordered }
}

fn join(connection: u64, generation: impl Into<Option<u64>>, phase: Phase) -> Event {
    Event::Join(speaker(connection, 7), joining(generation.into(), phase, true))
}

/// What a connection is told in the answer to its joining.
fn entered(actions: &[Action], connection: u64) -> Option<(u64, Phase)> {
    actions.iter().rev().find_map(|action| match action {
        Action::Enter(at, label) if at.0 == connection => Some((label.generation, label.phase)),
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
    succession.on(NOW, join(1, None, Phase::Starting));
    let actions = succession.on(NOW, join(1, None, Phase::Serving));
    assert_eq!(entered(&actions, 1), Some((1, Phase::Serving)), "{actions:?}");
    assert_eq!(served(&actions), [], "it hears it in the answer");
    succession
}

#[test]
fn the_newer_one_serves_when_the_older_one_has_stopped() {
    let mut succession = serving();
    let actions = succession.on(NOW, join(2, None, Phase::Starting));
    assert_eq!(entered(&actions, 2), Some((2, Phase::Starting)));
    assert_eq!(retired(&actions), [], "it is not ready yet");
    let actions = succession.on(NOW, join(2, None, Phase::Serving));
    assert_eq!(entered(&actions, 2), Some((2, Phase::Starting)), "it waits");
    assert_eq!(retired(&actions), [1]);
    assert_eq!(succession.deadline(), Some(PATIENCE));
    let actions = succession.on(NOW, join(1, 1, Phase::Draining));
    assert_eq!(served(&actions), [2]);
    assert_eq!(succession.deadline(), None);
    let record = Record { service: name("edge"), last: 2, serving: Some(2) };
    assert_eq!(actions[0], Action::Record(record), "written down before anybody acts on it");
}

#[test]
fn the_end_of_a_connection_is_the_end_of_its_generation() {
    let mut succession = serving();
    succession.on(NOW, join(2, None, Phase::Serving));
    let actions = succession.on(NOW, Event::Gone(ConnectionId(1)));
    assert_eq!(served(&actions), [2]);
    // Its number is not given again, and one that goes before it was ready disturbs nobody.
    let actions = succession.on(NOW, join(3, None, Phase::Starting));
    assert_eq!(entered(&actions, 3), Some((3, Phase::Starting)));
    assert_eq!(succession.on(NOW, Event::Gone(ConnectionId(3))), []);
    assert_eq!(entered(&succession.on(NOW, join(4, None, Phase::Starting)), 4).expect("in").0, 4);
}

#[test]
fn who_does_not_stop_in_time_is_cut_off_and_finds_its_place_taken() {
    let mut succession = serving();
    succession.on(NOW, join(2, None, Phase::Serving));
    assert_eq!(succession.on(PATIENCE / 2, Event::Tick), []);
    let actions = succession.on(PATIENCE, Event::Tick);
    let cut = |action: &Action| matches!(action, Action::Cut(ConnectionId(1), _, Cause::Overdue));
    assert!(actions.iter().any(cut), "{actions:?}");
    assert_eq!(served(&actions), [2]);
    let actions = succession.on(PATIENCE, join(3, 1, Phase::Serving));
    assert_eq!(entered(&actions, 3), Some((1, Phase::Draining)));
}

#[test]
fn one_that_is_overtaken_before_it_was_ready_never_serves() {
    let mut succession = serving();
    succession.on(NOW, join(2, None, Phase::Starting));
    let actions = succession.on(NOW, join(3, None, Phase::Serving));
    assert_eq!(retired(&actions), [1, 2]);
    let actions = succession.on(NOW, join(2, 2, Phase::Serving));
    assert_eq!(entered(&actions, 2), Some((2, Phase::Draining)));
    assert_eq!(served(&succession.on(NOW, join(1, 1, Phase::Draining))), [3]);
}

#[test]
fn under_the_next_broker_the_one_that_served_is_waited_for() {
    let records = |serving| vec![Record { service: name("edge"), last: 2, serving }];
    let mut succession = Succession::default();
    succession.on(NOW, Event::Recall(records(Some(1)), 0));
    let actions = succession.on(NOW, join(8, 2, Phase::Serving));
    assert_eq!(entered(&actions, 8), Some((2, Phase::Starting)), "1 may still accept");
    let actions = succession.on(NOW, join(9, 1, Phase::Serving));
    assert_eq!(entered(&actions, 9), Some((1, Phase::Serving)));
    assert_eq!(retired(&actions), [9]);
    assert_eq!(served(&succession.on(NOW, join(9, 1, Phase::Draining))), [8]);
    // One that does not come back is not waited for for ever.
    let mut succession = Succession::default();
    succession.on(NOW, Event::Recall(records(Some(1)), 0));
    succession.on(NOW, join(8, None, Phase::Serving));
    let actions = succession.on(succession.deadline().expect("a deadline"), Event::Tick);
    assert!(actions.contains(&Action::Missed(name("edge"), 1)));
    assert_eq!(served(&actions), [8]);
    assert_eq!(entered(&succession.on(NOW, join(9, None, Phase::Starting)), 9).expect("in").0, 4);
}

#[test]
fn the_same_generation_on_another_connection_takes_its_own_place() {
    let mut succession = serving();
    let actions = succession.on(NOW, join(2, 1, Phase::Serving));
    let cut = |action: &Action| matches!(action, Action::Cut(ConnectionId(1), _, Cause::Replaced));
    assert!(actions.iter().any(cut), "{actions:?}");
    assert_eq!(entered(&actions, 2), Some((1, Phase::Serving)));
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
    let next = || joining(None, Phase::Starting, true);
    let other = refused(&mut succession, speaker(2, 8), next());
    assert!(matches!(other, Refusal::OtherUser { uid: 7, .. }));
    let plain = joining(Some(5), Phase::Serving, false);
    let mixed = refused(&mut succession, speaker(2, 7), plain.clone());
    assert!(matches!(mixed, Refusal::Ordered { .. }));
    let fixed = refused(&mut succession, speaker(1, 7), joining(Some(2), Phase::Serving, true));
    assert!(matches!(fixed, Refusal::Fixed { generation: 1, .. }));
    let elsewhere = Joining { service: name("other"), ..next() };
    let fixed = refused(&mut succession, speaker(1, 7), elsewhere);
    assert!(matches!(fixed, Refusal::Fixed { .. }));
    for number in [0, LARGEST_BROUGHT + 1] {
        let wrong = joining(Some(number), Phase::Starting, true);
        let refusal = refused(&mut succession, speaker(2, 7), wrong);
        assert!(matches!(refusal, Refusal::Number { .. }));
    }
    let root = succession.on(NOW, Event::Join(speaker(3, 0), next()));
    assert_eq!(entered(&root, 3), Some((2, Phase::Starting)));

    let mut succession = Succession::default();
    let actions = succession.on(NOW, Event::Join(speaker(1, 7), plain.clone()));
    assert_eq!(actions.len(), 1, "a supervisor's is merely entered: {actions:?}");
    let mixed = refused(&mut succession, speaker(2, 7), next());
    assert!(matches!(mixed, Refusal::Supervised { generation: 5, .. }));
    // Two connections of a supervisor may say the same, and one may say something else later.
    succession.on(NOW, Event::Join(speaker(2, 7), plain));
    let elsewhere = Joining { service: name("other"), ..joining(Some(9), Phase::Draining, false) };
    let actions = succession.on(NOW, Event::Join(speaker(2, 7), elsewhere));
    assert_eq!(entered(&actions, 2), Some((9, Phase::Draining)));
    assert_eq!(succession.records().count(), 0);
}

#[test]
fn services_that_ended_are_forgotten_and_their_numbers_are_not_given_again() {
    let mut succession = Succession::default();
    let mut rewrites = 0;
    let newcomer = |n: usize| Joining {
        service: name(&format!("s{n}")),
        ..joining(None, Phase::Starting, true)
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

/// One step of a random story. Indexes choose among the processes that live then.
#[derive(Debug, Clone)]
enum Step {
    Start,
    Ready(usize),
    /// A process that was told to stop accepting does.
    Obey(usize),
    /// It stops without having been told.
    Stop(usize),
    Die(usize),
    /// It connects anew before the broker has heard of the end of its connection.
    Reconnect(usize),
    Pass(u64),
    /// The broker is killed; `half`: after it has written down what follows from a readiness
    /// and before anybody has heard of it.
    Kill {
        half: Option<usize>,
    },
    Upgrade,
}

fn step() -> impl Strategy<Value = Step> {
    let index = || 0..5usize;
    prop_oneof![
        5 => Just(Step::Start),
        6 => index().prop_map(Step::Ready),
        8 => index().prop_map(Step::Obey),
        1 => index().prop_map(Step::Stop),
        3 => index().prop_map(Step::Die),
        3 => index().prop_map(Step::Reconnect),
        3 => (0..4000u64).prop_map(Step::Pass),
        2 => prop::option::of(index()).prop_map(|half| Step::Kill { half }),
        2 => Just(Step::Upgrade),
    ]
}

#[derive(Debug, Clone)]
struct Process {
    connection: Option<u64>,
    wish: Phase,
    was_ready: bool,
    told: bool,
    accepts: bool,
    /// The broker has given it up: what it does is not the broker's word any more.
    given_up: bool,
}

/// Processes by their number, what the broker's registry shows, and what is on disk.
#[derive(Default)]
struct World {
    succession: Succession,
    processes: BTreeMap<u64, Process>,
    shown: BTreeMap<u64, Label>,
    disk: BTreeMap<Name, Record>,
    connections: u64,
    now: Moment,
}

impl World {
    fn pick(&self, index: usize) -> Option<u64> {
        self.processes.keys().nth(index).copied()
    }

    fn by_connection(&mut self, connection: ConnectionId) -> Option<&mut Process> {
        self.processes.values_mut().find(|process| process.connection == Some(connection.0))
    }

    fn connect(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    /// Performs actions as the broker does, up to the first that is not written down if it
    /// is killed `half`-way.
    fn perform(&mut self, actions: &[Action], half: bool) {
        for action in actions {
            match action {
                Action::Record(record) => {
                    self.disk.insert(record.service.clone(), record.clone());
                    continue;
                }
                _ if half => return,
                Action::Enter(connection, label) => {
                    self.shown.insert(connection.0, label.clone());
                }
                Action::Serve(connection, _) => {
                    if let Some(process) = self.by_connection(*connection) {
                        process.accepts = true;
                    }
                }
                Action::Retire(connection, ..) => {
                    if let Some(process) = self.by_connection(*connection) {
                        process.told = true;
                    }
                }
                Action::Cut(connection, _, cause) => {
                    self.shown.remove(&connection.0);
                    if let Some(process) = self.by_connection(*connection) {
                        process.connection = None;
                        process.given_up |= *cause == Cause::Overdue;
                    }
                }
                Action::Missed(_, generation) => {
                    if let Some(process) = self.processes.get_mut(generation) {
                        process.given_up = true;
                    }
                }
                Action::Rewrite => {}
                Action::Refuse(_, refusal) => panic!("{refusal}"),
            }
            let serving = self.shown.values().filter(|label| label.phase == Phase::Serving);
            assert!(serving.count() <= 1, "invariant 2, as shown: {:?} {actions:?}", self.shown);
        }
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        let actions = self.succession.on(self.now, event);
        self.perform(&actions, false);
        actions
    }

    /// A process says what it wishes; the answer tells it where it is.
    fn says(&mut self, number: u64) -> Vec<Action> {
        let process = self.processes.get_mut(&number).expect("it lives");
        let Some(connection) = process.connection else { return Vec::new() };
        let event = join(connection, number, process.wish);
        let actions = self.event(event);
        let answer = entered(&actions, connection).expect("an answer");
        assert_eq!(answer.0, number);
        let process = self.processes.get_mut(&number).expect("it lives");
        match answer.1 {
            Phase::Serving => process.accepts = true,
            Phase::Draining => {
                process.accepts = false;
                process.wish = Phase::Draining;
            }
            Phase::Starting => assert!(!process.accepts || process.given_up, "{actions:?}"),
        }
        actions
    }

    /// Everybody who lost the broker finds the next one, in some order.
    fn come_back(&mut self) {
        let lost = |process: &Process| process.connection.is_none();
        let lost: Vec<u64> =
            self.processes.iter().filter(|(_, process)| lost(process)).map(|(n, _)| *n).collect();
        for number in lost.into_iter().rev() {
            let connection = self.connect();
            self.processes.get_mut(&number).expect("it lives").connection = Some(connection);
            self.says(number);
        }
    }

    fn killed(&mut self) {
        let mut next = Succession::default();
        let records = self.disk.values().cloned().collect();
        next.on(self.now, Event::Recall(records, self.succession.floor()));
        self.succession = next;
        self.shown.clear();
        self.processes.values_mut().for_each(|process| process.connection = None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// Invariants 2, 3 and 5, and numbers that only grow.
    #[test]
    fn no_interleaving_breaks_the_invariants(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::default();
        let mut given = BTreeSet::new();
        for step in steps {
            match step {
                Step::Start => {
                    let connection = world.connect();
                    let actions = world.event(join(connection, None, Phase::Starting));
                    let (number, _) = entered(&actions, connection).expect("an answer");
                    prop_assert!(given.iter().all(|before| *before < number), "it only grows");
                    given.insert(number);
                    world.processes.insert(number, Process {
                        connection: Some(connection),
                        wish: Phase::Starting,
                        was_ready: false,
                        told: false,
                        accepts: false,
                        given_up: false,
                    });
                }
                Step::Ready(index) => {
                    let Some(number) = world.pick(index) else { continue };
                    let process = world.processes.get_mut(&number).expect("it lives");
                    if process.wish == Phase::Starting && !process.told {
                        process.wish = Phase::Serving;
                        process.was_ready |= process.connection.is_some();
                        world.says(number);
                    }
                }
                Step::Obey(index) | Step::Stop(index) => {
                    let Some(number) = world.pick(index) else { continue };
                    let process = world.processes.get_mut(&number).expect("it lives");
                    if process.told || matches!(step, Step::Stop(_)) {
                        process.accepts = false;
                        process.wish = Phase::Draining;
                        world.says(number);
                    }
                }
                Step::Die(index) => {
                    let Some(number) = world.pick(index) else { continue };
                    let process = world.processes.remove(&number).expect("it lives");
                    if let Some(connection) = process.connection {
                        world.shown.remove(&connection);
                        let actions = world.event(Event::Gone(ConnectionId(connection)));
                        let touched = |action: &Action| {
                            !matches!(action, Action::Record(_) | Action::Missed(..))
                        };
                        prop_assert!(
                            process.was_ready || !actions.iter().any(touched),
                            "invariant 3: {actions:?}"
                        );
                    }
                }
                Step::Reconnect(index) => {
                    let Some(number) = world.pick(index) else { continue };
                    let connection = world.connect();
                    let process = world.processes.get_mut(&number).expect("it lives");
                    process.connection.replace(connection);
                    world.says(number);
                }
                Step::Pass(millis) => {
                    world.now += Duration::from_millis(millis);
                    world.event(Event::Tick);
                    world.come_back();
                    prop_assert_eq!(world.succession.on(world.now, Event::Tick), vec![]);
                }
                Step::Kill { half } => {
                    if let Some(number) = half.and_then(|index| world.pick(index)) {
                        let process = world.processes.get_mut(&number).expect("it lives");
                        if let (Some(connection), Phase::Starting) =
                            (process.connection, process.wish)
                        {
                            process.wish = Phase::Serving;
                            process.was_ready = true;
                            let event = join(connection, number, Phase::Serving);
                            let actions = world.succession.on(world.now, event);
                            world.perform(&actions, true);
                        }
                    }
                    world.killed();
                    world.come_back();
                }
                Step::Upgrade => {
                    let records = world.succession.records().collect();
                    let places: Vec<Place> = world.succession.places().collect();
                    let mut next = Succession::default();
                    next.on(world.now, Event::Recall(records, world.succession.floor()));
                    next.on(world.now, Event::Resume(places.clone()));
                    prop_assert_eq!(next.places().collect::<Vec<_>>(), places);
                    world.succession = next;
                }
            }
            let accept = world.processes.values().filter(|process| process.accepts);
            let accept = accept.filter(|process| !process.given_up).count();
            prop_assert!(accept <= 1, "invariant 2: {:?}", world.processes);
            let waits = world.succession.places().any(|place| {
                place.ordered.is_some_and(|progress| progress.ready && !progress.told)
            });
            prop_assert!(!waits || world.succession.deadline().is_some(), "invariant 5");
            for record in world.succession.records() {
                prop_assert_eq!(world.disk.get(&record.service), Some(&record), "written down");
            }
        }
        // From anywhere, whoever is newest and ready serves in bounded time.
        let starts = world.connect();
        world.event(join(starts, None, Phase::Serving));
        for _ in 0..3 {
            world.now += PATIENCE.max(ABSENCE);
            world.event(Event::Tick);
        }
        prop_assert_eq!(world.shown[&starts].phase, Phase::Serving);
    }
}
