//! Time limits that count only the time in which this process runs. While a process is stopped
//! (SIGSTOP, a frozen container, a machine that sleeps) its deadlines pass. Yet what it waits for
//! may have come long before it continues, or may need no more than its usual time.
//!
//! No clock stops with the process. So a wait is made in parts, with a look at the clock after each:
//! a look that comes much later than planned shows how long the process was stopped.

use std::error::Error;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// A look may be this late on a busy machine.
const LATE: Duration = Duration::from_millis(100);
/// The remaining time until a deadline is divided by this number to get the interval between two
/// looks. A stop therefore costs at most one such part of it.
const PARTS: u32 = 10;
/// Limits of that interval. The minimum ensures that the last parts end.
const PART: RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(30);

/// How long the look after a limit waits. It is not zero, so that a wait of tokio includes a
/// question to the kernel: after a stop epoll_wait(2) returns early and without the events that are
/// there (signal(7)).
pub const LAST_LOOK: Duration = Duration::from_millis(1);

/// The time that this process missed because it was stopped.
#[derive(Debug, Default)]
pub struct OwnTime {
    missed: Duration,
    /// When the clock is looked at next: now, until there is a wait, and then at the end of that
    /// wait. None while there is no deadline to wait for.
    next: Option<Instant>,
}

impl OwnTime {
    /// All time missed until `now`.
    pub fn missed(&mut self, now: Instant) -> Duration {
        // A stop between two waits counts too: a deadline may be set before it and looked at after
        // it.
        if let Some(next) = self.next.replace(now) {
            let late = now.saturating_duration_since(next);
            if late > LATE {
                self.missed += late;
            }
        }
        self.missed
    }

    /// The time of the next look, with `left` until the deadline.
    pub fn look_again(&mut self, now: Instant, left: Option<Duration>) -> Option<Instant> {
        let part = left.map(|left| (left / PARTS).clamp(*PART.start(), *PART.end()).min(left));
        self.next = part.map(|part| now + part);
        self.next
    }
}

/// A limit for one wait, which is made in parts. Between two parts the waiter looks whether what it
/// waits for is there.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    /// When the first part began.
    begun: Option<Instant>,
    own: OwnTime,
    /// The look after the limit was given.
    over: bool,
}

impl Patience {
    /// A limit that counts from the first part on.
    pub fn new(limit: Duration) -> Self {
        Self { limit, begun: None, own: OwnTime::default(), over: false }
    }

    /// The limit.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// How long to wait at most until the next look. After the limit there is one more look, of
    /// [`LAST_LOOK`]: what is there decides, not the clock. Then None.
    pub fn next_wait(&mut self, now: Instant) -> Option<Duration> {
        let begun = *self.begun.get_or_insert(now);
        let missed = self.own.missed(now);
        let passed = now.saturating_duration_since(begun).saturating_sub(missed);
        let left = self.limit.saturating_sub(passed);
        if left.is_zero() {
            return (!std::mem::replace(&mut self.over, true)).then_some(LAST_LOOK);
        }
        let look = self.own.look_again(now, Some(left))?;
        Some(look.saturating_duration_since(now).max(LAST_LOOK))
    }
}

/// The limit of a wait has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late;

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl Error for Late {}

impl From<Late> for io::Error {
    fn from(late: Late) -> Self {
        Self::new(io::ErrorKind::TimedOut, late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[expect(clippy::disallowed_methods, reason = "any point in time will do")]
    fn any_time() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_stop_costs_a_tenth_of_what_is_left_at_most() {
        let (mut own, begun) = (OwnTime::default(), any_time());
        assert_eq!(own.look_again(begun, None), None);
        assert_eq!(own.missed(begun + 100 * SECOND), Duration::ZERO, "nothing is waited for");
        let look = own.look_again(begun, Some(5 * SECOND)).expect("a look");
        assert_eq!(look, begun + SECOND / 2);
        // Late, but not stopped.
        assert_eq!(own.missed(look + LATE), Duration::ZERO);
        // Stopped for a minute, once.
        let look = own.look_again(begun, Some(5 * SECOND)).expect("a look");
        assert_eq!(own.missed(look + 60 * SECOND), 60 * SECOND);
        assert_eq!(own.missed(look + 60 * SECOND), 60 * SECOND);
        // And again, just before the deadline.
        let look = own.look_again(begun, Some(Duration::from_millis(2))).expect("a look");
        assert_eq!(look, begun + Duration::from_millis(2));
        assert_eq!(own.missed(look + 7 * SECOND), 67 * SECOND);
    }

    #[test]
    fn a_stop_in_the_middle_of_a_turn_costs_nothing() {
        let (mut own, begun) = (OwnTime::default(), any_time());
        own.look_again(begun, None);
        // A message begins a start, and the process is stopped before it waits for its deadline.
        let set = begun + 3 * SECOND;
        assert_eq!(own.missed(set), Duration::ZERO);
        assert_eq!(own.missed(set + SECOND / 100), Duration::ZERO);
        assert_eq!(own.missed(set + SECOND / 100 + 4 * SECOND), 4 * SECOND);
    }

    /// Waits in full until the limit is over, and returns when that is.
    fn wait_out(patience: &mut Patience, mut now: Instant) -> Instant {
        while let Some(wait) = patience.next_wait(now) {
            now += wait;
        }
        now
    }

    #[test]
    fn a_limit_lasts_as_long_as_it_says_and_then_there_is_one_more_look() {
        for limit in [Duration::ZERO, SECOND / 1000, SECOND / 3, 600 * SECOND] {
            let (mut patience, begun) = (Patience::new(limit), any_time());
            let over = wait_out(&mut patience, begun).duration_since(begun);
            assert!((limit + LAST_LOOK..=limit + 2 * LAST_LOOK).contains(&over), "{over:?}");
            assert_eq!(patience.next_wait(begun + over), None);
        }
        // Events that end each part early do not extend it.
        let (mut patience, begun) = (Patience::new(SECOND), any_time());
        let looks = (0_u32..).take_while(|look| patience.next_wait(begun + *look * LATE).is_some());
        assert_eq!(looks.count(), 11);
        assert_eq!(Patience::new(Duration::MAX).next_wait(begun), Some(*PART.end()));
    }

    #[test]
    fn the_time_in_which_the_process_was_stopped_does_not_count() {
        let (mut patience, begun) = (Patience::new(10 * SECOND), any_time());
        assert_eq!(patience.next_wait(begun), Some(SECOND));
        // It continues after an hour. Only that part is lost.
        let now = begun + 3600 * SECOND;
        let rest = wait_out(&mut patience, now).duration_since(now);
        assert!((9 * SECOND..=9 * SECOND + 2 * LAST_LOOK).contains(&rest), "{rest:?}");
    }

    #[test]
    fn after_a_stop_in_the_last_part_what_came_meanwhile_is_looked_at() {
        let (mut patience, mut now) = (Patience::new(SECOND), any_time());
        let over = now + SECOND;
        while now < over {
            now += patience.next_wait(now).expect("before the limit");
        }
        // That part has taken an hour.
        now += 3600 * SECOND;
        assert_eq!(patience.next_wait(now), Some(LAST_LOOK));
        assert_eq!(patience.next_wait(now + LAST_LOOK), None);
    }
}
