//! What "at once" means on the machine that runs the tests. A thread measures for how long it was
//! kept from running; a limit grows with that. So a test still fails where a program waits out a
//! deadline of the product's, and does not fail because other work keeps the cores busy.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The longest that the measuring thread was late, in nanoseconds.
static LATE: AtomicU64 = AtomicU64::new(0);

/// How often the thread wants to run.
const TICK: Duration = Duration::from_millis(5);

/// A request passes some processes, each of which may be kept from running as long as the thread was.
const TURNS: u32 = 20;

/// Begins to measure; once in a process.
pub(super) fn measure() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        std::thread::spawn(|| {
            loop {
                let due = Instant::now() + TICK;
                std::thread::sleep(TICK);
                let late = due.elapsed().as_nanos();
                LATE.fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Relaxed);
            }
        });
    });
}

/// The longest that something may take on this machine which takes `limit` at most on an idle one.
pub(crate) fn allow(limit: Duration) -> Duration {
    limit + Duration::from_nanos(LATE.load(Relaxed)).saturating_mul(TURNS)
}
