//! The supervisor's side of a hold.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::libc::{self, seccomp_notif, seccomp_notif_resp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::watch;

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
        check_sizes()?;
        let watch = Watch::new(&listener)?;
        let state = Mutex::new(State { waits: None, released: false });
        let listener = Arc::new(Listener { fd: listener, state });
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
            Some(id) => Ok(self.listener.answer_done(id)?),
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

/// The descriptor on which the kernel tells of the calls.
#[derive(Debug)]
struct Listener {
    fd: OwnedFd,
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
            let mut polled = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut polled, Some(&Timespec::default())) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(Errno::from_raw(error.raw_os_error())),
            }
            let ready = polled.first().map_or(PollFlags::empty(), PollFd::revents);
            if !ready.contains(PollFlags::IN) {
                return Ok(!ready.contains(PollFlags::HUP));
            }
            match self.receive() {
                Ok(call) => {
                    let mut state = self.state();
                    if state.released {
                        self.go_on(call.id)?;
                    } else {
                        state.waits = Some(call.id);
                    }
                    drop(state);
                    news.send_replace(News::Called(call.pid.cast_signed()));
                }
                // It was interrupted between the two calls, and comes again or never.
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Takes the next call. It does not wait if poll(2) has just said that there is one: the kernel
    /// counts every call that comes, and takes nothing off the count for one that is interrupted
    /// but what a receiver takes; and this is the only receiver.
    fn receive(&self) -> Result<seccomp_notif, Errno> {
        // SAFETY: it consists of integers, for which zeros are values.
        let mut call: seccomp_notif = unsafe { zeroed() };
        // SAFETY: the kernel writes one seccomp_notif, of at most our size (`check_sizes`), to
        // `call`, which nothing else refers to and which was all zeros, as it demands.
        let done = unsafe {
            libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call)
        };
        Errno::result(done).map(|_| call)
    }

    /// Lets the kernel do the call. No error if it was interrupted, or its process has ended.
    fn go_on(&self, id: u64) -> Result<(), Errno> {
        const CONTINUE: u32 = 1; // SECCOMP_USER_NOTIF_FLAG_CONTINUE
        match self.answer(seccomp_notif_resp { id, val: 0, error: 0, flags: CONTINUE }) {
            // Linux before 5.5: then the call has succeeded without having been done, which
            // tells the supervisor nothing that it does not know.
            Err(Errno::EINVAL) => self.answer_done(id),
            answered => answered,
        }
    }

    /// Lets the call succeed without doing it. No error if it was interrupted, or its process has ended.
    fn answer_done(&self, id: u64) -> Result<(), Errno> {
        self.answer(seccomp_notif_resp { id, val: 0, error: 0, flags: 0 })
    }

    fn answer(&self, mut answer: seccomp_notif_resp) -> Result<(), Errno> {
        // SAFETY: the kernel reads one seccomp_notif_resp, of at most our size (`check_sizes`),
        // from `answer`, which lives through the call.
        let done = unsafe {
            libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer)
        };
        match Errno::result(done) {
            Ok(_) | Err(Errno::ENOENT | Errno::EINPROGRESS) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Makes sure that the kernel's structures fit into ours (seccomp(2) SECCOMP_GET_NOTIF_SIZES).
fn check_sizes() -> Result<(), Errno> {
    // SAFETY: it consists of integers, for which zeros are values.
    let mut sizes: libc::seccomp_notif_sizes = unsafe { zeroed() };
    // SAFETY: the kernel writes one seccomp_notif_sizes, whose size is fixed, to `sizes`.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_NOTIF_SIZES,
            0 as libc::c_ulong,
            &raw mut sizes,
        )
    };
    Errno::result(done)?;
    let fits = usize::from(sizes.seccomp_notif) <= size_of::<seccomp_notif>()
        && usize::from(sizes.seccomp_notif_resp) <= size_of::<seccomp_notif_resp>();
    if fits { Ok(()) } else { Err(Errno::EOVERFLOW) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::thread::{JoinHandleExt, RawPthread};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
    use nix::unistd::{Pid, getpid, gettid};

    use super::*;

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
            let plain = super::super::FLAGS & !libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
            let installed = super::super::install_with(getpid().as_raw(), true, plain);
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
