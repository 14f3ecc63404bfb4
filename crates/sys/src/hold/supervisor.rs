//! The supervisor's side of a hold.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use tokio::sync::watch;

use crate::intercept::{Call, Intercept};

/// Holds a program when it signals readiness, until it is released.
///
/// A call before [`release`](Self::release) waits; a call after it continues at once, as does a
/// call that a signal interrupted and that comes again. A task of its own answers, for as long as
/// the process and its children live. Dropping the value releases the program.
///
/// While held, the process reacts only to signals that end it, and to these only if it does not
/// handle them. It handles all others after the release. SIGKILL always ends it.
#[derive(Debug)]
pub struct Hold {
    state: Arc<Mutex<State>>,
    news: watch::Receiver<News>,
}

/// The state of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    None,
    /// This thread has called kill().
    Called(i32),
    /// The program has ended, and so have its children.
    Ended,
    Failed(Errno),
}

impl Hold {
    /// Holds the program that makes these calls; `others` gets the calls that are not the readiness
    /// signal. Call it within a tokio runtime.
    pub fn new(calls: Arc<Intercept>, others: impl Fn(Call) + Send + 'static) -> Self {
        let state = Arc::new(Mutex::new(State { waits: None, released: false }));
        let (sender, news) = watch::channel(News::None);
        tokio::spawn(follow(calls, Arc::clone(&state), others, sender));
        Self { state, news }
    }

    /// Waits until the program signals readiness, and returns the pid (the thread id) of the
    /// sender, which stays in the call unless it was released before. None if the program and all
    /// its children have ended without the signal; some kernels report that only once the process
    /// has been reaped.
    ///
    /// # Errors
    /// Errors from ioctl(2) SECCOMP_IOCTL_NOTIF_RECV. Drop the hold then: nothing is held any more
    /// once its last descriptor closes.
    pub async fn called(&self) -> io::Result<Option<i32>> {
        let mut news = self.news.clone();
        match news.wait_for(|news| *news != News::None).await.as_deref() {
            Ok(News::Called(pid)) => Ok(Some(*pid)),
            Ok(News::Failed(errno)) => Err((*errno).into()),
            // The runtime is being shut down.
            Ok(News::Ended | News::None) | Err(_) => Ok(None),
        }
    }

    /// Releases the program, now and whenever it sends this signal again. The signal itself is not
    /// sent: it tells nothing new, and while pending it would swallow the same signal from another
    /// process. It is not an error if the program has ended.
    pub fn release(&self) {
        let mut state = lock(&self.state);
        state.released = true;
        if let Some(call) = state.waits.take() {
            call.succeed();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

#[derive(Debug)]
struct State {
    /// The waiting call; a newer one replaces one that was interrupted.
    waits: Option<Call>,
    released: bool,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Nothing panics while the lock is held, and every state is valid.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers calls until no process is left that could make one.
async fn follow(
    calls: Arc<Intercept>,
    state: Arc<Mutex<State>>,
    others: impl Fn(Call) + Send,
    news: watch::Sender<News>,
) {
    let last = loop {
        match calls.next().await {
            Ok(Some(call)) if call.is_readiness() => {
                let pid = call.pid();
                {
                    let mut state = lock(&state);
                    if state.released {
                        call.go_on();
                    } else {
                        state.waits = Some(call);
                    }
                }
                news.send_replace(News::Called(pid));
            }
            Ok(Some(call)) => others(call),
            Ok(None) => break News::Ended,
            Err(error) => {
                break News::Failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
            }
        }
    };
    news.send_replace(last);
}

#[cfg(test)]
mod tests {
    use std::os::unix::thread::{JoinHandleExt, RawPthread};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use nix::libc;
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
    use nix::unistd::{Pid, getpid, gettid};

    use super::*;
    use crate::filter::{self, Watched};

    const DEADLINE: Duration = Duration::from_secs(10);

    static HANDLED: AtomicU32 = AtomicU32::new(0);

    extern "C" fn handle(_: libc::c_int) {
        HANDLED.fetch_add(1, Ordering::SeqCst);
    }

    fn on(signal: Signal, handler: SigHandler) {
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler only adds to an atomic number.
        unsafe { sigaction(signal, &action) }.expect("sigaction");
    }

    fn interrupt(thread: RawPthread) {
        // SAFETY: the thread has not been joined, so its handle is valid.
        assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGUSR2) }, 0);
    }

    async fn until(what: impl Fn() -> bool) {
        let wait = async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("in time");
    }

    /// As on a kernel before 5.19: a signal interrupts the call, and it comes again as a new one.
    #[tokio::test]
    async fn a_call_that_is_interrupted_stays_held() {
        on(Signal::SIGUSR1, SigHandler::SigIgn);
        on(Signal::SIGUSR2, SigHandler::Handler(handle));
        let (listener, given) = mpsc::channel();
        let (told, results) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let watched = Watched {
                readiness: Some(getpid().as_raw()),
                binds: false,
                listens: false,
                unlinks: false,
            };
            let installed = filter::install_with(watched, true, filter::INTERRUPTED);
            let refused = installed.is_err();
            listener.send((gettid(), installed)).expect("send");
            for _ in 0..if refused { 0 } else { 2 } {
                #[expect(clippy::disallowed_methods, reason = "the call that is held")]
                told.send(kill(getpid(), Signal::SIGUSR1)).expect("send");
            }
        });
        let (tid, installed): (Pid, _) = given.recv().expect("a thread");
        let listener = match installed {
            Ok(listener) => listener,
            Err(error) => return crate::testing::skip(&format!("a hold: {error}")),
        };
        let hold = Hold::new(Arc::new(Intercept::new(listener, Vec::new()).expect("calls")), drop);
        let called = tokio::time::timeout(DEADLINE, hold.called()).await.expect("in time");
        assert_eq!(called.expect("a call"), Some(tid.as_raw()));
        for round in 1..=3 {
            let id = || lock(&hold.state).waits.as_ref().map(Call::id);
            let first = id().expect("a call waits");
            interrupt(thread.as_pthread_t());
            until(|| id().is_some_and(|id| id != first)).await;
            assert_eq!(HANDLED.load(Ordering::SeqCst), round);
            assert!(results.try_recv().is_err(), "held");
        }
        hold.release();
        until(|| thread.is_finished()).await;
        assert_eq!(results.iter().collect::<Vec<_>>(), [Ok(()), Ok(())]);
        thread.join().expect("join");
        until(|| *hold.news.borrow() == News::Ended).await;
    }
}
