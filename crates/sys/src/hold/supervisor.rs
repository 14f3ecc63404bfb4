//! The supervisor's side of a hold.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use tokio::sync::watch;

use crate::calls::{Calls, Waiting};
use crate::watch::Watch;

/// A program that is held when it says that it is ready, until it is let go.
///
/// Everything that comes before [`release`](Self::release) waits, everything after it continues at
/// once: a call that a signal interrupts comes again as another. A task of its own answers, for as
/// long as the process and its children live. Dropping it releases.
///
/// A process that is held obeys no signal but those that end it, and these only if it does not
/// handle them: it handles the others when it has been released. SIGKILL always ends it.
#[derive(Debug)]
pub struct Hold {
    listener: Arc<Listener>,
    news: watch::Receiver<News>,
}

/// What the program has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    None,
    /// This process calls kill().
    Called(i32),
    /// It has ended, and so have its children.
    Ended,
    Failed(Errno),
}

impl Hold {
    /// Takes what [`crate::spawn::receive_hold`] gave. Call it within a tokio runtime.
    ///
    /// # Errors
    /// Those of [`Watch::new`]; `EOVERFLOW` if the kernel says more of a call than was known when
    /// this was written.
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        let calls = Calls::new(listener)?;
        let watch = Watch::new(&calls)?;
        let state = Mutex::new(State { waits: None, released: false });
        let listener = Arc::new(Listener { calls, state });
        let (sender, news) = watch::channel(News::None);
        tokio::spawn(Arc::clone(&listener).follow(watch, sender));
        Ok(Self { listener, news })
    }

    /// Waits until the program says that it is ready, and gives the pid (the thread id) of who
    /// says it; it stays there, unless it was released before. None if it has ended, and every child
    /// of it, without having said it; where the kernel tells that only once the process
    /// has been reaped, not before.
    ///
    /// # Errors
    /// Those of ioctl(2) SECCOMP_IOCTL_NOTIF_RECV. Drop the hold then:
    /// nothing is held any more when its last descriptor closes.
    pub async fn called(&self) -> io::Result<Option<i32>> {
        let mut news = self.news.clone();
        match news.wait_for(|news| *news != News::None).await.as_deref() {
            Ok(News::Called(pid)) => Ok(Some(*pid)),
            Ok(News::Failed(errno)) => Err((*errno).into()),
            // The runtime is being shut down.
            Ok(News::Ended | News::None) | Err(_) => Ok(None),
        }
    }

    /// Lets the program go on, now and whenever it sends this signal again. The signal that it was held at is not sent: it
    /// says nothing new, and while it waits it would swallow the same signal of another process. It is no error if
    /// the program has ended.
    ///
    /// # Errors
    /// Those of ioctl(2) SECCOMP_IOCTL_NOTIF_SEND, which are none in practice.
    pub fn release(&self) -> io::Result<()> {
        let mut state = self.listener.state();
        state.released = true;
        match state.waits.take() {
            Some(id) => Ok(self.listener.calls.done(id)?),
            None => Ok(()),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Nobody is left who could be told.
        let _ = self.release();
    }
}

/// The calls of the program, and the one that waits.
#[derive(Debug)]
struct Listener {
    calls: Calls,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The call that waits: an earlier one that was interrupted is forgotten.
    waits: Option<u64>,
    released: bool,
}

impl Listener {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked, and every state is a valid one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers until nobody is left who could call.
    async fn follow(self: Arc<Self>, watch: Watch, news: watch::Sender<News>) {
        while watch.readable().await.is_ok() {
            let last = match self.read_all(&news) {
                Ok(true) => continue,
                Ok(false) => News::Ended,
                Err(errno) => News::Failed(errno),
            };
            news.send_replace(last);
            return;
        }
    }

    /// Takes every call that waits. False if there can be no more.
    fn read_all(&self, news: &watch::Sender<News>) -> Result<bool, Errno> {
        loop {
            match self.calls.waiting()? {
                Waiting::Yes => {}
                waiting => return Ok(waiting == Waiting::No),
            }
            match self.calls.receive() {
                Ok(call) => {
                    let mut state = self.state();
                    if state.released {
                        self.calls.go_on(call.id)?;
                    } else {
                        state.waits = Some(call.id);
                    }
                    drop(state);
                    news.send_replace(News::Called(call.pid.cast_signed()));
                }
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
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

    /// As on a kernel before 5.19: a signal interrupts the call, and it comes again as another.
    #[tokio::test]
    async fn a_call_that_is_interrupted_stays_held() {
        on(Signal::SIGUSR1, SigHandler::SigIgn);
        on(Signal::SIGUSR2, SigHandler::Handler(handle));
        let (listener, given) = mpsc::channel();
        let (told, results) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let watched = Watched { readiness: Some(getpid().as_raw()), sockets: false };
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
        let hold = Hold::new(listener).expect("a hold");
        let called = tokio::time::timeout(DEADLINE, hold.called()).await.expect("in time");
        assert_eq!(called.expect("a call"), Some(tid.as_raw()));
        for round in 1..=3 {
            let first = hold.listener.state().waits.expect("a call waits");
            interrupt(thread.as_pthread_t());
            until(|| hold.listener.state().waits != Some(first)).await;
            assert_eq!(HANDLED.load(Ordering::SeqCst), round);
            assert!(results.try_recv().is_err(), "held");
        }
        hold.release().expect("release");
        until(|| thread.is_finished()).await;
        assert_eq!(results.iter().collect::<Vec<_>>(), [Ok(()), Ok(())]);
        thread.join().expect("join");
        until(|| *hold.news.borrow() == News::Ended).await;
    }
}
