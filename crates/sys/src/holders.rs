//! Finds the processes that hold a socket open, by reading /proc.
//!
//! Only root can see the processes of other users. Processes that cannot be read are left out, so
//! an empty answer proves nothing without root.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::process::{self, Pidfd, numbered, threads_with_own_descriptors};

/// How many descriptors a program may have before those that it was given.
const FIRST: usize = 64;

/// A descriptor of a socket in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Holder {
    /// The socket's inode.
    pub inode: u64,
    /// The process.
    pub pid: i32,
    /// The number of the descriptor in that process.
    pub fd: i32,
    /// A thread whose descriptor table has the descriptor; usually the pid.
    pub tid: i32,
}

impl Holder {
    /// Duplicates the descriptor into this process (pidfd_getfd(2)).
    ///
    /// # Errors
    /// `EPERM` without the right to trace the process; `EBADF` if the number no longer names that
    /// socket; `EINVAL` for a table other than the first thread's before Linux 6.9.
    pub fn take(&self) -> io::Result<OwnedFd> {
        let process =
            if self.tid == self.pid { Pidfd::open(self.pid) } else { Pidfd::of_thread(self.tid) };
        let taken = process?.take(self.fd)?;
        let same = rustix::fs::fstat(&taken)?.st_ino == self.inode;
        if same { Ok(taken) } else { Err(rustix::io::Errno::BADF.into()) }
    }
}

/// Every descriptor of the sockets with these inodes, in every readable process; sorted by inode,
/// pid and number.
pub fn of(inodes: &[u64]) -> Vec<Holder> {
    let wanted: HashSet<u64> = inodes.iter().copied().collect();
    let mut found: Vec<Holder> = numbered(Path::new("/proc"))
        .unwrap_or_default()
        .into_iter()
        .flat_map(|pid| in_process(pid, &wanted))
        .collect();
    found.sort_unstable();
    found
}

/// As [`of`], for one process.
pub fn of_process(pid: i32, inodes: &[u64]) -> Vec<Holder> {
    in_process(pid, &inodes.iter().copied().collect())
}

/// The sockets in the descriptor table of a process. Threads with a table of their own are not
/// covered.
pub fn of_table(pid: i32) -> Vec<Holder> {
    let table = Table::read(pid, PathBuf::from(format!("/proc/{pid}")));
    let holder = |fd: i32| Some(Holder { inode: table.socket(fd)?, pid, fd, tid: pid });
    table.numbers.iter().copied().filter_map(holder).collect()
}

/// The inodes of all sockets that a process has open.
pub fn sockets(pid: i32) -> BTreeSet<u64> {
    let of = |table: Table| table.numbers.iter().filter_map(|fd| table.socket(*fd)).collect();
    tables(pid).into_iter().flat_map(|table| -> Vec<_> { of(table) }).collect()
}

/// The inode of descriptor `fd` of a process, if it is a socket.
pub fn socket(pid: i32, fd: i32) -> Option<u64> {
    inode(&fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?)
}

fn inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Whether a process has a descriptor of one of these sockets. False if the process has ended.
///
/// # Errors
/// `EACCES` if the descriptors of the process may not be read; `EMFILE` and others if this process
/// cannot read them.
pub fn holds(pid: i32, inodes: &[u64]) -> io::Result<bool> {
    let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(entries) => entries.flatten(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
        Err(error) => return Err(error),
    };
    // A process that was given its listeners has them among its first descriptors.
    let mut first = entries
        .take(inodes.len() + FIRST)
        .filter_map(|entry| socket(pid, entry.file_name().to_str()?.parse().ok()?));
    Ok(first.any(|inode| inodes.contains(&inode)) || !of_process(pid, inodes).is_empty())
}

fn in_process(pid: i32, inodes: &HashSet<u64>) -> Vec<Holder> {
    let mut found = Vec::new();
    for table in tables(pid) {
        for fd in &table.numbers {
            if let Some(inode) = table.socket(*fd)
                && inodes.contains(&inode)
            {
                found.push(Holder { inode, pid, fd: *fd, tid: table.tid });
            }
        }
    }
    found.sort_unstable();
    found.dedup_by_key(|holder| (holder.inode, holder.fd));
    found
}

/// A descriptor table of a process. Threads may have one of their own
/// (unshare(2) with CLONE_FILES), as thread groups of haproxy 3.5 do.
pub(crate) struct Table {
    /// The thread through which the table was read.
    pub(crate) tid: i32,
    /// /proc/PID, or /proc/PID/task/TID.
    base: PathBuf,
    /// The open descriptors, sorted.
    pub(crate) numbers: Vec<i32>,
}

impl Table {
    fn read(tid: i32, base: PathBuf) -> Self {
        let mut numbers = numbered(&base.join("fd")).unwrap_or_default();
        numbers.sort_unstable();
        Self { tid, base, numbers }
    }

    /// The table of this thread.
    pub(crate) fn of_thread(tid: i32) -> Self {
        Self::read(tid, PathBuf::from(format!("/proc/{tid}")))
    }

    /// Whether descriptor `fd` is closed when the process executes another program.
    pub(crate) fn closes_on_exec(&self, fd: i32) -> bool {
        process::open_flags(&self.base, fd).is_some_and(|flags| flags & libc::O_CLOEXEC != 0)
    }

    /// The link of descriptor `fd`: `socket:[1234]`, `anon_inode:[eventpoll]`, or a path.
    pub(crate) fn link(&self, fd: i32) -> Option<PathBuf> {
        fs::read_link(self.base.join("fd").join(fd.to_string())).ok()
    }

    /// The inode of descriptor `fd`, if it is a socket.
    pub(crate) fn socket(&self, fd: i32) -> Option<u64> {
        inode(&self.link(fd)?)
    }

    /// Whether descriptor `fd` is an epoll instance.
    pub(crate) fn is_epoll(&self, fd: i32) -> bool {
        self.link(fd).is_some_and(|link| link == Path::new("anon_inode:[eventpoll]"))
    }

    /// The kernel's information on descriptor `fd` (proc_pid_fdinfo(5)).
    pub(crate) fn info(&self, fd: i32) -> Option<String> {
        fs::read_to_string(self.base.join("fdinfo").join(fd.to_string())).ok()
    }
}

/// The descriptor tables of a process: the main thread's, and those of threads with a table of
/// their own.
pub(crate) fn tables(pid: i32) -> Vec<Table> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let apart = threads_with_own_descriptors(pid).into_iter();
    let apart: Vec<_> = apart.map(|tid| (tid, process.join(format!("task/{tid}")))).collect();
    let all = std::iter::once((pid, process)).chain(apart);
    all.map(|(tid, base)| Table::read(tid, base)).collect()
}
