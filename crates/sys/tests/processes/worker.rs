//! Programs started beside a runtime that must not block. Their shim is stopped before it has read
//! its descriptors, which are more than a socket takes.

use std::rc::Rc;
use std::time::Duration;

use bindonce_sys::process::{self, Exit, Pidfd};
use bindonce_sys::spawn::{Launch, Started};
use nix::sys::signal::Signal;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};

use crate::Test;
use crate::programs::wait;

pub(crate) const TESTS: &[Test] = &[
    ("a shim that is stalled holds up no runtime", stalled),
    ("a start that nobody waits for leaves no process", given_up),
];

const DEADLINE: Duration = Duration::from_secs(60);

fn launch(script: &str) -> Launch {
    let null = Rc::new(std::fs::File::open("/dev/null").expect("open"));
    let descriptor = |n: usize| {
        let copy = null.try_clone().expect("a copy");
        (format!("V{n}_{}", "x".repeat(2000)), std::sync::Arc::new(copy.into()))
    };
    let mut launch = Launch::new("sh");
    launch.args = vec!["-c".into(), script.into()];
    launch.descriptors = (0..400).map(descriptor).collect();
    launch
}

/// Starts a program, stops its shim, and returns the shim.
fn begin(launch: Launch) -> (JoinHandle<Started>, oneshot::Receiver<Pidfd>) {
    let (tell, told) = oneshot::channel();
    let start = tokio::task::spawn_local(async move {
        let stop = |pid| {
            let shim = Pidfd::open(pid).expect("the shim");
            shim.send(Signal::SIGSTOP).expect("a signal");
            tell.send(shim).expect("somebody waits");
        };
        launch.start_aside(stop).await.expect("started")
    });
    (start, told)
}

fn on_a_runtime(what: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), what);
}

fn stalled() {
    on_a_runtime(async {
        let (start, told) = begin(launch("exit 7"));
        let shim = told.await.expect("the shim");
        // Reaching this line shows that the runtime is not blocked.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!start.is_finished(), "it was not stalled");
        shim.send(Signal::SIGCONT).expect("a signal");
        let started = tokio::time::timeout(DEADLINE, start).await.expect("in time");
        let exit = wait(&started.expect("a task").pidfd);
        assert_eq!(exit, Exit::Code(7));
    });
}

fn given_up() {
    on_a_runtime(async {
        let (start, told) = begin(launch("sleep 1000"));
        let shim = told.await.expect("the shim");
        start.abort();
        shim.send(Signal::SIGCONT).expect("a signal");
        let gone = async {
            while process::start_time(shim.pid()).is_some() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(DEADLINE, gone).await.expect("it is gone");
    });
}
