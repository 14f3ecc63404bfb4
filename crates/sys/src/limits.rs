//! Limits of the process and of the system that decide how much can be held.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use bindonce_core::text::printable;
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};

/// What Linux had as somaxconn until 5.4, for systems without a readable /proc.
const SOMAXCONN_OLD: u32 = 128;

/// Soft and hard limit on open descriptors (RLIMIT_NOFILE); `u64::MAX` is none.
pub fn nofile() -> (u64, u64) {
    let limit = getrlimit(Resource::Nofile);
    (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX))
}

/// This process may open no more descriptors. It says whose limit it is, since another process may show
/// the message, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The process.
    pub pid: u32,
    /// Its name, as on its command line: without a free descriptor nothing of /proc can be read.
    pub program: String,
    /// Its soft limit on open descriptors.
    pub limit: u64,
}

impl Reached {
    /// The limit of this process at this moment.
    pub fn now() -> Self {
        let program = env::args_os().next().unwrap_or_default();
        let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy();
        Self { pid: std::process::id(), program: printable(&name).into(), limit: nofile().0 }
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, program, limit } = self;
        write!(
            f,
            "pid {pid} ({program}) has reached its soft limit of {limit} open files: start it with a higher \
             one (LimitNOFILE= in the unit, ulimit -n, --ulimit nofile= of a container); generations that \
             drain hold descriptors too, and `bindonce retire` ends the oldest"
        )
    }
}

/// Raises the soft limit on open descriptors to the hard one; gives the soft
/// limit that now holds.
///
/// # Errors
/// Those of setrlimit(2).
pub fn raise_nofile() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(nofile().0)
}

/// How many descriptors have a place in the process's table from its start, as far as its limit allows.
const TABLE: u64 = 16 * 1024;

/// Widens the process's table of descriptors, before its first thread. The kernel doubles the table when it is full, and where threads
/// share it waits for every core meanwhile (`expand_fdtable`): up to 20 ms in which a broker answers nobody.
pub fn widen_table() {
    let most = raise_nofile().unwrap_or_else(|_| nofile().0).min(TABLE);
    let last = i32::try_from(most).unwrap_or_default() - 1;
    let _ = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last);
}

/// Gives the calling thread the lowest useful priority, for work that no client waits for. Without effect where that is refused.
pub fn give_way() {
    // Of a thread, not of the process, as sched(7) has it of Linux.
    let _ = setpriority_process(None, LOW);
}

/// Low, and still more than nothing on a host that is never idle.
const LOW: i32 = 10;

/// Descriptors that a small program has open besides those that it is given.
const OWN: u64 = 16;

/// Raises the soft limit on open descriptors if `count` more might not fit, and
/// leaves it alone otherwise: programs that use select(2) cannot live with a high one.
///
/// # Errors
/// Those of setrlimit(2).
pub fn make_room(count: usize) -> io::Result<()> {
    if nofile().0 < OWN.saturating_add(count as u64) {
        raise_nofile()?;
    }
    Ok(())
}

/// The limit that a process needs for `count` descriptors besides its own, and the one that it has.
pub(crate) fn needed(count: usize) -> (u64, u64) {
    let limit = nofile().0;
    // It may have more of its own than the usual few.
    (OWN.saturating_add(count as u64).max(limit.saturating_add(1)), limit)
}

/// Whether this is one of [`chosen_ports`].
pub fn is_chosen_port(port: u16) -> bool {
    chosen_ports().is_some_and(|ports| ports.contains(&port))
}

/// The ports that the kernel chooses from in this network namespace, for a socket bound to port 0 and for a connection. None if it
/// does not say.
pub fn chosen_ports() -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = text.split_ascii_whitespace().map(str::parse);
    let ports = ends.next()?.ok()?..=ends.next()?.ok()?;
    (!ports.is_empty()).then_some(ports)
}

/// The number that is all of a file, such as those below /proc/sys.
pub fn number<T: FromStr>(path: &str) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The longest accept queue that listen(2) grants in this network namespace
/// (/proc/sys/net/core/somaxconn).
pub fn somaxconn() -> u32 {
    number("/proc/sys/net/core/somaxconn").unwrap_or(SOMAXCONN_OLD)
}

/// From this port on, none needs CAP_NET_BIND_SERVICE in this network namespace (net.ipv4.ip_unprivileged_port_start, which
/// holds for IPv6 too).
pub fn unprivileged_ports() -> u16 {
    number("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or(1024)
}
