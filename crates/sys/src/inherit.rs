//! Descriptors that the next program finds under fixed numbers.
//!
//! The systemd convention (sd_listen_fds(3)) and haproxy's `fd@N` both want
//! consecutive descriptors without close-on-exec. Moving them there one by one can
//! overwrite one that has yet to move, or one that something else in this process
//! owns; so all move out of the way first, and what stood there comes back if
//! the exec fails.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};

/// The first descriptor after standard error, where sd_listen_fds(3) begins.
pub const FIRST: RawFd = 3;

/// Leaves descriptors open over an exec of this process. Until then children inherit them too, so
/// start none.
///
/// # Errors
/// Those of fcntl(2).
pub fn keep_over_exec(fds: &[OwnedFd]) -> io::Result<()> {
    fds.iter().try_for_each(|fd| Ok(fcntl_setfd(fd, FdFlags::empty())?))
}

/// Owns a descriptor that an earlier image of this process left open for it, from now on
/// close-on-exec.
///
/// # Errors
/// `EBADF` if there is none of this number.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: F_GETFD and F_DUPFD look at the descriptor only for the length of these calls, and
    // fail with EBADF where there is none; nothing else in this process knows its number.
    let left = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(left)?;
    // SAFETY: it is open, and by the caller's word it is ours: left open over the exec that made
    // this image, so that no other owner of the number can exist.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&owned, FdFlags::CLOEXEC)?;
    Ok(owned)
}

/// Replaces this process by `command`, which finds `fds` as `first`,
/// `first + 1` and so on. Only for a process with a single thread: for a moment
/// the numbers mean something else than their owners believe.
///
/// It returns only if it failed; the descriptor table is then as it was, but
/// for `fds`, which are closed.
pub fn exec(fds: Vec<OwnedFd>, first: RawFd, command: &mut Command) -> io::Error {
    match place(fds, first) {
        Ok(placed) => {
            let error = command.exec();
            drop(placed);
            error
        }
        Err(error) => error,
    }
}

/// Descriptors in their place. Dropping it puts back what stood there.
struct Placed {
    first: RawFd,
    /// For each number what was there, with its flags.
    before: Vec<Option<(OwnedFd, FdFlags)>>,
}

fn place(fds: Vec<OwnedFd>, first: RawFd) -> io::Result<Placed> {
    let end = i32::try_from(fds.len())
        .ok()
        .and_then(|count| first.checked_add(count))
        .filter(|_| first >= 0)
        .ok_or(io::ErrorKind::InvalidInput)?;
    let aside = fds
        .into_iter()
        .map(|fd| {
            if (first..end).contains(&fd.as_raw_fd()) {
                fcntl_dupfd_cloexec(&fd, end)
            } else {
                Ok(fd)
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut placed = Placed { first, before: Vec::with_capacity(aside.len()) };
    for (number, fd) in (first..).zip(aside) {
        let before = save(number, end)?;
        placed.before.push(before);
        // SAFETY: what `number` meant is saved above and comes back in Placed::drop,
        // and until then no code runs that would use it under its old meaning.
        let there = unsafe { nix::unistd::dup2_raw(&fd, number) }?;
        let _ = there.into_raw_fd();
    }
    Ok(placed)
}

/// A copy, from `above` up, of what the number means now.
fn save(number: RawFd, above: RawFd) -> io::Result<Option<(OwnedFd, FdFlags)>> {
    // SAFETY: used only to ask the kernel, which answers EBADF for a closed number.
    let there = unsafe { BorrowedFd::borrow_raw(number) };
    match fcntl_getfd(there) {
        Ok(flags) => Ok(Some((fcntl_dupfd_cloexec(there, above)?, flags))),
        Err(rustix::io::Errno::BADF) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        for (number, before) in (self.first..).zip(self.before.drain(..)) {
            // SAFETY: `place` put a descriptor of its own here and gave up its ownership.
            let ours = unsafe { OwnedFd::from_raw_fd(number) };
            let Some((fd, flags)) = before else { continue };
            // SAFETY: `ours` is what stands at the number, and is given away here.
            if let Ok(back) = unsafe { nix::unistd::dup2_raw(&fd, ours) } {
                // Cannot fail on an open descriptor; close-on-exec is all there is to lose.
                let _ = fcntl_setfd(&back, flags);
                // Its first owner has it again.
                let _ = back.into_raw_fd();
            }
        }
    }
}
