//! The work of a generation, in particular after it has stopped accepting.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bindonce_haproxy::cli::Info;
use serde::{Deserialize, Serialize};

/// How far back "lately" goes.
pub(crate) const LATELY: Duration = Duration::from_secs(10);

/// Work of a generation: all of it, or the part since it stopped accepting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Since {
    pub(crate) requests: u64,
    /// Bytes sent.
    pub(crate) bytes: u64,
}

impl Since {
    /// All work of a haproxy since its start.
    pub(crate) fn all(info: &Info) -> Self {
        Self { requests: info.requests, bytes: info.sent }
    }

    /// The work since `before`.
    pub(crate) fn less(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            bytes: self.bytes.saturating_sub(before.bytes),
        }
    }

    pub(crate) fn add(&mut self, more: Self) {
        self.requests += more.requests;
        self.bytes += more.bytes;
    }
}

/// Recent work, with its time. Generations report once a second, those that begin to drain ten
/// times a second.
#[derive(Debug, Default)]
pub(crate) struct Lately(VecDeque<(Instant, Since)>);

impl Lately {
    pub(crate) fn add(&mut self, now: Instant, more: Since) {
        let old = self.0.iter().take_while(|(at, _)| now.duration_since(*at) > LATELY).count();
        self.0.drain(..old);
        self.0.push_back((now, more));
    }

    pub(crate) fn sum(&self, now: Instant) -> Since {
        let mut sum = Since::default();
        let recent = self.0.iter().filter(|(at, _)| now.duration_since(*at) <= LATELY);
        recent.for_each(|(_, more)| sum.add(*more));
        sum
    }
}

/// The same for the next image of this process: how many milliseconds ago, and the work.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedLately {
    /// Of all generations.
    pub(crate) all: Vec<(u64, Since)>,
    /// Of those that drain.
    pub(crate) draining: Vec<(u64, Since)>,
}

impl Lately {
    pub(crate) fn saved(&self, now: Instant) -> Vec<(u64, Since)> {
        let age = |at: &Instant| u64::try_from(now.duration_since(*at).as_millis()).ok();
        self.0.iter().filter_map(|(at, more)| Some((age(at)?, *more))).collect()
    }

    /// Restores the work of all generations, and of those that drain.
    pub(crate) fn resume_both(saved: &SavedLately) -> (Self, Self) {
        let now = Instant::now();
        (Self::resume(&saved.all, now), Self::resume(&saved.draining, now))
    }

    /// The time between the two images does not count.
    fn resume(saved: &[(u64, Since)], now: Instant) -> Self {
        let at = |age: u64| now.checked_sub(Duration::from_millis(age));
        Self(saved.iter().filter_map(|(age, more)| Some((at(*age)?, *more))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let (begun, mut lately) = (Instant::now(), Lately::default());
        let since = |requests| Since { requests, bytes: 10 * requests };
        for second in 0..30u32 {
            lately.add(begun + second * Duration::from_secs(1), since(1));
        }
        // The eleven of seconds 19 to 29.
        assert_eq!(lately.sum(begun + 29 * Duration::from_secs(1)), since(11));
        assert_eq!(lately.0.len(), 11);
        let now = begun + 30 * Duration::from_secs(1);
        let resumed = Lately::resume(&lately.saved(now), now);
        assert_eq!((resumed.sum(now), lately.sum(now)), (since(10), since(10)));
        assert_eq!(lately.sum(begun + 60 * Duration::from_secs(1)), Since::default());
    }

    #[test]
    fn what_came_between_two_answers_is_added() {
        let all = |requests, sent| Since::all(&Info { requests, sent, ..Info::default() });
        let mut since = Since::default();
        since.add(all(112, 6000).less(all(100, 5000)));
        since.add(all(113, 6001).less(all(112, 6000)));
        assert_eq!(since, Since { requests: 13, bytes: 1001 });
        // Another process has answered.
        assert_eq!(all(3, 3).less(all(7, 7)), Since::default());
    }
}
