//! bind(2) and listen(2) of a program, and its readiness signal, each of which waits until it is answered (seccomp_unotify(2)).
//!
//! Whether and how a call is answered is decided above; here it is received, looked at, and answered. What the program has
//! in its memory is read once, and everything acts on that copy: another of its threads may write there meanwhile. What is
//! read belongs to the process that calls if the call still waits afterwards ([`Calls::waits`]); a pid alone may name another
//! by then. A call that the kernel does by itself in the end ([`Call::go_on`]) is done with what is in memory then, and with the
//! program's own rights.
//!
//! A call is answered in any case: when a [`Call`] is dropped it fails (a signal succeeds), and when the last copy of the descriptor closes every
//! call fails with ENOSYS.
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

mod look;
mod options;
mod replace;
mod tried;

pub use look::{Look, Theirs, ports};
pub use options::copy as copy_options;
pub(crate) use tried::on_a_child;

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
    open: Mutex<BTreeMap<u64, Received>>,
    /// Those that an earlier image of this process had received.
    left: Mutex<Vec<Received>>,
}

/// What the kernel tells of a call when it is received, which it does once: its id, its thread, the architecture, the number
/// and the arguments.
pub type Received = (u64, i32, u32, i32, [u64; 6]);

impl Shared {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Received>> {
        // Nothing panics while it is locked, and every map is a valid one.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
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
        let calls = Calls::new(listener)?;
        let watch = Watch::new(&calls)?;
        let shared = Shared { calls, open: Mutex::default(), left: Mutex::new(left) };
        Ok(Self { shared: Arc::new(shared), watch })
    }

    /// Waits for the next call; None when nobody is left who could make one.
    ///
    /// # Errors
    /// Those of ioctl(2) SECCOMP_IOCTL_NOTIF_RECV.
    pub async fn next(&self) -> io::Result<Option<Call>> {
        while let Some(left) = self.shared.left() {
            if self.shared.calls.waits(left.0) {
                return Ok(Some(self.take(left)));
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
                        return Ok(Some(self.take(received)));
                    }
                    Err(Errno::ENOENT | Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                },
            }
        }
    }

    fn take(&self, received: Received) -> Call {
        let (id, pid, architecture, number, arguments) = received;
        self.shared.open().insert(id, received);
        let data = seccomp_data {
            nr: number,
            arch: architecture,
            instruction_pointer: 0,
            args: arguments,
        };
        let number = filter::number(&data);
        Call { shared: Arc::clone(&self.shared), id, pid, number, arguments }
    }

    /// What was received and is not answered, for an image that gets the descriptor and answers it instead of this one.
    pub fn unanswered(&self) -> Vec<Received> {
        self.shared.open().values().copied().collect()
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

    /// Whether it is listen(2).
    pub fn is_listen(&self) -> bool {
        matches!(self.number, Number::Listen | Number::ListenInMemory)
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
        let errno = match failure {
            Failure::Denied => Errno::EACCES,
            Failure::InUse => Errno::EADDRINUSE,
            Failure::Unavailable => Errno::EADDRNOTAVAIL,
        };
        self.end(|calls, id| calls.fail(id, errno));
    }

    /// What puts this socket in the place of the program's own, and lets the call succeed; gives what could not be replaced
    /// beside the descriptor that the call names, in words. On a thread: the program may have many descriptors to look through.
    ///
    /// # Errors
    /// Those of ioctl(2) SECCOMP_IOCTL_NOTIF_ADDFD: `ENOENT` if the call waits no more, `EMFILE`. The call has failed then.
    pub fn give(
        self,
        socket: Arc<OwnedFd>,
        theirs: Theirs,
    ) -> impl FnOnce() -> io::Result<Vec<String>> + Send + 'static {
        move || {
            let calls = &self.shared.calls;
            let put = replace::replace(calls, self.id, self.pid, &theirs, socket.as_fd());
            match put {
                Ok(_) => self.succeed(),
                Err(_) => self.refuse(Failure::Unavailable),
            }
            Ok(put?)
        }
    }

    fn end(self, answer: impl FnOnce(&Calls, u64) -> Result<(), Errno>) {
        if self.shared.open().remove(&self.id).is_some() {
            // Its process can only have ended.
            let _ = answer(&self.shared.calls, self.id);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.shared.open().remove(&self.id).is_some() {
            let _ = match self.number {
                // The supervisor has seen the signal.
                Number::Kill => self.shared.calls.done(self.id),
                _ => self.shared.calls.fail(self.id, Errno::EADDRINUSE),
            };
        }
    }
}
