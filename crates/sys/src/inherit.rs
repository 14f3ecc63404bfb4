//! Descriptors that the next program finds under fixed numbers.
//!
//! The systemd convention (sd_listen_fds(3)) and haproxy's `fd@N` both want
//! consecutive descriptors without close-on-exec. Moving them there one by one can
//! overwrite one that has yet to move, or one that something else in this process
//! owns. So whatever stands on a number that is needed moves out of the way first, and what
//! is not ours comes back if the exec fails. Nothing else is copied: ten thousand descriptors
//! need ten thousand numbers and one or two, not twice as many.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};

use crate::error::{Error, errno_of};
use crate::executable;

/// Variables that a service manager sets for the process that it has started, and that its children must not
/// inherit (sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3), systemd.exec(5)).
pub const SERVICE_MANAGER: [&str; 11] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "MAINPID",
    "MAINPIDFDID",
    "SYSTEMD_EXEC_PID",
];

/// Says in the environment of what this process is about to become that `LISTEN_FDS` is meant for it.
pub fn meant(command: &mut Command) {
    command.env("LISTEN_PID", std::process::id().to_string());
    match bindonce_fd::pidfd_id() {
        Some(id) => command.env("LISTEN_PIDFDID", id.to_string()),
        None => command.env_remove("LISTEN_PIDFDID"),
    };
}

/// The first descriptor after standard error, where sd_listen_fds(3) begins.
pub const FIRST: RawFd = 3;

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

/// Descriptors that the starter of this process has left open for it, by their numbers, as far as they are `wanted`: owned
/// and close-on-exec from now on, so that a second call does not find them. Whatever this process opens itself is
/// close-on-exec. All others stay as they are, for what is started.
///
/// # Errors
/// Those of looking at /proc/self/fd.
pub fn given(
    mut wanted: impl FnMut(RawFd, BorrowedFd<'_>) -> bool,
) -> io::Result<BTreeMap<RawFd, OwnedFd>> {
    let mut given = BTreeMap::new();
    for number in left_open()? {
        // SAFETY: it is open, and nothing in this process owns it.
        if wanted(number, unsafe { BorrowedFd::borrow_raw(number) }) {
            given.insert(number, take(number)?);
        }
    }
    Ok(given)
}

/// Duplicates of those, which themselves stay as they are.
///
/// # Errors
/// As [`given`].
pub fn copies() -> io::Result<BTreeMap<RawFd, OwnedFd>> {
    // SAFETY: it is open, and nothing in this process owns it.
    let copy = |number| unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned();
    left_open()?.into_iter().map(|number| Ok((number, copy(number)?))).collect()
}

/// The numbers from [`FIRST`] up that are open and not close-on-exec.
fn left_open() -> io::Result<Vec<RawFd>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|number| *number >= FIRST) else { continue };
        // SAFETY: used only to ask the kernel, which answers EBADF for a closed number.
        let flags = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) });
        // The look itself has one, which is closed by then.
        if flags.is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC)) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// Replaces this process by `command`, which finds `fds` as `first`,
/// `first + 1` and so on. Only for a process with a single thread: for a moment
/// the numbers mean something else than their owners believe.
///
/// It returns only if it failed; the descriptor table is then as it was, but
/// for `fds`, which are closed. [`Error::DescriptorLimit`] if the numbers do not fit
/// below RLIMIT_NOFILE, else that of the program.
pub fn exec(fds: Vec<OwnedFd>, first: RawFd, command: &mut Command) -> Error {
    let count = fds.len();
    match place(fds, first) {
        Ok(placed) => {
            let error = command.exec();
            drop(placed);
            executable::cannot_execute(command.get_program(), &error)
        }
        // F_DUPFD and dup2 say so of a number at or above the limit (fcntl(2), dup(2)).
        Err(error) if matches!(errno_of(&error), Errno::EMFILE | Errno::EINVAL | Errno::EBADF) => {
            let others = usize::try_from(first - FIRST).unwrap_or_default();
            Error::too_many(count.saturating_add(others))
        }
        Err(error) => Error::call("dup2", error),
    }
}

/// Descriptors in their place. Dropping it closes them, and puts back what stood there.
struct Placed {
    /// The numbers `first..next` are ours.
    first: RawFd,
    next: RawFd,
    /// What else stood on one of them, with its flags; kept above them all.
    before: HashMap<RawFd, (OwnedFd, FdFlags)>,
}

fn place(fds: Vec<OwnedFd>, first: RawFd) -> io::Result<Placed> {
    let end = i32::try_from(fds.len())
        .ok()
        .and_then(|count| first.checked_add(count))
        .filter(|_| first >= 0)
        .ok_or(Errno::EMFILE)?;
    // Where each of ours is now, by the number: only these have to move within the range.
    let inside = fds.iter().enumerate().map(|(index, fd)| (fd.as_raw_fd(), index));
    let mut inside: HashMap<RawFd, usize> =
        inside.filter(|(number, _)| (first..end).contains(number)).collect();
    let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
    let mut placed = Placed { first, next: first, before: HashMap::new() };
    for (index, number) in (first..end).enumerate() {
        let Some(fd) = fds.get_mut(index).and_then(Option::take) else { continue };
        let from = fd.as_raw_fd();
        inside.remove(&from);
        if from == number {
            fcntl_setfd(&fd, FdFlags::empty())?;
            let _ = fd.into_raw_fd();
        } else if let Some(other) = inside.remove(&number) {
            // The two change places, by way of any number that is free.
            let Some(there) = fds.get_mut(other).and_then(Option::take) else { continue };
            let aside = fcntl_dupfd_cloexec(&there, 0)?;
            duplicate(fd.as_fd(), number)?;
            let _ = there.into_raw_fd();
            placed.next = number + 1;
            duplicate(aside.as_fd(), from)?;
            if (first..end).contains(&from) {
                inside.insert(from, other);
            }
            if let Some(place) = fds.get_mut(other) {
                *place = Some(fd);
            }
        } else {
            if let Some(saved) = save(number, end)? {
                placed.before.insert(number, saved);
            }
            duplicate(fd.as_fd(), number)?;
        }
        placed.next = number + 1;
    }
    Ok(placed)
}

/// dup2(2): `number` means what `fd` means, without close-on-exec, and nothing else any more. Only for
/// numbers that the caller owns, or whose meaning it puts back before anybody uses them.
fn duplicate(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: `fd` is open; dup2 takes any number, and what becomes of the owner of `number` is
    // the caller's to see to, by the contract above. (nix's own fails to report an error.)
    let done = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    Errno::result(done)?;
    Ok(())
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
        for number in self.first..self.next {
            if let Some((fd, flags)) = self.before.remove(&number) {
                // Cannot fail on open descriptors; else the first owner has ours, which harms less
                // than a number that may be given out again.
                let _ = duplicate(fd.as_fd(), number);
                // SAFETY: it is open, one way or the other, and only its flags are set.
                let _ = fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, flags);
            } else {
                // SAFETY: `place` put a descriptor of its own here and gave up its ownership.
                drop(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
}
