//! Intercepts bind(2), listen(2), unlink(2) and the readiness signal of a program: each call waits
//! until it is answered (seccomp_unotify(2)).
//!
//! Code above this module decides whether and how a call is answered; this module receives,
//! inspects and answers it. The program's memory is read once, and everything acts on that copy,
//! because another thread may write there meanwhile. The copy belongs to the calling process if the
//! call still waits after the read ([`Calls::waits`]); a pid alone may name another process by
//! then. If the kernel finally executes a call itself ([`Call::go_on`]), it uses the memory
//! contents at that time and the program's own rights.
//!
//! Every call gets an answer. A [`Call`] that is dropped fails (a signal succeeds, an unlink goes
//! on), and when the last copy of the descriptor closes every call fails with ENOSYS. Another
//! process may have a copy, together with the [`ledger`] of received calls; [`unattended`] answers
//! the calls if this process is killed.
//!
//! bind and listen through io_uring (Linux 6.11) are not seen, since they are no system calls.

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

/// Whether a process may have a filter that intercepts its calls: it has more filters than this one
/// (proc_pid_status(5)).
pub fn may_be_intercepted(pid: i32) -> bool {
    let filters = |who: &str| {
        let status = std::fs::read_to_string(format!("/proc/{who}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"))?;
        line.trim().parse::<u64>().ok()
    };
    match (filters(&pid.to_string()), filters("self")) {
        (Some(theirs), Some(ours)) => theirs > ours,
        // Linux before 5.9 does not report the number.
        _ => true,
    }
}

/// The intercepted calls of a program, and of every process that it started.
#[derive(Debug)]
pub struct Intercept {
    shared: Arc<Shared>,
    watch: Watch,
}

#[derive(Debug)]
struct Shared {
    calls: Calls,
    /// Calls that were received and not answered.
    open: Mutex<Open>,
    /// The same, for the next supervisor; None if no memory could be had for it.
    ledger: Option<Ledger>,
    /// Calls that an earlier image of this process had received.
    left: Mutex<Vec<Received>>,
}

#[derive(Debug, Default)]
struct Open {
    calls: BTreeMap<u64, Received>,
    /// The id of the call received last.
    last: Option<u64>,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        // Nothing panics while the lock is held, and every map is valid.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a received call.
    fn begin(&self, received: Received) {
        let mut open = self.open();
        let is_newer = |last: u64| received.0.wrapping_sub(last).cast_signed() > 0;
        if open.last.is_none_or(is_newer) {
            open.last = Some(received.0);
        }
        open.calls.insert(received.0, received);
        self.write(&open);
    }

    /// Answers a call, once only.
    fn end(&self, id: u64, answer: impl FnOnce(&Calls, u64) -> Result<(), Errno>) {
        let mut open = self.open();
        if open.calls.remove(&id).is_some() {
            // A failure means that its process has ended.
            let _ = answer(&self.calls, id);
            // After the answer: a recorded call that no longer waits is ignored.
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
    /// Takes the descriptor from [`crate::spawn::receive_hold`], and the calls that an earlier
    /// image of this process had not answered ([`Self::unanswered`]). Call it within a tokio
    /// runtime.
    ///
    /// # Errors
    /// Errors from [`Watch::new`]; `EOVERFLOW` if the kernel's structures are larger than the ones
    /// known here.
    pub fn new(listener: OwnedFd, left: Vec<Received>) -> io::Result<Self> {
        Self::with(Calls::new(listener)?, Ledger::new().ok(), left)
    }

    /// Takes duplicates of the descriptors from [`Self::copies`], of a supervisor that was killed
    /// or of an earlier image of this process, which had not answered the calls of `left`. Call it
    /// within a tokio runtime.
    ///
    /// # Errors
    /// As [`Self::new`].
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

    /// The descriptors that another process needs to answer the calls if this one is killed, or to
    /// pass them on. None if there is no memory for the ledger.
    pub fn copies(&self) -> Option<[BorrowedFd<'_>; 2]> {
        Some([self.shared.calls.as_fd(), self.shared.ledger.as_ref()?.as_fd()])
    }

    /// Waits for the next call; None when no process is left that could make one.
    ///
    /// # Errors
    /// Errors from ioctl(2) SECCOMP_IOCTL_NOTIF_RECV.
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

    /// The calls received and not answered, for an image that gets the descriptor and answers them
    /// instead of this one.
    pub fn unanswered(&self) -> Vec<Received> {
        self.shared.open().calls.values().copied().collect()
    }
}

impl AsFd for Intercept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.calls.as_fd()
    }
}

/// A call that waits for its answer.
#[derive(Debug)]
pub struct Call {
    shared: Arc<Shared>,
    id: u64,
    pid: i32,
    number: Number,
    arguments: [u64; 6],
    again: bool,
}

/// The outcome of a call that got a socket.
#[derive(Debug)]
pub struct Gave {
    /// Copies of the program's socket, and registrations of it, that could not be replaced, in
    /// words.
    pub left: Vec<String>,
    /// Whether a signal came between the socket and the answer (the same call may come again), or
    /// the process has ended.
    pub is_interrupted: bool,
}

impl Call {
    /// The thread that made the call.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    #[cfg(test)]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether an earlier image or supervisor had received the call: it may have given the socket
    /// without answering.
    pub fn comes_again(&self) -> bool {
        self.again
    }

    /// Whether the call is listen(2).
    pub fn is_listen(&self) -> bool {
        matches!(self.number, Number::Listen | Number::ListenInMemory)
    }

    /// Whether the call is unlink(2) or unlinkat(2).
    pub fn is_unlink(&self) -> bool {
        matches!(self.number, Number::Unlink | Number::UnlinkAt)
    }

    /// Whether the call is the program's readiness signal.
    pub fn is_readiness(&self) -> bool {
        self.number == Number::Kill
    }

    /// Returns a closure that inspects the call. Run it on a thread that may stall: a page of the
    /// program's memory may be on a file system that does not answer.
    ///
    /// # Errors
    /// Errors from pidfd_open(2), pidfd_getfd(2) and process_vm_readv(2), such as `EPERM` without
    /// the right to trace the process; `ESRCH` if the call no longer waits.
    pub fn look(&self) -> impl FnOnce() -> io::Result<Look> + Send + 'static {
        let (shared, id, pid) = (Arc::clone(&self.shared), self.id, self.pid);
        let (number, arguments) = (self.number, self.arguments);
        move || {
            let seen = look::at(pid, number, &arguments);
            if shared.calls.waits(id) { seen } else { Err(Errno::ESRCH.into()) }
        }
    }

    /// Makes the calling thread stop (SIGSTOP, which stops the whole process) before the call
    /// returns. If the signal went to the process, another thread could take it, which is scheduled
    /// later.
    pub fn stop_thread(&self) {
        if self.shared.calls.waits(self.id) {
            // SAFETY: tkill takes two integers. The thread waits in the call, so no other thread
            // has its number.
            unsafe { libc::syscall(libc::SYS_tkill, self.pid, libc::SIGSTOP) };
        }
    }

    /// Lets the kernel execute the call.
    pub fn go_on(self) {
        self.end(|calls, id| calls.go_on(id));
    }

    /// Lets the call succeed without executing it.
    pub fn succeed(self) {
        self.end(Calls::done);
    }

    /// Lets the call fail.
    pub fn refuse(self, failure: Failure) {
        self.end(|calls, id| calls.fail(id, errno_of(failure)));
    }

    /// Returns a closure that replaces the program's own socket by this one and lets the call
    /// succeed. Run it on a separate thread: the program may have many descriptors to search.
    ///
    /// # Errors
    /// Errors from ioctl(2) SECCOMP_IOCTL_NOTIF_ADDFD: `ENOENT` if the call no longer waits,
    /// `EMFILE`; `EBADF` if the number no longer names that socket. The call has failed then.
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

/// The errno for a failure.
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
