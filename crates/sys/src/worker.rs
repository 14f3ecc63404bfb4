//! Threads for work that may block, beside the one that decides. They block every signal, so that
//! signals reach only the descriptor that [`crate::signals`] reads.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Starts a thread with every signal blocked.
///
/// # Errors
/// Errors from pthread_create(3).
pub fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    // Boxed: the code that starts a thread is compiled once, not for each kind of work.
    start_boxed(name, Box::new(work))
}

fn start_boxed(name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    // A thread inherits the signal mask of the thread that starts it.
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let started = Builder::new().name(name.to_owned()).spawn(work);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    started
}

/// The places for threads of one kind of work, including stalled ones.
struct Places {
    most: usize,
    taken: AtomicUsize,
}

/// Places for [`within`].
static ANY: Places = Places { most: 64, taken: AtomicUsize::new(0) };
/// Places for [`start_within`].
static STARTS: Places = Places { most: 16, taken: AtomicUsize::new(0) };

/// A place that is taken until this is dropped.
struct Place(&'static Places);

impl Places {
    /// # Errors
    /// If none is free.
    fn take(&'static self) -> io::Result<Place> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        let place = Place(self);
        if before < self.most {
            return Ok(place);
        }
        let most = self.most;
        let text = format!("{most} earlier ones are stalled: does a file system not answer?");
        Err(io::Error::other(text))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs work that may stall (a file system that does not answer, a name server) on a thread of its
/// own, and waits for the result. Work that is late is abandoned: the thread stays until the system
/// call returns, and nothing waits for it, not even the end of the process.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if the work was abandoned; an error with the text that earlier work
/// is stalled, if 64 threads are at work; errors from pthread_create(3).
pub async fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    at(ANY.take()?, limit, work).await
}

/// As [`within`], with 16 places of its own: a process can be started however many reads are
/// stalled.
///
/// # Errors
/// As [`within`].
pub async fn start_within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    at(STARTS.take()?, limit, work).await
}

async fn at<T: Send + 'static>(
    place: Place,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (send, done) = tokio::sync::oneshot::channel();
    start("aside", move || {
        // The caller may have given up waiting.
        let _ = send.send(work());
        drop(place);
    })?;
    match crate::patience::timeout(limit, done).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(_)) => Err(io::Error::other("it panicked")),
        Err(_) => {
            let text = format!("not done within {}", bindonce_core::duration::format(limit));
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_stalls_is_abandoned_and_the_rest_goes_on() {
        let limit = Duration::from_millis(10);
        let mut ends = Vec::new();
        for _ in 0..8 {
            let (end, ended) = mpsc::channel::<()>();
            ends.push(end);
            let stalled = within(limit, move || ended.recv()).await;
            assert_eq!(stalled.expect_err("abandoned").kind(), io::ErrorKind::TimedOut);
        }
        assert_eq!(within(Duration::from_secs(60), || 7).await.expect("done"), 7);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn however_many_reads_are_stalled_a_process_can_be_started() {
        static READS: Places = Places { most: 2, taken: AtomicUsize::new(0) };
        let stalled = || {
            let (end, ended) = mpsc::channel::<()>();
            let place = READS.take().expect("a place");
            (end, at(place, Duration::from_millis(10), move || ended.recv()))
        };
        let (ends, stalled): (Vec<_>, Vec<_>) = (0..2).map(|_| stalled()).unzip();
        for stalled in stalled {
            assert_eq!(stalled.await.expect_err("late").kind(), io::ErrorKind::TimedOut);
        }
        let refused = READS.take().map(drop).expect_err("no place").to_string();
        assert!(refused.starts_with("2 earlier ones are stalled"), "{refused}");
        assert_eq!(start_within(Duration::from_secs(60), || 7).await.expect("done"), 7);
        drop(ends);
    }
}
