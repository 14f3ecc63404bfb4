//! The harness of every test: a [`Scene`] (a directory, a network namespace, a broker), [`Process`]
//! (a child whose output is read line by line), [`Wire`] (a plain client of the protocol), and
//! haproxy with its configurations.

mod binaries;
mod guest;
mod haproxy;
mod kernel;
mod patience;
mod process;
mod scene;
mod skip;
mod stage;
mod stalled;
mod stranger;
mod terminal;
mod wire;

use std::time::{Duration, Instant};

pub(crate) use binaries::{bindonce, root};
pub(crate) use guest::{Guest, rows};
pub(crate) use haproxy::{Haproxy, assert_nothing_lost, config, serves};
pub(crate) use kernel::{Listening, listening, open_files, wait_pending};
pub(crate) use patience::{Pause, allow};
pub(crate) use process::{Finished, Process, finish};
pub(crate) use scene::Scene;
pub(crate) use skip::skip;
pub(crate) use stage::{Fault, Stage, with_faults};
pub(crate) use stalled::{Stalled, own_mounts};
pub(crate) use stranger::Stranger;
pub(crate) use terminal::Terminal;
pub(crate) use wire::Wire;

/// The longest wait for something that should happen at once. Long, because test machines may be
/// slow; a passing test never waits this long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Repeats `probe` until it returns something, and fails the test at the deadline. For conditions
/// without an event that a test could wait for.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    let mut pause = Pause::new();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} in vain: {what}");
        pause.sleep();
    }
}
