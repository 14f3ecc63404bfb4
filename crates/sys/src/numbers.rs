//! Runs code on a thread with its own descriptor table, in which any number is free to use.
//! epoll(7) identifies a registration by the file and its descriptor number at that time, so
//! changing a registration of another process needs the file under that number.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use rustix::event::epoll;
use rustix::io::fcntl_dupfd_cloexec;

use crate::epoll::Registration;
use crate::error::Error;

/// The descriptor table of this thread alone.
pub(crate) struct Own {
    above: RawFd,
}

/// Runs `work` on such a thread, and waits for its end. Numbers below `above` are free there;
/// descriptors in use are moved above it ([`Own::lift`]). The caller's descriptors are not touched.
///
/// # Errors
/// [`Error::Call`]: errors from `work`, and from close_range(2) or unshare(2).
pub(crate) fn own<T: Send>(
    above: RawFd,
    work: impl FnOnce(&Own) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("descriptors".to_owned())
            .spawn_scoped(scope, || {
                unshare_table()?;
                work(&Own { above })
            })
            .map_err(|error| Error::call("clone", error))?;
        match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

impl Own {
    /// Duplicates the descriptor to a number at or above `above`.
    pub(crate) fn lift(&self, fd: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
        fcntl_dupfd_cloexec(fd, self.above)
            .map_err(|error| Error::call("fcntl(F_DUPFD_CLOEXEC)", error))
    }

    /// Deletes the registration (`file`, `number`); false if it does not exist.
    pub(crate) fn delete(
        &self,
        epoll: &OwnedFd,
        file: &OwnedFd,
        number: RawFd,
    ) -> Result<bool, Error> {
        match epoll::delete(epoll, self.place(file, number)?) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::call("epoll_ctl(EPOLL_CTL_DEL)", error)),
        }
    }

    /// Registers `file` with the number, events and data of `like`; an existing registration stays
    /// as it is.
    pub(crate) fn add(
        &self,
        epoll: &OwnedFd,
        file: &OwnedFd,
        like: &Registration,
    ) -> Result<(), Error> {
        let data = epoll::EventData::new_u64(like.data);
        let flags = epoll::EventFlags::from_bits_retain(like.events);
        match epoll::add(epoll, self.place(file, like.number)?, data, flags) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(Error::call("epoll_ctl(EPOLL_CTL_ADD)", error)),
        }
    }

    fn place(&self, file: &OwnedFd, number: RawFd) -> Result<OwnedFd, Error> {
        if number >= self.above {
            return Err(Error::call("dup2", Errno::EBADF));
        }
        // SAFETY: this thread has a descriptor table of its own, in which all descriptors in use
        // are above this number: the descriptor that is replaced here, in this table alone, has no
        // user.
        unsafe { nix::unistd::dup2_raw(file.as_fd(), number) }
            .map_err(|error| Error::call("dup2", error))
    }
}

/// Gives this thread a descriptor table of its own, with the descriptors open now.
///
/// Uses close_range(2) on a range without descriptors, with CLOSE_RANGE_UNSHARE (Linux 5.9), which
/// containers may call: the default seccomp profile of Docker and of containerd refuses unshare(2)
/// altogether.
fn unshare_table() -> Result<(), Error> {
    let none = libc::c_uint::MAX;
    // SAFETY: no descriptor has this number, so none is closed; the call takes no pointer.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, none, none, libc::CLOSE_RANGE_UNSHARE) };
    match Errno::result(done) {
        Ok(_) => Ok(()),
        Err(Errno::ENOSYS) => {
            unshare(CloneFlags::CLONE_FILES).map_err(|error| Error::call("unshare", error))
        }
        Err(error) => Err(Error::call("close_range", error)),
    }
}
