//! bind(2), listen(2) and unlink(2) of a program, and its readiness signal, each of which waits until it is answered (seccomp_unotify(2)).
//!
//! Whether and how a call is answered is decided above; here it is received, looked at, and answered. What the program has
//! in its memory is read once, and everything acts on that copy: another of its threads may write there meanwhile. What is
//! read belongs to the process that calls if the call still waits afterwards ([`Calls::waits`]); a pid alone may name another
//! by then. A call that the kernel does by itself in the end ([`Call::go_on`]) is done with what is in memory then, and with the
//! program's own rights.
//!
//! A call is answered in any case: when a [`Call`] is dropped it fails (a signal succeeds, an unlink goes on), and when the last copy of the descriptor closes every
//! call fails with ENOSYS. Another process may have a copy, with the [`ledger`] of what was received: what is to become of the calls where
//! this process is killed is in [`unattended`].
//!
//! Not seen: bind and listen through io_uring (Linux 6.11), which are no system calls.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bindonce_core::intercept::Failure;
use nix::errno::Errno;
use nix::libc::{self, seccomp_data};

use crate::calls::{Calls, Waiting};
use crate::filter::{self, Number};
use crate::watch::Watch;

mod ledger;
mod look;
mod options;
mod replace;
mod tried;
mod unattended;

use ledger::Ledger;

pub use ledger::Received;
pub use look::{Look, Theirs, ports};
pub use options::copy as copy_options;
pub(crate) use tried::on_a_child;
pub use unattended::{Left, Unattended};

/// Whether a process may have a filter that asks about its calls: it has more filters than this one (proc_pid_status(5)).
pub fn is_asked_about(pid: i32) -> bool {
    let filters = |who: &str| {
        let status = std::fs::read_to_string(format!("/proc/{who}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"))?;
        line.trim().parse::<u64>().ok()
    };
    match (filters(&pid.to_string()), filters("self")) {
        (Some(theirs), Some(ours)) => theirs > ours,
        // Before Linux 5.9.
        _ => true,
    }
}

/// The calls of one program, and of all that it has started.
#[derive(Debug)]
pub struct Intercept {
    shared: Arc<Shared>,
    watch: Watch,
}

#[derive(Debug)]
struct Shared {
    calls: Calls,
    /// Those that were received and are not answered.
    open: Mutex<Open>,
    /// The same for who comes after us; none where there is no memory for it.
    ledger: Option<Ledger>,
    /// Those that an earlier image of this process had received.
    left: Mutex<Vec<Received>>,
}

#[derive(Debug, Default)]
struct Open {
    calls: BTreeMap<u64, Received>,
    /// The id of the last one.
    last: Option<u64>,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        // Nothing panics while it is locked, and every map is a valid one.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call was received.
    fn begin(&self, received: Received) {
        let mut open = self.open();
        let is_newer = |last: u64| received.0.wrapping_sub(last).cast_signed() > 0;
        if open.last.is_none_or(is_newer) {
            open.last = Some(received.0);
        }
        open.calls.insert(received.0, received);
        self.write(&open);
    }

    /// A call is about to be answered: only once.
    fn end(&self, id: u64, answer: impl FnOnce(&Calls, u64) -> Result<(), Errno>) {
        let mut open = self.open();
        if open.calls.remove(&id).is_some() {
            // Its process can only have ended.
            let _ = answer(&self.calls, id);
            // Behind the answer: one that is written down and waits no more is nobody's.
            self.write(&open);
        }
    }

    fn write(&self, open: &Open) {
        if let (Some(ledger), Some(last)) = (&self.ledger, open.last) {
            ledger.write(last, open.calls.values());
        }
    }

    fn left(&self) -> Option<Received> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

impl Intercept {
    /// Takes what [`crate::spawn::receive_hold`] gave, and the calls that an earlier image of this process had not answered
    /// ([`Self::unanswered`]). Call it within a tokio runtime.
    ///
    /// # Errors
    /// Those of [`Watch::new`]; `EOVERFLOW` if the kernel says more of a call than was known when
    /// this was written.
    pub fn new(listener: OwnedFd, left: Vec<Received>) -> io::Result<Self> {
        Self::with(Calls::new(listener)?, Ledger::new().ok(), left)
    }

    /// Takes copies of what [`Self::copies`] gave, of a supervisor that was killed or of an earlier image of this process, which had
    /// not answered the calls of `left`. Call it within a tokio runtime.
    ///
    /// # Errors
    /// As of [`Self::new`].
    pub fn resume([listener, ledger]: [OwnedFd; 2], left: Vec<Received>) -> io::Result<Self> {
        let (calls, ledger) = (Calls::new(listener)?, Ledger::from(ledger));
        let mut all = unattended::go_on_with(&calls, &ledger);
        let known: Vec<u64> = all.iter().map(|(id, ..)| *id).collect();
        all.extend(left.into_iter().filter(|(id, ..)| !known.contains(id)));
        Self::with(calls, Some(ledger), all)
    }

    fn with(calls: Calls, ledger: Option<Ledger>, left: Vec<Received>) -> io::Result<Self> {
        let watch = Watch::new(&calls)?;
        let last = ledger.as_ref().and_then(|ledger| ledger.read().last);
        let open = Mutex::new(Open { last, ..Open::default() });
        let shared = Shared { calls, open, ledger, left: Mutex::new(left) };
        Ok(Self { shared: Arc::new(shared), watch })
    }

    /// What another process needs in order to answer the calls when this one is killed, or to give it to one that does; none where there is
    /// no memory for it.
    pub fn copies(&self) -> Option<[BorrowedFd<'_>; 2]> {
        Some([self.shared.calls.as_fd(), self.shared.ledger.as_ref()?.as_fd()])
    }

    /// Waits for the next call; None when nobody is left who could make one.
    ///
    /// # Errors
    /// Those of ioctl(2) SECCOMP_IOCTL_NOTIF_RECV.
    pub async fn next(&self) -> io::Result<Option<Call>> {
        while let Some(left) = self.shared.left() {
            if self.shared.calls.waits(left.0) {
                return Ok(Some(self.take(left, true)));
            }
        }
        loop {
            match self.shared.calls.waiting()? {
                Waiting::Never => return Ok(None),
                Waiting::No => self.watch.readable().await?,
                Waiting::Yes => match self.shared.calls.receive() {
                    Ok(call) => {
                        let seccomp_data { nr, arch, args, .. } = call.data;
                        let received = (call.id, call.pid.cast_signed(), arch, nr, args);
                        return Ok(Some(self.take(received, false)));
                    }
                    Err(Errno::ENOENT | Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                },
            }
        }
    }

    fn take(&self, received: Received, again: bool) -> Call {
        let (id, pid, architecture, number, arguments) = received;
        self.shared.begin(received);
        let data = seccomp_data {
            nr: number,
            arch: architecture,
            instruction_pointer: 0,
            args: arguments,
        };
        let number = filter::number(&data);
        Call { shared: Arc::clone(&self.shared), id, pid, number, arguments, again }
    }

    /// What was received and is not answered, for an image that gets the descriptor and answers it instead of this one.
    pub fn unanswered(&self) -> Vec<Received> {
        self.shared.open().calls.values().copied().collect()
    }
}

impl AsFd for Intercept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.calls.as_fd()
    }
}

/// A call that waits.
#[derive(Debug)]
pub struct Call {
    shared: Arc<Shared>,
    id: u64,
    pid: i32,
    number: Number,
    arguments: [u64; 6],
    again: bool,
}

/// What became of a call that a socket was given for.
#[derive(Debug)]
pub struct Gave {
    /// What could not be replaced beside the descriptor that the call names, in words.
    pub left: Vec<String>,
    /// A signal came between the socket and the answer, or the process has ended: the same call may come again.
    pub is_interrupted: bool,
}

impl Call {
    /// The thread that has made it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    #[cfg(test)]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether an earlier image or supervisor had received it: it may have given the socket and not answered.
    pub fn comes_again(&self) -> bool {
        self.again
    }

    /// Whether it is listen(2).
    pub fn is_listen(&self) -> bool {
        matches!(self.number, Number::Listen | Number::ListenInMemory)
    }

    /// Whether it is unlink(2) or unlinkat(2).
    pub fn is_unlink(&self) -> bool {
        matches!(self.number, Number::Unlink | Number::UnlinkAt)
    }

    /// Whether it is the signal by which the program says that it is ready.
    pub fn is_readiness(&self) -> bool {
        self.number == Number::Kill
    }

    /// What looks at it, on a thread that may stall: a page of the program's memory may be on a file system that does not answer.
    ///
    /// # Errors
    /// Those of pidfd_open(2), pidfd_getfd(2) and process_vm_readv(2), such as `EPERM` without the right to trace the process;
    /// `ESRCH` if the call waits no more.
    pub fn look(&self) -> impl FnOnce() -> io::Result<Look> + Send + 'static {
        let (shared, id, pid) = (Arc::clone(&self.shared), self.id, self.pid);
        let (number, arguments) = (self.number, self.arguments);
        move || {
            let seen = look::at(pid, number, &arguments);
            if shared.calls.waits(id) { seen } else { Err(Errno::ESRCH.into()) }
        }
    }

    /// Has its thread stop (SIGSTOP, and with it the whole process) before the call returns. The same signal to the process may be
    /// taken by another thread, which is scheduled later.
    pub fn stop_thread(&self) {
        if self.shared.calls.waits(self.id) {
            // SAFETY: tkill takes two integers. The thread waits in the call, so that nobody else has its number.
            unsafe { libc::syscall(libc::SYS_tkill, self.pid, libc::SIGSTOP) };
        }
    }

    /// The kernel does it.
    pub fn go_on(self) {
        self.end(|calls, id| calls.go_on(id));
    }

    /// It succeeds and does nothing.
    pub fn succeed(self) {
        self.end(Calls::done);
    }

    /// It fails.
    pub fn refuse(self, failure: Failure) {
        self.end(|calls, id| calls.fail(id, errno_of(failure)));
    }

    /// What puts this socket in the place of the program's own, and lets the call succeed. On a thread: the program may have many
    /// descriptors to look through.
    ///
    /// # Errors
    /// Those of ioctl(2) SECCOMP_IOCTL_NOTIF_ADDFD: `ENOENT` if the call waits no more, `EMFILE`; `EBADF` if the number is that
    /// socket's no more. The call has failed then.
    pub fn give(
        self,
        socket: Arc<OwnedFd>,
        theirs: Theirs,
    ) -> impl FnOnce() -> io::Result<Gave> + Send + 'static {
        move || {
            let calls = &self.shared.calls;
            let put = replace::replace(calls, self.id, self.pid, &theirs, socket.as_fd());
            let left = match put {
                Ok(left) => left,
                Err(errno) => {
                    self.refuse(Failure::Unavailable);
                    return Err(errno.into());
                }
            };
            let mut arrives = false;
            self.end(|calls, id| calls.succeed(id).map(|it| arrives = it));
            Ok(Gave { left, is_interrupted: !arrives })
        }
    }

    fn end(self, answer: impl FnOnce(&Calls, u64) -> Result<(), Errno>) {
        self.shared.end(self.id, answer);
    }
}

/// What a call fails with.
pub fn errno_of(failure: Failure) -> Errno {
    match failure {
        Failure::Denied => Errno::EACCES,
        Failure::InUse => Errno::EADDRINUSE,
        Failure::Unavailable => Errno::EADDRNOTAVAIL,
        Failure::Kernels(errno) => Errno::from_raw(errno),
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.shared.end(self.id, |calls, id| match self.number {
            // The supervisor has seen the signal.
            Number::Kill => calls.done(id),
            Number::Unlink | Number::UnlinkAt => calls.go_on(id),
            _ => calls.fail(id, Errno::EADDRINUSE),
        });
    }
}
