//! Ghosts: epoll registrations that outlive their descriptor.
//!
//! epoll watches the open file, not the descriptor (epoll(7)). A process that closes a listener
//! which others hold open stays registered: every new connection wakes it, it finds nothing to
//! accept, and it burns a core. The process cannot help itself, because EPOLL_CTL_DEL needs the
//! descriptor that it closed. bindonce can: the kernel keys a registration on file and number, so
//! any process that has the epoll descriptor and the listener *under the same number* may delete
//! it.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::epoll::{self, Registration};
use crate::error::{Error, errno_of};
use crate::holders;
use crate::numbers::{self, Own};
use crate::process::Pidfd;

/// A registration of a listener under a number that no longer names the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ghost {
    /// The process.
    pub pid: i32,
    /// A thread whose descriptor table has the epoll descriptor; usually the pid.
    pub tid: i32,
    /// The number of the epoll descriptor in that table.
    pub epoll: i32,
    /// The number that the listener had when it was registered.
    pub number: i32,
    /// The listener's inode.
    pub inode: u64,
}

/// The ghosts of these listeners in a process. Empty if its /proc entries may not be read; those of
/// a child of the same user may.
pub fn find(pid: i32, inodes: &[u64]) -> Vec<Ghost> {
    let inodes: HashSet<u64> = inodes.iter().copied().collect();
    let tables = holders::tables(pid);
    let mut found = Vec::new();
    for table in &tables {
        for (epoll, all) in epoll::registrations(table) {
            for Registration { number, inode, .. } in all {
                // If threads have tables of their own and the number is still the listener in one
                // of them, the registration may be in use: leave it alone.
                if inodes.contains(&inode) && tables.iter().all(|t| t.socket(number) != Some(inode))
                {
                    found.push(Ghost { pid, tid: table.tid, epoll, number, inode });
                }
            }
        }
    }
    found
}

/// Deletes ghosts in the process behind `pidfd`; returns how many it deleted. `listeners` are our
/// own descriptors of the listeners, each with its inode. Use it only on a process that was told to
/// stop: a process that resumes and registers the same number again meanwhile would lose the new
/// registration.
///
/// # Errors
/// [`Error::Call`] for the first call that failed; `pidfd_getfd` with `EPERM` if this process may
/// not trace the other. A ghost that is gone already is not an error.
pub fn detach(
    pidfd: &Pidfd,
    ghosts: &[Ghost],
    listeners: &[(u64, BorrowedFd<'_>)],
) -> Result<usize, Error> {
    // Our own descriptors move above the numbers that are overwritten.
    let above = ghosts.iter().map(|ghost| ghost.number).max().unwrap_or(0).saturating_add(1);
    numbers::own(above, |own| detach_here(own, pidfd, ghosts, listeners))
}

fn detach_here(
    own: &Own,
    pidfd: &Pidfd,
    ghosts: &[Ghost],
    listeners: &[(u64, BorrowedFd<'_>)],
) -> Result<usize, Error> {
    let process = own.lift(pidfd.as_fd())?;
    let listeners = listeners
        .iter()
        .map(|(inode, fd)| Ok((*inode, own.lift(*fd)?)))
        .collect::<Result<Vec<_>, Error>>()?;
    let mut ghosts = ghosts.to_vec();
    ghosts.sort_unstable();
    let mut deleted = 0;
    for same_epoll in ghosts.chunk_by(|a, b| (a.tid, a.epoll) == (b.tid, b.epoll)) {
        let Some(first) = same_epoll.first() else {
            continue;
        };
        let Some(taken) = take_epoll(&process, first)? else {
            continue;
        };
        let epoll = own.lift(taken.as_fd())?;
        // The number may be that of a ghost: none of our descriptors may stay down there.
        drop(taken);
        for ghost in same_epoll {
            let Some((_, listener)) = listeners.iter().find(|(inode, _)| *inode == ghost.inode)
            else {
                continue;
            };
            deleted += usize::from(own.delete(&epoll, listener, ghost.number)?);
        }
    }
    Ok(deleted)
}

/// The epoll descriptor of the other process; None if the descriptor or its owner is gone.
fn take_epoll(process: &OwnedFd, ghost: &Ghost) -> Result<Option<OwnedFd>, Error> {
    let taken = if ghost.tid == ghost.pid {
        let flags = rustix::process::PidfdGetfdFlags::empty();
        rustix::process::pidfd_getfd(process, ghost.epoll, flags).map_err(Into::into)
    } else {
        Pidfd::of_thread(ghost.tid).and_then(|thread| thread.take(ghost.epoll))
    };
    match taken {
        Ok(epoll) => Ok(Some(epoll)),
        Err(error) if matches!(errno_of(&error), Errno::EBADF | Errno::ESRCH) => Ok(None),
        Err(error) => Err(Error::call("pidfd_getfd", error)),
    }
}
