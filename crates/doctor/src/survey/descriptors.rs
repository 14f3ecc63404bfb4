//! Reads the descriptor tables of a process with as few calls as possible: the kernel uses nearly
//! all of a survey's time, with one call for each descriptor of the system.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;

use bindonce_sys::epoll;
use bindonce_sys::process::threads_with_own_descriptors;
use rustix::fs::{Dir, Mode, OFlags};

use crate::facts::Registration;

/// The sockets to look for.
pub(super) struct Wanted<'a> {
    /// The inodes of the sockets.
    pub(super) inodes: &'a HashSet<u64>,
    /// The device of the kernel's socket file system.
    pub(super) device: u32,
}

/// The descriptors of a process.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    /// Number of descriptors in the fullest table: the limit applies to each table.
    pub(super) count: u64,
    /// Number of sockets among them.
    pub(super) sockets: u64,
    /// Inode and number of each descriptor of the wanted sockets, sorted.
    pub(super) holds: Vec<(u64, i32)>,
    /// Registrations of the wanted sockets in the process's epoll instances.
    pub(super) registrations: Vec<Registration>,
    /// Whether the process has an epoll instance, or an io_uring.
    pub(super) epoll: bool,
    pub(super) uring: bool,
}

/// Reads the descriptors of a process; None without permission.
pub(super) fn read(pid: i32, threaded: bool, wanted: &Wanted<'_>) -> Option<Descriptors> {
    let process = format!("/proc/{pid}");
    let mut found = Descriptors::default();
    let mut epolls = table(&process, wanted, &mut found)?;
    let apart = if threaded { threads_with_own_descriptors(pid) } else { Vec::new() };
    for tid in apart {
        let base = format!("{process}/task/{tid}");
        epolls.extend(table(&base, wanted, &mut found).unwrap_or_default());
    }
    found.holds.sort_unstable();
    found.holds.dedup();
    found.epoll = !epolls.is_empty();
    for fdinfo in epolls {
        registrations(&fdinfo, wanted, &mut found);
    }
    Some(found)
}

/// Reads one table into `found`; gives the fdinfo paths of its epoll descriptors. None without
/// permission.
fn table(base: &str, wanted: &Wanted<'_>, found: &mut Descriptors) -> Option<Vec<String>> {
    let directory = open(&format!("{base}/fd"))?;
    let (mut count, mut sockets) = (0, 0);
    let mut epolls = Vec::new();
    let mut buffer = Vec::with_capacity(64);
    for entry in Dir::read_from(&directory).ok()?.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().ok().and_then(|name| name.parse().ok()) else {
            continue;
        };
        count += 1;
        let Ok(link) = rustix::fs::readlinkat(&directory, name, std::mem::take(&mut buffer)) else {
            continue;
        };
        match link.as_bytes() {
            b"anon_inode:[eventpoll]" => epolls.push(format!("{base}/fdinfo/{number}")),
            b"anon_inode:[io_uring]" => found.uring = true,
            link => {
                if let Some(inode) = socket(link) {
                    sockets += 1;
                    if wanted.inodes.contains(&inode) {
                        found.holds.push((inode, number));
                    }
                }
            }
        }
        buffer = link.into_bytes();
        buffer.clear();
    }
    if count > found.count {
        (found.count, found.sockets) = (count, sockets);
    }
    Some(epolls)
}

fn open(path: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// The inode in `socket:[1234]`.
fn socket(link: &[u8]) -> Option<u64> {
    let inode = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(inode).ok()?.parse().ok()
}

/// Adds the registrations of one epoll instance. Its fdinfo is read line by line: a busy proxy has
/// tens of thousands of lines.
fn registrations(fdinfo: &str, wanted: &Wanted<'_>, found: &mut Descriptors) {
    let Ok(file) = File::open(fdinfo) else {
        return;
    };
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        let Some(one) = epoll::Registration::read(&line) else {
            continue;
        };
        let (inode, number) = (one.inode, one.number);
        if one.device == wanted.device && wanted.inodes.contains(&inode) {
            // If threads have tables of their own, one table with the descriptor is enough.
            let live = found.holds.contains(&(inode, number));
            let input = one.is_for_input();
            found.registrations.push(Registration { inode, number, input, live });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_told_by_its_link() {
        assert_eq!(socket(b"socket:[77]"), Some(77));
        assert_eq!(socket(b"pipe:[77]"), None);
    }
}
