//! The supervisor's end of a [`crate::filter`]: the calls of a program that wait for an answer
//! (seccomp_unotify(2)).

use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{self, seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The descriptor on which the kernel reports calls. When the last copy closes, pending and later
/// calls fail with ENOSYS.
#[derive(Debug)]
pub(crate) struct Calls(OwnedFd);

/// Whether there is a call to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    Yes,
    No,
    /// There never will be: no process is left that could call. Some kernels report that only once
    /// the process has been reaped.
    Never,
}

impl Calls {
    /// # Errors
    /// `EOVERFLOW` if the kernel's structures are larger than the ones known here.
    pub(crate) fn new(listener: OwnedFd) -> Result<Self, Errno> {
        check_sizes()?;
        Ok(Self(listener))
    }

    pub(crate) fn waiting(&self) -> Result<Waiting, Errno> {
        loop {
            let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut polled, Some(&Timespec::default())) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(Errno::from_raw(error.raw_os_error())),
            }
            let ready = polled.first().map_or(PollFlags::empty(), PollFd::revents);
            return Ok(match (ready.contains(PollFlags::IN), ready.contains(PollFlags::HUP)) {
                (true, _) => Waiting::Yes,
                (false, true) => Waiting::Never,
                (false, false) => Waiting::No,
            });
        }
    }

    /// Takes the next call. Does not block if [`Self::waiting`] has just returned `Yes`: the kernel
    /// counts every call that comes, and only a receive lowers the count, even if the call was
    /// interrupted; and this is the only receiver. `ENOENT` and `EINTR` mean that the call was
    /// interrupted in between; it comes again or never.
    pub(crate) fn receive(&self) -> Result<seccomp_notif, Errno> {
        // SAFETY: the struct consists of integers, for which zeros are valid.
        let mut call: seccomp_notif = unsafe { zeroed() };
        // SAFETY: the kernel writes one seccomp_notif, of at most our size (`check_sizes`), to
        // `call`, which nothing else refers to and which is all zeros, as the kernel demands.
        let done = unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call)
        };
        Errno::result(done).map(|_| call)
    }

    /// Whether this call still waits: if so, its process made the call, and is not another with the
    /// same pid.
    pub(crate) fn waits(&self, id: u64) -> bool {
        // SAFETY: the kernel reads one integer from `id`, which lives through the call.
        let done = unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id)
        };
        done == 0
    }

    /// Lets the kernel execute the call. No error if it was interrupted, or its process has ended.
    pub(crate) fn go_on(&self, id: u64) -> Result<(), Errno> {
        const CONTINUE: u32 = 1; // SECCOMP_USER_NOTIF_FLAG_CONTINUE
        match self.answer(seccomp_notif_resp { id, val: 0, error: 0, flags: CONTINUE }) {
            // Linux before 5.5: then the call succeeds without being executed, which tells the
            // supervisor nothing new.
            Err(Errno::EINVAL) => self.done(id),
            answered => answered,
        }
    }

    /// Lets the call succeed without executing it. No error if it was interrupted, or its process
    /// has ended.
    pub(crate) fn done(&self, id: u64) -> Result<(), Errno> {
        self.succeed(id).map(drop)
    }

    /// The same; false if the call was interrupted, or its process has ended.
    pub(crate) fn succeed(&self, id: u64) -> Result<bool, Errno> {
        self.send(seccomp_notif_resp { id, val: 0, error: 0, flags: 0 })
    }

    /// Lets the call fail. No error if it was interrupted, or its process has ended.
    pub(crate) fn fail(&self, id: u64, errno: Errno) -> Result<(), Errno> {
        self.answer(seccomp_notif_resp { id, val: 0, error: -(errno as i32), flags: 0 })
    }

    /// Puts a descriptor of ours over one of the calling process, which closes the latter. The call
    /// still waits.
    ///
    /// Without SECCOMP_ADDFD_FLAG_SEND, which would answer in the same step: the call would return
    /// the number of the descriptor, and bind(2) returns 0.
    pub(crate) fn put(
        &self,
        id: u64,
        ours: BorrowedFd<'_>,
        theirs: RawFd,
        close_on_exec: bool,
    ) -> Result<(), Errno> {
        const SETFD: u32 = 1; // SECCOMP_ADDFD_FLAG_SETFD
        let flags = if close_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 };
        let put = seccomp_notif_addfd {
            id,
            flags: SETFD,
            srcfd: ours.as_raw_fd().cast_unsigned(),
            newfd: theirs.cast_unsigned(),
            newfd_flags: flags,
        };
        // SAFETY: the kernel reads one seccomp_notif_addfd, whose size is part of the request
        // number, from `put`, which lives through the call; `ours` is open for as long.
        let done = unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const put)
        };
        Errno::result(done).map(drop)
    }

    fn answer(&self, answer: seccomp_notif_resp) -> Result<(), Errno> {
        self.send(answer).map(drop)
    }

    fn send(&self, mut answer: seccomp_notif_resp) -> Result<bool, Errno> {
        // SAFETY: the kernel reads one seccomp_notif_resp, of at most our size (`check_sizes`),
        // from `answer`, which lives through the call.
        let done = unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer)
        };
        match Errno::result(done) {
            Ok(_) | Err(Errno::EINPROGRESS) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Calls {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Checks that the kernel's structures fit into ours (seccomp(2) SECCOMP_GET_NOTIF_SIZES).
fn check_sizes() -> Result<(), Errno> {
    // SAFETY: the struct consists of integers, for which zeros are valid.
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
