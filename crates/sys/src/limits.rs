//! Limits of the process and of the system on descriptors, backlogs and ports.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use bindonce_core::text::printable;
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};

/// The default of somaxconn before Linux 5.4, for systems without a readable /proc.
const SOMAXCONN_OLD: u32 = 128;

/// Soft and hard limit on open descriptors (RLIMIT_NOFILE); `u64::MAX` means no limit.
pub fn nofile() -> (u64, u64) {
    let limit = getrlimit(Resource::Nofile);
    (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX))
}

/// This process may open no more descriptors. The text names the process, since another process may
/// show the message, and says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The pid of the process.
    pub pid: u32,
    /// The program's name from its command line: without a free descriptor /proc cannot be read.
    pub program: String,
    /// The soft limit on open descriptors.
    pub limit: u64,
}

impl Reached {
    /// The limit of this process now.
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

/// Raises the soft limit on open descriptors to the hard limit; returns the soft limit now in
/// effect.
///
/// # Errors
/// Errors from setrlimit(2).
pub fn raise_nofile() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(nofile().0)
}

/// Number of descriptors for which the process's table has room from the start, as far as the limit
/// allows.
const TABLE: u64 = 16 * 1024;

/// Widens the process's descriptor table; call it before the first thread starts. The kernel
/// doubles a full table, and if threads share the table it waits for every core meanwhile
/// (`expand_fdtable`): up to 20 ms in which a broker answers no client.
pub fn widen_table() {
    let most = raise_nofile().unwrap_or_else(|_| nofile().0).min(TABLE);
    let last = i32::try_from(most).unwrap_or_default() - 1;
    let _ = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last);
}

/// Lowers the priority of the calling thread, for work that no client waits for. No effect if that
/// is refused.
pub fn give_way() {
    // On Linux this applies to a thread, not to the process (sched(7)).
    let _ = setpriority_process(None, LOW);
}

/// A low priority that still gets some time on a host that is never idle.
const LOW: i32 = 10;

/// Descriptors that a small program has open besides those passed to it.
const OWN: u64 = 16;

/// Raises the soft limit on open descriptors if `count` more might not fit, and leaves it alone
/// otherwise: programs that use select(2) cannot live with a high one.
///
/// # Errors
/// Errors from setrlimit(2).
pub fn make_room(count: usize) -> io::Result<()> {
    if nofile().0 < OWN.saturating_add(count as u64) {
        raise_nofile()?;
    }
    Ok(())
}

/// The limit that a process needs for `count` descriptors besides its own, and its current limit.
pub(crate) fn needed(count: usize) -> (u64, u64) {
    let limit = nofile().0;
    // The process may have more than the usual few of its own.
    (OWN.saturating_add(count as u64).max(limit.saturating_add(1)), limit)
}

/// Whether the port is one of [`chosen_ports`].
pub fn is_chosen_port(port: u16) -> bool {
    chosen_ports().is_some_and(|ports| ports.contains(&port))
}

/// The ports from which the kernel chooses in this network namespace, for a socket bound to port 0
/// and for an outgoing connection. None if the range cannot be read.
pub fn chosen_ports() -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = text.split_ascii_whitespace().map(str::parse);
    let ports = ends.next()?.ok()?..=ends.next()?.ok()?;
    (!ports.is_empty()).then_some(ports)
}

/// Reads a file that contains a single number, such as those below /proc/sys.
pub fn number<T: FromStr>(path: &str) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The longest accept queue that listen(2) allows in this network namespace
/// (/proc/sys/net/core/somaxconn).
pub fn somaxconn() -> u32 {
    number("/proc/sys/net/core/somaxconn").unwrap_or(SOMAXCONN_OLD)
}

/// The first port in this network namespace that does not need CAP_NET_BIND_SERVICE
/// (net.ipv4.ip_unprivileged_port_start, which applies to IPv6 too).
pub fn unprivileged_ports() -> u16 {
    number("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or(1024)
}
