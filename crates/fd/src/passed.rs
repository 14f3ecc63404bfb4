//! Descriptors that the starter of this process left open for it (sd_listen_fds(3)).

use std::env;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{fstat, fstatfs};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

/// The first descriptor after standard error, where sd_listen_fds(3) begins.
const FIRST: RawFd = 3;

/// The name of an unnamed descriptor (sd_listen_fds_with_names(3)).
const UNNAMED: &str = "unknown";

/// Whether the descriptors have been taken.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The descriptors of `LISTEN_FDS`, with their names from `LISTEN_FDNAMES`, owned and close-on-exec
/// from now on. Empty if they are for another process: `LISTEN_PID` is not this one, or
/// `LISTEN_PIDFDID` is another with the same pid. Only the first call of a process returns them.
/// The variables stay set, since another thread may read them; by them a child sees that the
/// descriptors are not for it.
///
/// # Errors
/// `InvalidInput` if `LISTEN_FDS` is no number; `EBADF` if a promised descriptor is not open, or is
/// close-on-exec, and so was opened by this process itself. Then no descriptor is taken.
pub fn passed() -> io::Result<Vec<(String, OwnedFd)>> {
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let ours = u64::from(getpid().as_raw_nonzero().get().unsigned_abs());
    let Ok(count) = env::var("LISTEN_FDS") else { return Ok(Vec::new()) };
    if number("LISTEN_PID") != Some(ours)
        || number("LISTEN_PIDFDID").is_some_and(|id| pidfd_id().is_some_and(|ours| ours != id))
        || TAKEN.swap(true, Ordering::Relaxed)
    {
        return Ok(Vec::new());
    }
    let end = count.parse::<RawFd>().ok().filter(|count| *count >= 0);
    let end = end.and_then(|count| FIRST.checked_add(count)).ok_or(io::ErrorKind::InvalidInput)?;
    (FIRST..end).try_for_each(left_open)?;
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').filter(|name| !name.is_empty()).chain(std::iter::repeat(UNNAMED));
    names.zip(FIRST..end).map(|(name, fd)| Ok((name.to_owned(), own(fd)?))).collect()
}

/// The value of `LISTEN_PIDFDID` that means this process (systemd 259): the inode number of its
/// pidfd, which no other process gets. None on a kernel without such numbers (before Linux 6.9).
pub fn pidfd_id() -> Option<u64> {
    let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
    // PID_FS_MAGIC in linux/magic.h.
    let numbered =
        fstatfs(&pidfd).is_ok_and(|found| u64::try_from(found.f_type) == Ok(0x5049_4446));
    fstat(pidfd).ok().filter(|_| numbered).map(|stat| stat.st_ino)
}

/// Checks that the descriptor is open and was left open by an earlier image of this process:
/// whatever Rust opens is close-on-exec.
#[allow(unsafe_code)]
fn left_open(fd: RawFd) -> io::Result<()> {
    // SAFETY: used only to ask the kernel, which answers EBADF for a closed number.
    let flags = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) })?;
    if flags.contains(FdFlags::CLOEXEC) { Err(Errno::BADF.into()) } else { Ok(()) }
}

#[allow(unsafe_code)]
fn own(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open, and the variables say that this process owns it: it was left
    // open over the exec that started this image. `TAKEN` keeps a second call from owning it again.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&owned, FdFlags::CLOEXEC)?;
    Ok(owned)
}
