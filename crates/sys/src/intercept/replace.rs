//! Replaces a program's socket by another one: under the number that bind(2) names, under all other
//! numbers that it has in that descriptor table (dup(2)), and in the epoll instances there that
//! wait for it.
//!
//! Other processes keep the old socket: the kernel puts descriptors only into the table of the
//! calling thread.

use std::os::fd::{AsFd as _, BorrowedFd, RawFd};

use nix::errno::Errno;

use super::Theirs;
use crate::calls::Calls;
use crate::epoll::{self, Registration};
use crate::error::Error;
use crate::holders::Table;
use crate::numbers;

/// An epoll instance, by its number in the program, and the registrations of the socket there.
type Waits = (RawFd, Vec<Registration>);

/// Replaces the socket while the call `id` of this thread waits; returns what could not be
/// replaced, in words. The number that the call names comes last: before Linux 5.19 a signal may
/// interrupt the call in between, and the call then comes again with the rest to do. If another
/// thread has closed that number since and opened something else there, the new descriptor stays.
///
/// # Errors
/// Errors from SECCOMP_IOCTL_NOTIF_ADDFD, and `EBADF` if the number that bind(2) names is not this
/// socket's; that number is then unchanged.
pub(super) fn replace(
    calls: &Calls,
    id: u64,
    thread: i32,
    theirs: &Theirs,
    by: BorrowedFd<'_>,
) -> Result<Vec<String>, Errno> {
    let table = Table::of_thread(thread);
    let mut left = Vec::new();
    let is_it = |number: &RawFd| table.socket(*number) == Some(theirs.inode);
    for number in table.numbers.iter().copied().filter(is_it) {
        if number == theirs.number {
            continue;
        }
        let put = calls.put(id, by, number, table.closes_on_exec(number));
        if let Err(errno) = put {
            left.push(format!("its copy as descriptor {number} is not replaced: {errno}"));
        }
    }
    let waits = waits(&table, theirs.inode);
    if !waits.is_empty()
        && let Err(error) = register(theirs, &waits, by)
    {
        left.push(format!("its registration with epoll is lost: {error}"));
    }
    let closes = table.closes_on_exec(theirs.number);
    if !is_it(&theirs.number) {
        return Err(Errno::EBADF);
    }
    calls.put(id, by, theirs.number, closes)?;
    Ok(left)
}

/// The epoll registrations of this socket.
fn waits(table: &Table, inode: u64) -> Vec<Waits> {
    let device = epoll::socket_device();
    let of_it = epoll::registrations(table).map(|(number, mut all)| {
        all.retain(|one| one.inode == inode && Some(one.device) == device);
        (number, all)
    });
    of_it.filter(|(_, found)| !found.is_empty()).collect()
}

/// Registers a file in place of another, with the same numbers and events.
fn register(was: &Theirs, waits: &[Waits], is: BorrowedFd<'_>) -> Result<(), Error> {
    let taken = |error| Error::call("pidfd_getfd", error);
    let epolls = waits.iter().map(|(epoll, _)| was.table.take(*epoll).map_err(taken));
    let epolls = epolls.collect::<Result<Vec<_>, Error>>()?;
    let all = waits.iter().map(|(_, all)| all);
    let above = all.clone().flatten().map(|one| one.number).max().unwrap_or(0).saturating_add(1);
    numbers::own(above, |own| {
        let epolls = epolls.iter().map(|epoll| own.lift(epoll.as_fd()));
        let epolls = epolls.collect::<Result<Vec<_>, Error>>()?;
        let (was, is) = (own.lift(was.fd.as_fd())?, own.lift(is)?);
        for (epoll, all) in epolls.iter().zip(all) {
            for one in all {
                // Another process may have the old socket open, and its registration would stay.
                own.delete(epoll, &was, one.number)?;
                own.add(epoll, &is, one)?;
            }
        }
        Ok(())
    })
}
