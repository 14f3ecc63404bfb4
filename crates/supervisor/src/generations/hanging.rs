//! Detects a haproxy that has finished its work and never exits.
//!
//! haproxy's threads leave one after the other when the last connection has ended, and the first
//! one then waits for the others. A signal that arrives in between stays in haproxy's queue, which
//! only the first thread reads. In 2.6.12 each other thread sees the pending signal, does not
//! leave, and looks again at once: it uses a whole processor, for ever. 3.0 does not. Such a signal
//! arrives when a service is stopped by `kill -USR1 $(pidof haproxy)`: one goes to the process, and
//! one to the supervisor, which then signals the process too.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bindonce_sys::process;

/// Minimum time for which the first thread must have slept.
const LONG: Duration = Duration::from_secs(5);

/// What was seen of the processes of one generation.
#[derive(Default)]
pub(crate) struct Hanging {
    /// For each process, its current sleep and since when that lasts.
    asleep: BTreeMap<i32, (u64, Instant)>,
}

impl Hanging {
    /// Whether all these processes wait for threads of their own that do not end. False if there
    /// are none.
    pub(crate) fn look(&mut self, pids: impl IntoIterator<Item = i32>) -> bool {
        let seen = pids.into_iter().map(|pid| (pid, process::sleeps_for_a_thread(pid)));
        self.see(seen, Instant::now())
    }

    fn see(&mut self, seen: impl Iterator<Item = (i32, Option<u64>)>, now: Instant) -> bool {
        let mut asleep = BTreeMap::new();
        let mut all = true;
        for (pid, sleep) in seen {
            let Some(sleep) = sleep else {
                all = false;
                continue;
            };
            let known = self.asleep.get(&pid).filter(|(before, _)| *before == sleep);
            let since = known.map_or(now, |(_, since)| *since);
            all &= now.saturating_duration_since(since) >= LONG;
            asleep.insert(pid, (sleep, since));
        }
        self.asleep = asleep;
        all && !self.asleep.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sleep_of_all_is_waited_for() {
        let (mut hanging, begun) = (Hanging::default(), Instant::now());
        let mut at = |seconds: u64, seen: &[(i32, Option<u64>)]| {
            hanging.see(seen.iter().copied(), begun + Duration::from_secs(seconds))
        };
        assert!(!at(0, &[(7, Some(3))]));
        assert!(!at(4, &[(7, Some(3))]));
        assert!(at(5, &[(7, Some(3))]));
        assert!(!at(6, &[(7, Some(4))]), "it has run in between");
        assert!(!at(12, &[(7, Some(4)), (8, None)]), "another process works");
        assert!(!at(13, &[(7, None)]));
        assert!(!at(14, &[(7, Some(4))]), "it has worked in between");
        assert!(at(19, &[(7, Some(4))]));
        assert!(!at(30, &[]));
    }
}
