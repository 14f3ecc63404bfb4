//! Random interleavings of all events, against a small model of processes that obey (or do not).

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// One step of a random story. Indexes choose among the live processes.
#[derive(Debug, Clone)]
enum Step {
    Start,
    Ready(usize),
    /// A process obeys when told to stop accepting, even if it was told to stay meanwhile and has
    /// not read that yet.
    Obey(usize),
    /// A process reads that it should stay.
    Read(usize),
    /// A process stops without having been told to.
    Stop(usize),
    Die(usize),
    /// A process reconnects before the broker has noticed the end of its old connection.
    Reconnect(usize),
    Pass(u64),
    /// The broker is killed. `half`: after it has written the records that follow from a readiness,
    /// and before it has told anybody.
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
        2 => index().prop_map(Step::Read),
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
    wish: State,
    was_ready: bool,
    /// The newer generation that it was told to retire for, as far as it knows.
    told: Option<u64>,
    accepts: bool,
    /// The broker has given it up: its acts no longer break the broker's promises.
    given_up: bool,
}

/// Processes by number, the generations that the broker's registry shows, and the records on disk.
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

    /// The generation that the broker shows as serving.
    fn serving(&self) -> Option<u64> {
        let mut shown = self.shown.values();
        shown.find(|label| label.state == State::Serving).map(|label| label.generation)
    }

    /// Whether the broker has told a generation to retire, and not to stay since.
    fn is_told(&self, number: u64) -> Option<bool> {
        let mut places = self.succession.places();
        let place = places.find(|place| place.label.generation == number)?;
        place.ordered.map(|progress| progress.retiring)
    }

    fn connect(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    /// Performs actions as the broker does; if it is killed `half`-way, only the records at the
    /// beginning.
    fn perform(&mut self, actions: &[Action], half: bool) {
        for action in actions {
            match action {
                Action::Record(record) => {
                    self.disk.insert(record.name.clone(), record.clone());
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
                Action::Retire(connection, _, successor) => {
                    if let Some(process) = self.by_connection(*connection) {
                        process.told = Some(*successor);
                    }
                }
                // The process reads it only in [`Step::Read`].
                Action::Stay(..) => {}
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
            let serving = self.shown.values().filter(|label| label.state == State::Serving);
            assert!(serving.count() <= 1, "invariant 2, as shown: {:?} {actions:?}", self.shown);
        }
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        let actions = self.succession.on(self.now, event);
        self.perform(&actions, false);
        actions
    }

    /// A process reports its wish; the answer tells its state.
    fn says(&mut self, number: u64) -> Vec<Action> {
        let process = self.processes.get_mut(&number).expect("it lives");
        let Some(connection) = process.connection else { return Vec::new() };
        let event = match process.told {
            Some(successor) if process.wish == State::Draining => {
                obeys(connection, number, successor)
            }
            _ => join(connection, number, process.wish),
        };
        let actions = self.event(event);
        let answer = entered(&actions, connection).expect("an answer");
        assert_eq!(answer.0, number);
        let process = self.processes.get_mut(&number).expect("it lives");
        match answer.1 {
            State::Serving => {
                process.accepts = true;
                process.wish = State::Serving;
            }
            State::Draining => {
                process.accepts = false;
                process.wish = State::Draining;
            }
            State::Starting => assert!(!process.accepts || process.given_up, "{actions:?}"),
        }
        actions
    }

    /// All processes that lost the broker find the next one, in some order.
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
                    let actions = world.event(join(connection, None, State::Starting));
                    let (number, _) = entered(&actions, connection).expect("an answer");
                    prop_assert!(given.iter().all(|before| *before < number), "it only grows");
                    given.insert(number);
                    world.processes.insert(number, Process {
                        connection: Some(connection),
                        wish: State::Starting,
                        was_ready: false,
                        told: None,
                        accepts: false,
                        given_up: false,
                    });
                }
                Step::Ready(index) => {
                    let Some(number) = world.pick(index) else { continue };
                    let process = world.processes.get_mut(&number).expect("it lives");
                    if process.wish == State::Starting && process.told.is_none() {
                        process.wish = State::Serving;
                        process.was_ready |= process.connection.is_some();
                        world.says(number);
                    }
                }
                Step::Obey(index) | Step::Stop(index) => {
                    let Some(number) = world.pick(index) else { continue };
                    let process = world.processes.get_mut(&number).expect("it lives");
                    if matches!(step, Step::Stop(_)) {
                        process.told = None;
                    }
                    if process.told.is_some() || matches!(step, Step::Stop(_)) {
                        process.accepts = false;
                        process.wish = State::Draining;
                        world.says(number);
                    }
                }
                Step::Read(index) => {
                    let Some(number) = world.pick(index) else { continue };
                    let told = world.is_told(number);
                    let process = world.processes.get_mut(&number).expect("it lives");
                    process.told = process.told.filter(|_| told != Some(false));
                }
                Step::Die(index) => {
                    let Some(number) = world.pick(index) else { continue };
                    let process = world.processes.remove(&number).expect("it lives");
                    if let Some(connection) = process.connection {
                        let label = world.shown.remove(&connection);
                        let was_let_in = label.is_some_and(|label| label.state != State::Starting);
                        let before = world.serving();
                        let actions = world.event(Event::Gone(ConnectionId(connection)));
                        let touched = |action: &Action| {
                            !matches!(action, Action::Record(_) | Action::Missed(..))
                        };
                        prop_assert!(
                            process.was_ready || !actions.iter().any(touched),
                            "invariant 3: {actions:?}"
                        );
                        prop_assert!(
                            was_let_in || before.is_none() || world.serving() == before,
                            "invariant 3, once it was ready: {actions:?}"
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
                        if let (Some(connection), State::Starting) =
                            (process.connection, process.wish)
                        {
                            process.wish = State::Serving;
                            process.was_ready = true;
                            let event = join(connection, number, State::Serving);
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
                place.ordered.is_some_and(|progress| progress.ready && !progress.retiring)
            });
            prop_assert!(!waits || world.succession.deadline().is_some(), "invariant 5");
            let places: Vec<Place> = world.succession.places().collect();
            for place in places.iter().filter(|place| place.label.state != State::Draining) {
                let newer = |other: &&Place| {
                    let ready = other.ordered.is_some_and(|progress| progress.ready);
                    other.label.generation > place.label.generation
                        && (ready || other.label.state == State::Serving)
                };
                let told = place.ordered.is_some_and(|progress| progress.retiring);
                prop_assert_eq!(told, places.iter().find(newer).is_some(), "for a newer one only");
            }
            for record in world.succession.records() {
                prop_assert_eq!(world.disk.get(&record.name), Some(&record), "written down");
            }
        }
        // From any state, the newest ready generation serves in bounded time.
        let starts = world.connect();
        world.event(join(starts, None, State::Serving));
        for _ in 0..3 {
            world.now += PATIENCE.max(ABSENCE);
            world.event(Event::Tick);
        }
        prop_assert_eq!(world.shown[&starts].state, State::Serving);
    }
}
