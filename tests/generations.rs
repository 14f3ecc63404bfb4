//! Generations that join through the library, blocking and with tokio, while the broker is killed
//! or upgraded at each step of their lives: the numbers stay the same and in order, never do two
//! accept, and the generation that must retire learns of it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use bindonce::{Claim, Stopped, aio};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::harness::{DEADLINE, Process, Scene, eventually};

/// The kind of handle of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Blocking,
    Tokio,
}

/// The handle, so that one test covers both kinds.
enum Handle {
    Blocking(bindonce::Generation),
    Tokio(Runtime, aio::Generation),
}

impl Handle {
    fn join(kind: Kind, path: &Path) -> Self {
        let service = "edge".parse().expect("a name");
        if kind == Kind::Blocking {
            return Self::Blocking(bindonce::Generation::join_at(path, &service).expect("join"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let joined = runtime.block_on(aio::Generation::join_at(path, &service)).expect("join");
        Self::Tokio(runtime, joined)
    }

    fn number(&self) -> u64 {
        match self {
            Self::Blocking(generation) => generation.number(),
            Self::Tokio(_, generation) => generation.number(),
        }
    }

    /// A descriptor of the listener, and the socket's inode.
    fn claim(&mut self) -> (OwnedFd, u64) {
        let claim = [Claim::from("web=127.0.0.1:0")];
        let leases = match self {
            Self::Blocking(generation) => generation.claim(&claim),
            Self::Tokio(runtime, generation) => runtime.block_on(generation.claim(&claim)),
        };
        let lease = leases.expect("claim").remove(0);
        let inode = lease.inode();
        (lease.into_fd(), inode)
    }

    fn ready(&mut self) {
        assert!(self.ready_within(DEADLINE), "in time");
    }

    /// Reports readiness. True if the generation was let in within `patience`.
    fn ready_within(&mut self, patience: Duration) -> bool {
        match self {
            Self::Blocking(generation) => match generation.ready(Some(Instant::now() + patience)) {
                Err(bindonce::Error::TimedOut { .. }) => false,
                done => done.map(|()| true).expect("ready"),
            },
            Self::Tokio(runtime, generation) => runtime
                .block_on(async { timeout(patience, generation.ready()).await })
                .is_ok_and(|done| done.map(|()| true).expect("ready")),
        }
    }

    fn retired(&mut self) {
        match self {
            Self::Blocking(generation) => {
                let until = Instant::now() + DEADLINE;
                assert!(generation.retired(Some(until)).expect("retired"), "in time");
            }
            Self::Tokio(runtime, generation) => runtime
                .block_on(async { timeout(DEADLINE, generation.retired()).await })
                .expect("in time")
                .expect("retired"),
        }
    }

    /// Handles a draining generation's messages for a moment.
    fn drain(&mut self) {
        match self {
            Self::Blocking(generation) => {
                let until = Instant::now() + Duration::from_millis(20);
                bindonce::wait_readable(&generation, Some(until)).expect("poll");
                assert!(generation.has_retired().expect("it drains"));
            }
            Self::Tokio(runtime, generation) => {
                let moment = async { tokio::time::sleep(Duration::from_millis(20)).await };
                runtime.block_on(generation.drain(moment));
            }
        }
    }

    fn stopped(&mut self) -> Stopped {
        match self {
            Self::Blocking(generation) => generation.stopped(),
            Self::Tokio(runtime, generation) => runtime.block_on(generation.stopped()),
        }
        .expect("stopped")
    }
}

/// A step at which a generation waits for the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It has joined and claimed.
    Joined,
    /// It accepts, and has not checked whether it must retire.
    Serving,
    /// It has learned that it must retire, and has closed its listener.
    Retiring,
    /// It has reported that it accepts no more.
    Draining,
}

/// A generation in its own thread.
struct Life {
    number: u64,
    reached: Receiver<Step>,
    go: Sender<()>,
    thread: JoinHandle<()>,
}

impl Life {
    /// Starts a generation, which waits at `Joined`.
    #[track_caller]
    fn start(kind: Kind, scene: &Scene, accepting: &Arc<AtomicUsize>) -> Self {
        let (step, reached) = channel();
        let (go, gate) = channel();
        let (tell, told) = channel();
        let (path, accepting) = (scene.socket(), Arc::clone(accepting));
        let thread = spawn(move || {
            let handle = Handle::join(kind, &path);
            tell.send(handle.number()).expect("the story goes on");
            live(handle, &accepting, &step, &gate);
        });
        let number = told.recv_timeout(DEADLINE).expect("it joins");
        let life = Self { number, reached, go, thread };
        life.reaches(Step::Joined);
        life
    }

    /// Waits until it reaches its next step.
    #[track_caller]
    fn next(&self) -> Step {
        self.reached.recv_timeout(DEADLINE).expect("it goes on")
    }

    #[track_caller]
    fn reaches(&self, expected: Step) {
        assert_eq!(self.next(), expected, "generation {}", self.number);
    }

    /// Lets it continue from its step.
    fn goes_on(&self) {
        self.go.send(()).expect("it stands");
    }

    /// Lets it continue until it drains. Returns how often it had stopped in vain.
    #[track_caller]
    fn drains(&self) -> usize {
        let mut in_vain = 0;
        loop {
            self.goes_on();
            match self.next() {
                Step::Draining => return in_vain,
                Step::Serving => in_vain += 1,
                _ => {}
            }
        }
    }

    /// Ends it at its current step.
    fn ends(self) {
        let Self { go, thread, .. } = self;
        drop(go);
        thread.join().expect("a good life");
    }
}

/// The life of a generation, from its claim to its end, or to the step where it must stop.
fn live(mut handle: Handle, accepting: &AtomicUsize, step: &Sender<Step>, gate: &Receiver<()>) {
    let stand = |at| step.send(at).is_ok() && gate.recv().is_ok();
    let number = handle.number();
    let (mut listener, inode) = handle.claim();
    if !stand(Step::Joined) {
        return;
    }
    loop {
        handle.ready();
        assert_eq!(accepting.fetch_add(1, Ordering::SeqCst), 0, "two accept");
        assert_eq!(handle.number(), number, "the same generation");
        let goes_on = stand(Step::Serving);
        if goes_on {
            handle.retired();
        }
        accepting.fetch_sub(1, Ordering::SeqCst);
        drop(listener);
        if !goes_on || !stand(Step::Retiring) {
            return;
        }
        if handle.stopped() == Stopped::Retired {
            break;
        }
        let again = handle.claim();
        assert_eq!(again.1, inode, "the same socket");
        listener = again.0;
    }
    step.send(Step::Draining).ok();
    while gate.try_recv() == Err(TryRecvError::Empty) {
        handle.drain();
    }
}

/// The fault of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Upgrade,
}

fn strikes(fault: Fault, scene: &Scene, broker: &mut Process) {
    if fault == Fault::Kill {
        broker.kill();
        *broker = scene.broker();
        return;
    }
    let before = shown(scene);
    scene.run("upgrade", &[]).ok();
    assert_eq!(shown(scene), before, "nobody notices");
}

/// The generations as `bindonce status` shows them: number and state.
fn shown(scene: &Scene) -> Vec<(u64, String)> {
    let status: Value = serde_json::from_str(&scene.run("status", &["--json"]).ok()).expect("JSON");
    let generations = status["services"][0]["generations"].as_array().cloned().unwrap_or_default();
    let shown = generations.into_iter().map(|generation| {
        let state = generation["state"].as_str().expect("a state").to_owned();
        (generation["generation"].as_u64().expect("a number"), state)
    });
    let shown: Vec<_> = shown.collect();
    let serving = shown.iter().filter(|(_, state)| state == "serving").count();
    assert!(serving <= 1, "{shown:?}");
    shown
}

#[track_caller]
fn shows(scene: &Scene, expected: &[(u64, &str)]) {
    let expected: Vec<_> =
        expected.iter().map(|(number, state)| (*number, (*state).to_owned())).collect();
    let mut last = Vec::new();
    let found = || {
        last = shown(scene);
        (last == expected).then_some(())
    };
    eventually(&format!("{expected:?}"), found);
}

/// A generation takes over from another, and the broker's fault happens when they are at step `at`.
/// Then a third one takes over as usual.
fn story(kind: Kind, fault: Fault, at: Step) {
    let (scene, mut broker) = Scene::with_broker();
    let accepting = Arc::new(AtomicUsize::new(0));
    let strike = |step: Step, broker: &mut Process| {
        if step == at {
            strikes(fault, &scene, broker);
        }
    };
    let old = Life::start(kind, &scene, &accepting);
    old.goes_on();
    old.reaches(Step::Serving);
    let new = Life::start(kind, &scene, &accepting);
    assert_eq!((old.number, new.number), (1, 2));
    shows(&scene, &[(1, "serving"), (2, "starting")]);
    strike(Step::Joined, &mut broker);
    new.goes_on();
    if at == Step::Serving {
        // The newer generation is ready; the older one has been told, but has not checked yet.
        broker.wait_line("told to retire");
        strike(Step::Serving, &mut broker);
    }
    old.goes_on();
    old.reaches(Step::Retiring);
    strike(Step::Retiring, &mut broker);
    let in_vain = old.drains();
    // The killed broker told it, and the next broker does not know the newer generation yet: the
    // older one then serves until the newer one is back.
    let told_before = fault == Fault::Kill && matches!(at, Step::Serving | Step::Retiring);
    assert!(in_vain == 0 || told_before, "{in_vain} times");
    new.reaches(Step::Serving);
    strike(Step::Draining, &mut broker);
    new.goes_on();
    shows(&scene, &[(1, "draining"), (2, "serving")]);
    old.ends();
    let third = Life::start(kind, &scene, &accepting);
    assert_eq!(third.number, 3);
    shows(&scene, &[(2, "serving"), (3, "starting")]);
    third.goes_on();
    new.reaches(Step::Retiring);
    assert_eq!(new.drains(), 0);
    third.reaches(Step::Serving);
    shows(&scene, &[(2, "draining"), (3, "serving")]);
    new.ends();
    shows(&scene, &[(3, "serving")]);
    third.ends();
}

/// A newer generation dies before it is let in, after the older one has stopped accepting for it;
/// in some cases the broker dies too.
fn death(kind: Kind, fault: Option<Fault>) {
    let (scene, mut broker) = Scene::with_broker();
    let accepting = Arc::new(AtomicUsize::new(0));
    let old = Life::start(kind, &scene, &accepting);
    old.goes_on();
    old.reaches(Step::Serving);
    let mut new = Handle::join(kind, &scene.socket());
    assert!(!new.ready_within(Duration::from_millis(1)), "the older one accepts");
    old.goes_on();
    old.reaches(Step::Retiring);
    drop(new);
    broker.wait_line("told to stay");
    if let Some(fault) = fault {
        strikes(fault, &scene, &mut broker);
    }
    old.goes_on();
    old.reaches(Step::Serving);
    shows(&scene, &[(1, "serving")]);
    let next = Life::start(kind, &scene, &accepting);
    assert_eq!(next.number, 3);
    next.goes_on();
    assert_eq!(old.drains(), 0);
    next.reaches(Step::Serving);
    shows(&scene, &[(1, "draining"), (3, "serving")]);
    old.ends();
    next.ends();
}

const STEPS: [Step; 4] = [Step::Joined, Step::Serving, Step::Retiring, Step::Draining];

#[test]
fn a_killed_broker_changes_nothing_for_generations_that_block() {
    STEPS.into_iter().for_each(|at| story(Kind::Blocking, Fault::Kill, at));
}

#[test]
fn a_killed_broker_changes_nothing_for_generations_with_tokio() {
    STEPS.into_iter().for_each(|at| story(Kind::Tokio, Fault::Kill, at));
}

#[test]
fn an_upgraded_broker_changes_nothing_for_generations_that_block() {
    STEPS.into_iter().for_each(|at| story(Kind::Blocking, Fault::Upgrade, at));
}

#[test]
fn an_upgraded_broker_changes_nothing_for_generations_with_tokio() {
    STEPS.into_iter().for_each(|at| story(Kind::Tokio, Fault::Upgrade, at));
}

#[test]
fn one_that_dies_before_it_is_let_in_leaves_the_older_one_serving() {
    for kind in [Kind::Blocking, Kind::Tokio] {
        for fault in [None, Some(Fault::Kill), Some(Fault::Upgrade)] {
            death(kind, fault);
        }
    }
}
