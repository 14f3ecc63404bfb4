//! The meaning of "at once" on the machine that runs the tests. A thread measures how long it was
//! kept from running, and limits grow with that. So a test still fails if a program waits for one
//! of the product's deadlines, but not because other work keeps the cores busy.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The longest that the measuring thread was late, in nanoseconds.
static LATE: AtomicU64 = AtomicU64::new(0);

/// Interval at which the thread wants to run.
const TICK: Duration = Duration::from_millis(5);

/// A request passes several processes, each of which may be kept from running as long as the thread
/// was.
const TURNS: u32 = 20;

/// The pauses between two looks at something that no event announces: short at first, for what
/// happens at once, then longer, since each look takes time from the tests beside.
pub(crate) struct Pause(Duration);

impl Pause {
    const FIRST: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_millis(50);

    pub(crate) fn new() -> Self {
        Self(Self::FIRST)
    }

    pub(crate) fn sleep(&mut self) {
        std::thread::sleep(self.0);
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}

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

/// The limit on this machine for an action that takes at most `limit` on an idle one.
pub(crate) fn allow(limit: Duration) -> Duration {
    limit + Duration::from_nanos(LATE.load(Relaxed)).saturating_mul(TURNS)
}
