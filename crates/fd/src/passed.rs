//! Descriptors that the starter of this process has left open for it (sd_listen_fds(3)).

use std::env;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{fstat, fstatfs};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

/// The first descriptor after standard error, where sd_listen_fds(3) begins.
const FIRST: RawFd = 3;

/// What a descriptor without a name is called (sd_listen_fds_with_names(3)).
const UNNAMED: &str = "unknown";

/// Whether they were asked for before.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The descriptors of `LISTEN_FDS` with their names in `LISTEN_FDNAMES`, owned and close-on-exec from now on. None where
/// `LISTEN_PID` is not this process, or `LISTEN_PIDFDID` another of the same pid: they are for another process then. Only
/// the first call of a process gives them. The variables stay, since another thread may read them: what this process
/// starts finds itself not meant.
///
/// # Errors
/// `InvalidInput` for a number that cannot be read; `EBADF` where one that is promised is not open, or is close-on-exec, and so
/// was opened by this process itself. None is taken then.
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

/// What `LISTEN_PIDFDID` has to say for this process to be meant (systemd 259): the inode number of its pidfd, which no
/// other process gets. None on a kernel that does not have such numbers (before Linux 6.9).
pub fn pidfd_id() -> Option<u64> {
    let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
    // PID_FS_MAGIC in linux/magic.h.
    let numbered =
        fstatfs(&pidfd).is_ok_and(|found| u64::try_from(found.f_type) == Ok(0x5049_4446));
    fstat(pidfd).ok().filter(|_| numbered).map(|stat| stat.st_ino)
}

/// Whether it is open, and was left so by an earlier image of this process: what Rust opens is close-on-exec.
#[allow(unsafe_code)]
fn left_open(fd: RawFd) -> io::Result<()> {
    // SAFETY: used only to ask the kernel, which answers EBADF for a closed number.
    let flags = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) })?;
    if flags.contains(FdFlags::CLOEXEC) { Err(Errno::BADF.into()) } else { Ok(()) }
}

#[allow(unsafe_code)]
fn own(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it is open, and by the variables it is this process's to own: left open over the exec that made this
    // image. `TAKEN` keeps a second call from owning it again.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&owned, FdFlags::CLOEXEC)?;
    Ok(owned)
}
