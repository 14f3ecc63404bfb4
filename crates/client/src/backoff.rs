//! What to do after an error of accept(2): continue at once, wait first, or give up.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;

/// The first pause after an error that only time can cure; each further pause is twice as long.
const FIRST: Duration = Duration::from_millis(5);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// What to do after one call of accept(2).
pub(crate) enum Verdict<S, A> {
    Accepted(S, A),
    /// No client waits, another process was faster, or a client left the queue: wait for the next
    /// one.
    Wait,
    /// The process or the kernel has run out of a resource: try again after this time.
    Pause(Duration),
    /// The error is permanent.
    Failed(io::Error),
}

type Tell = Box<dyn Fn(&io::Error) + Send + Sync>;

/// Counts consecutive errors of accept(2).
#[derive(Default)]
pub(crate) struct Backoff {
    failures: AtomicU32,
    tell: Option<Tell>,
}

impl Backoff {
    /// Calls `tell` with the first of several consecutive errors.
    pub(crate) fn tell(&mut self, tell: impl Fn(&io::Error) + Send + Sync + 'static) {
        self.tell = Some(Box::new(tell));
    }

    /// Judges the result of accept(2).
    pub(crate) fn judge<S, A>(&self, accepted: io::Result<(S, A)>) -> Verdict<S, A> {
        let error = match accepted {
            Ok((stream, peer)) => {
                self.failures.store(0, Ordering::Relaxed);
                return Verdict::Accepted(stream, peer);
            }
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            // accept(2) also gives network errors that concern only the one client.
            Some(
                Errno::AGAIN
                | Errno::CONNABORTED
                | Errno::INTR
                | Errno::NETDOWN
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH
                | Errno::PERM,
            ) => Verdict::Wait,
            // EINVAL: another holder has shut down the shared socket, and the broker makes it
            // listen again.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::INVAL) => {
                let before = self.failures.fetch_add(1, Ordering::Relaxed);
                if before == 0 {
                    if let Some(tell) = &self.tell {
                        tell(&error);
                    }
                }
                Verdict::Pause(FIRST.saturating_mul(1 << before.min(16)).min(LONGEST))
            }
            _ => Verdict::Failed(error),
        }
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backoff").field("failures", &self.failures).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn failed(errno: Errno) -> io::Result<((), ())> {
        Err(errno.into())
    }

    #[test]
    fn a_pause_grows_to_a_second_and_is_told_once() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let mut backoff = Backoff::default();
        let list = Arc::clone(&told);
        backoff.tell(move |error| list.lock().expect("lock").push(error.raw_os_error()));
        let pause = |backoff: &Backoff| match backoff.judge(failed(Errno::MFILE)) {
            Verdict::Pause(pause) => pause,
            _ => Duration::MAX,
        };
        assert_eq!(pause(&backoff), FIRST);
        assert_eq!(pause(&backoff), 2 * FIRST);
        for _ in 0..70 {
            assert!(pause(&backoff) <= LONGEST);
        }
        assert_eq!(pause(&backoff), LONGEST);
        assert_eq!(told.lock().expect("lock").len(), 1);
        // No client waits: that is no success.
        assert!(matches!(backoff.judge(failed(Errno::AGAIN)), Verdict::Wait));
        assert_eq!(pause(&backoff), LONGEST);
        assert!(matches!(backoff.judge(Ok(((), ()))), Verdict::Accepted((), ())));
        assert_eq!(pause(&backoff), FIRST);
        assert_eq!(told.lock().expect("lock").len(), 2);
    }

    #[test]
    fn what_no_wait_mends_is_an_error() {
        for errno in [Errno::BADF, Errno::NOTSOCK, Errno::FAULT] {
            assert!(matches!(Backoff::default().judge(failed(errno)), Verdict::Failed(_)));
        }
    }
}
