//! Passes descriptors to the next program under fixed numbers.
//!
//! The systemd convention (sd_listen_fds(3)) and haproxy's `fd@N` both need consecutive descriptors
//! without close-on-exec. Moving descriptors one by one can overwrite one that has yet to move, or
//! one that another part of this process owns. So a descriptor on a needed number moves out of the
//! way first, and a descriptor that is not ours moves back if the exec fails. Nothing else is
//! copied: ten thousand descriptors need ten thousand numbers and one or two more, not twice as
//! many.

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

/// Variables that a service manager sets for the process that it starts. Children of that process
/// must not inherit them (sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3), systemd.exec(5)).
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

/// Sets LISTEN_PID and LISTEN_PIDFDID for the program that this process is about to become, so that
/// `LISTEN_FDS` applies to it.
pub fn meant(command: &mut Command) {
    command.env("LISTEN_PID", std::process::id().to_string());
    match bindonce_fd::pidfd_id() {
        Some(id) => command.env("LISTEN_PIDFDID", id.to_string()),
        None => command.env_remove("LISTEN_PIDFDID"),
    };
}

/// The first descriptor after standard error, where sd_listen_fds(3) begins.
pub const FIRST: RawFd = 3;

/// Takes ownership of a descriptor that an earlier image of this process left open for it, and
/// makes it close-on-exec.
///
/// # Errors
/// `EBADF` if no descriptor has this number.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: F_GETFD uses the descriptor only during the call, and fails with EBADF if the number
    // is not open; nothing else in this process knows its number.
    let left = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(left)?;
    // SAFETY: the descriptor is open, and the caller promises that it is ours: it was left open
    // over the exec that made this image, so no other owner of the number can exist.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&owned, FdFlags::CLOEXEC)?;
    Ok(owned)
}

/// Takes the `wanted` ones of the descriptors that the starter of this process left open for it, by
/// number. They are owned and close-on-exec from now on, so a second call does not find them;
/// neither does it find descriptors that this process opened, which are close-on-exec anyway. All
/// others stay as they are, for programs that this process starts.
///
/// # Errors
/// Errors from reading /proc/self/fd.
pub fn given(
    mut wanted: impl FnMut(RawFd, BorrowedFd<'_>) -> bool,
) -> io::Result<BTreeMap<RawFd, OwnedFd>> {
    let mut given = BTreeMap::new();
    for number in left_open()? {
        // SAFETY: the descriptor is open, and nothing in this process owns it.
        if wanted(number, unsafe { BorrowedFd::borrow_raw(number) }) {
            given.insert(number, take(number)?);
        }
    }
    Ok(given)
}

/// Duplicates of all inherited descriptors, which stay as they are.
///
/// # Errors
/// As [`given`].
pub fn copies() -> io::Result<BTreeMap<RawFd, OwnedFd>> {
    // SAFETY: the descriptor is open, and nothing in this process owns it.
    let copy = |number| unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned();
    left_open()?.into_iter().map(|number| Ok((number, copy(number)?))).collect()
}

/// The numbers from [`FIRST`] up that are open and not close-on-exec.
fn left_open() -> io::Result<Vec<RawFd>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|number| *number >= FIRST) else { continue };
        // SAFETY: used only for a query to the kernel, which answers EBADF for a closed number.
        let flags = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) });
        // The descriptor of read_dir itself is close-on-exec, so it is left out.
        if flags.is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC)) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// Replaces this process by `command`, which finds `fds` as `first`, `first + 1` and so on. Only
/// for a process with a single thread: for a moment the numbers do not mean what their owners
/// expect.
///
/// Returns only on failure; the descriptor table is then as before, except that `fds` are closed.
/// [`Error::DescriptorLimit`] if the numbers do not fit below RLIMIT_NOFILE, else the error of the
/// exec.
pub fn exec(fds: Vec<OwnedFd>, first: RawFd, command: &mut Command) -> Error {
    let count = fds.len();
    match place(fds, first) {
        Ok(placed) => {
            let error = command.exec();
            drop(placed);
            executable::cannot_execute(command.get_program(), &error)
        }
        // F_DUPFD and dup2 return these for a number at or above the limit (fcntl(2), dup(2)).
        Err(error) if matches!(errno_of(&error), Errno::EMFILE | Errno::EINVAL | Errno::EBADF) => {
            let others = usize::try_from(first - FIRST).unwrap_or_default();
            Error::too_many(count.saturating_add(others))
        }
        Err(error) => Error::call("dup2", error),
    }
}

/// Descriptors in their place. Dropping the value closes them, and restores the descriptors that
/// were there.
struct Placed {
    /// The numbers `first..next` are ours.
    first: RawFd,
    next: RawFd,
    /// Other descriptors that were on these numbers, with their flags; kept above the range.
    before: HashMap<RawFd, (OwnedFd, FdFlags)>,
}

fn place(fds: Vec<OwnedFd>, first: RawFd) -> io::Result<Placed> {
    let end = i32::try_from(fds.len())
        .ok()
        .and_then(|count| first.checked_add(count))
        .filter(|_| first >= 0)
        .ok_or(Errno::EMFILE)?;
    // The current position of each of ours, by number: only these have to move within the range.
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
            // The two swap places, by way of any free number.
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

/// dup2(2): `number` becomes a copy of `fd`, without close-on-exec. Only for numbers that the
/// caller owns, or whose meaning the caller restores before anything uses them.
fn duplicate(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: `fd` is open; dup2 takes any number, and by the contract above the caller takes care
    // of the owner of `number`. (nix's own fails to report an error.)
    let done = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    Errno::result(done)?;
    Ok(())
}

/// A copy of the descriptor now at `number`, numbered from `above` up.
fn save(number: RawFd, above: RawFd) -> io::Result<Option<(OwnedFd, FdFlags)>> {
    // SAFETY: used only for a query to the kernel, which answers EBADF for a closed number.
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
                // This cannot fail on open descriptors. If it did, the first owner would have ours,
                // which is less harmful than a number that may be reassigned.
                let _ = duplicate(fd.as_fd(), number);
                // SAFETY: the descriptor is open, one way or the other, and only its flags are set.
                let _ = fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, flags);
            } else {
                // SAFETY: `place` put a descriptor of its own here and gave up its ownership.
                drop(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
}
