//! Ending a haproxy whose listeners another process already serves, with proof.
//!
//! haproxy gets SIGUSR1 and is never paused: its pause (SIGTTOU) disconnects a socket that it bound
//! itself, for all holders of the socket. The proof is that none of its processes has a descriptor
//! of any of its listening sockets left, except a master's own (`-S`), which it has until it ends.
//!
//! Its own sockets on the same address close with it, and connections that wait in their queues
//! would be reset. While it stops, `net.ipv4.tcp_migrate_req` is on: the kernel (5.14 or later)
//! moves them to another socket that listens on the address, the broker's.
//!
//! Listeners that it closes and the broker keeps stay in its epoll sets and would wake it for every
//! connection (`bindonce_sys::ghosts`). `retire` removes them.

use std::collections::HashSet;
use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bindonce_core::address::Address;
use bindonce_core::duration;
use bindonce_sys::process::{self, Pidfd, Stat};
use bindonce_sys::signals::Signal;
use bindonce_sys::{diag, ghosts, holders};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Error, command_of, listening_of};

/// Time between two looks at its descriptors: there is no event when another process closes one.
const LOOK: Duration = Duration::from_millis(5);
/// Time until it is signalled again.
const AGAIN: Duration = Duration::from_millis(250);

/// Whether the kernel moves the connections of a socket that closes.
const MIGRATES: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// A listener that another process serves.
#[derive(Debug)]
pub struct Served<'a> {
    /// Where it is bound.
    pub address: Address,
    /// Its inode.
    pub inode: u64,
    /// A descriptor of it.
    pub fd: BorrowedFd<'a>,
}

/// What became of the connections that waited in sockets that closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migration {
    /// No such socket closed.
    NotNeeded,
    /// The kernel was set to move them.
    Moved,
    /// The kernel could not move them, and the caller accepted that (`lossy`).
    Reset,
}

/// What [`retire`] has done and proved, or what it would do.
#[derive(Debug)]
pub struct Retired {
    /// The processes that no longer accept.
    pub pids: Vec<i32>,
    /// Addresses that it listened on, each with the inode of the broker's listener there, if there
    /// is one.
    pub addresses: Vec<(Address, Option<u64>)>,
    /// Number of its own sockets that it closed beside the broker's.
    pub siblings: usize,
    /// What became of the connections that waited in those.
    pub migration: Migration,
    /// Number of epoll registrations of closed listeners that were removed.
    pub ghosts: usize,
    /// Why some of them could not be removed.
    pub ghosts_left: Option<bindonce_sys::Error>,
    /// Sockets that still listen beside the broker's, with the pids of their holders.
    pub others: Vec<(Address, Vec<i32>)>,
}

/// Tells the haproxy with this pid (a master, if it has one) to stop accepting, and waits for the
/// proof until `limit`. `served` are the broker's listeners that another process accepts on.
///
/// # Errors
/// [`Error::NoProcess`], [`Error::NotHaproxy`], or [`Error::WouldReset`] unless `lossy`: nothing
/// has been done. [`Error::StillThere`]: it was told to stop and has not stopped.
pub fn retire(
    pid: i32,
    served: &[Served<'_>],
    lossy: bool,
    limit: Duration,
) -> Result<Retired, Error> {
    let pidfd = Pidfd::open(pid).map_err(|_| Error::NoProcess { pid })?;
    let Subject { pids, watched, addresses, siblings } = Subject::of(pid, served)?;
    let migrating = (siblings > 0).then(Migrating::begin);
    let migration = migration(pid, siblings, migrating.as_ref(), lossy)?;
    stop(&pidfd, &pids, &watched, limit)?;
    drop(migrating);

    let (ghosts, ghosts_left) = remove_ghosts(&pids, served);
    let kept: HashSet<u64> = served.iter().map(|one| one.inode).collect();
    let beside = diag::tcp()?.into_iter().filter(|socket| {
        !kept.contains(&socket.inode) && served.iter().any(|one| one.address == socket.address)
    });
    let others = beside.map(|socket| {
        let mut pids: Vec<i32> = holders::of(&[socket.inode]).iter().map(|h| h.pid).collect();
        pids.dedup();
        (socket.address, pids)
    });
    let others = others.collect();
    Ok(Retired { pids, addresses, siblings, migration, ghosts, ghosts_left, others })
}

/// What [`retire`] would do now. Changes nothing.
///
/// # Errors
/// As [`retire`], which waits for nothing then.
pub fn would_retire(pid: i32, served: &[Served<'_>], lossy: bool) -> Result<Retired, Error> {
    let Subject { pids, addresses, siblings, .. } = Subject::of(pid, served)?;
    let possible = (siblings > 0).then(Migrating::is_possible);
    let migration = migration(pid, siblings, possible.as_ref(), lossy)?;
    let (ghosts, ghosts_left, others) = (0, None, Vec::new());
    Ok(Retired { pids, addresses, siblings, migration, ghosts, ghosts_left, others })
}

/// Checks that this process is a haproxy.
///
/// # Errors
/// [`Error::NoProcess`] or [`Error::NotHaproxy`].
pub fn expect_haproxy(pid: i32) -> Result<(), Error> {
    if command_of(pid).is_some() {
        return Ok(());
    }
    // One that has ended, and that its parent has not noticed yet, still has its name.
    let lives = Stat::of(pid).is_some_and(|stat| !stat.has_ended());
    let name = process::name(pid).filter(|_| lives).ok_or(Error::NoProcess { pid })?;
    Err(Error::NotHaproxy { pid, name })
}

/// A haproxy that is told to stop.
struct Subject {
    pids: Vec<i32>,
    /// The sockets from which its processes accept.
    watched: Vec<(u64, Address)>,
    /// As in [`Retired`].
    addresses: Vec<(Address, Option<u64>)>,
    siblings: usize,
}

impl Subject {
    fn of(pid: i32, served: &[Served<'_>]) -> Result<Self, Error> {
        expect_haproxy(pid)?;
        let pids = process::family(pid);
        let workers = pids.iter().filter(|member| **member != pid);
        let has_master = workers.clone().any(|worker| command_of(*worker).is_some());
        let accept: Vec<i32> = if has_master { workers.copied().collect() } else { pids.clone() };
        let own = listening_of(&accept)?;

        let mut addresses: Vec<(Address, Option<u64>)> = Vec::new();
        let mut siblings = 0;
        for socket in &own {
            let at = |one: &&Served<'_>| one.inode == socket.inode || one.address == socket.address;
            let known = served.iter().find(at);
            siblings += usize::from(known.is_some_and(|one| one.inode != socket.inode));
            let entry = (socket.address.clone(), known.map(|one| one.inode));
            if !addresses.contains(&entry) {
                addresses.push(entry);
            }
        }
        let watched = own.into_iter().map(|socket| (socket.inode, socket.address)).collect();
        Ok(Self { pids, watched, addresses, siblings })
    }
}

/// What becomes of the connections that wait in sockets which close, if there are any. `moves` says
/// whether the kernel moves them.
fn migration<T>(
    pid: i32,
    sockets: usize,
    moves: Option<&std::io::Result<T>>,
    lossy: bool,
) -> Result<Migration, Error> {
    match moves {
        None => Ok(Migration::NotNeeded),
        Some(Ok(_)) => Ok(Migration::Moved),
        Some(Err(_)) if lossy => Ok(Migration::Reset),
        Some(Err(why)) => Err(Error::WouldReset { pid, sockets, why: why.to_string() }),
    }
}

/// Signals the haproxy until none of its processes holds any of the sockets.
fn stop(
    pidfd: &Pidfd,
    pids: &[i32],
    watched: &[(u64, Address)],
    limit: Duration,
) -> Result<(), Error> {
    let inodes: Vec<u64> = watched.iter().map(|(inode, _)| *inode).collect();
    let begun = Instant::now();
    let mut warned: Option<Instant> = None;
    loop {
        let holder =
            pids.iter().find_map(|pid| holders::of_process(*pid, &inodes).into_iter().next());
        let Some(holder) = holder else { return Ok(()) };
        if begun.elapsed() >= limit {
            let address = watched.iter().find(|(inode, _)| *inode == holder.inode);
            let address =
                address.map_or_else(|| Address::Unix(String::new()), |(_, at)| at.clone());
            let waited = duration::format(limit);
            return Err(Error::StillThere { pid: holder.pid, address, waited });
        }
        if warned.is_none_or(|warned| warned.elapsed() >= AGAIN) {
            // The process may have ended just now: the next look shows it.
            let _ = pidfd.send(Signal::SIGUSR1);
            warned = Some(Instant::now());
        }
        let time = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
        let _ = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&time));
    }
}

/// Removes stale registrations of these listeners from the epoll sets of processes that still
/// serve.
fn remove_ghosts(pids: &[i32], served: &[Served<'_>]) -> (usize, Option<bindonce_sys::Error>) {
    let inodes: Vec<u64> = served.iter().map(|one| one.inode).collect();
    let listeners: Vec<_> = served.iter().map(|one| (one.inode, one.fd.as_fd())).collect();
    let (mut removed, mut left) = (0, None);
    for pid in pids {
        let found = ghosts::find(*pid, &inodes);
        // A process that has ended needs nothing.
        let Ok(pidfd) = Pidfd::open(*pid) else { continue };
        if found.is_empty() {
            continue;
        }
        match ghosts::detach(&pidfd, &found, &listeners) {
            Ok(count) => removed += count,
            Err(error) => left = Some(error),
        }
    }
    (removed, left)
}

/// `net.ipv4.tcp_migrate_req` is on until this is dropped, which restores its value.
struct Migrating {
    path: PathBuf,
    before: Vec<u8>,
}

impl Migrating {
    fn begin() -> std::io::Result<Self> {
        let path = PathBuf::from(MIGRATES);
        let before = fs::read(&path)?;
        if before.trim_ascii() == b"0" {
            fs::write(&path, "1")?;
        }
        Ok(Self { path, before })
    }

    /// Whether [`Self::begin`] would succeed.
    fn is_possible() -> std::io::Result<()> {
        if fs::read(MIGRATES)?.trim_ascii() == b"0" {
            fs::OpenOptions::new().write(true).open(MIGRATES)?;
        }
        Ok(())
    }
}

impl Drop for Migrating {
    fn drop(&mut self) {
        if self.before.trim_ascii() == b"0" {
            // It was writable a moment ago. Left on, it does no harm.
            let _ = fs::write(&self.path, &self.before);
        }
    }
}
