//! The descriptor tables of a process, read with as little as possible.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::libc;
use rustix::fs::{AtFlags, Dir, Mode, OFlags};

use super::numbered;
use super::processes::Registration;

/// What the descriptors of a process are.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    /// How many there are.
    pub(super) count: usize,
    /// How many of them are sockets.
    pub(super) sockets: usize,
    /// Inode and number of each that is one of the sockets asked for.
    pub(super) holds: Vec<(u64, i32)>,
    /// Registrations of the sockets asked for, in its epoll instances.
    pub(super) registrations: Vec<Registration>,
    /// Whether it has an epoll instance, or an io_uring.
    pub(super) epoll: bool,
    pub(super) uring: bool,
}

/// Reads the descriptors of a process; None if it may not be read.
pub(super) fn read(
    pid: i32,
    threaded: bool,
    wanted: &HashSet<u64>,
    sockfs: u32,
) -> Option<Descriptors> {
    let process = format!("/proc/{pid}");
    let mut found = Descriptors::default();
    let mut epolls = table(&process, wanted, &mut found)?;
    let apart = if threaded { threads_apart(pid) } else { Vec::new() };
    for tid in apart {
        let base = format!("{process}/task/{tid}");
        epolls.extend(table(&base, wanted, &mut found).unwrap_or_default());
    }
    found.holds.sort_unstable();
    found.holds.dedup();
    for (base, number) in epolls {
        registrations(&base, number, wanted, sockfs, &mut found);
    }
    Some(found)
}

/// The inodes of all sockets of a process; none if it may not be read.
pub fn sockets(pid: i32) -> Vec<u64> {
    let base = format!("/proc/{pid}/fd");
    let numbers = numbered(Path::new(&base)).unwrap_or_default();
    let links = numbers
        .iter()
        .filter_map(|number| rustix::fs::readlink(format!("{base}/{number}"), Vec::new()).ok());
    links.filter_map(|link| socket(link.as_bytes())).collect()
}

/// Threads whose descriptor table is not the main thread's (unshare(2) with
/// CLONE_FILES, as thread groups of haproxy 3.5 have them).
fn threads_apart(pid: i32) -> Vec<i32> {
    let threads = numbered(Path::new(&format!("/proc/{pid}/task"))).unwrap_or_default();
    threads.into_iter().filter(|tid| *tid != pid && !shares_descriptors(pid, *tid)).collect()
}

/// Whether two threads use one descriptor table (kcmp(2)). True where the kernel
/// does not say, because nearly all do.
fn shares_descriptors(one: i32, other: i32) -> bool {
    const KCMP_FILES: libc::c_long = 2;
    // SAFETY: kcmp takes five integers and reads no memory of ours.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) };
    order <= 0
}

/// Reads one table into `found`; gives its epoll descriptors. None if it may not be read.
fn table(base: &str, wanted: &HashSet<u64>, found: &mut Descriptors) -> Option<Vec<(String, i32)>> {
    let directory = open(&format!("{base}/fd"))?;
    let mut epolls = Vec::new();
    let mut buffer = Vec::with_capacity(64);
    for entry in Dir::read_from(&directory).ok()?.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().ok().and_then(|name| name.parse().ok()) else {
            continue;
        };
        found.count += 1;
        let Ok(link) = rustix::fs::readlinkat(&directory, name, std::mem::take(&mut buffer)) else {
            continue;
        };
        match link.as_bytes() {
            b"anon_inode:[eventpoll]" => epolls.push((base.to_owned(), number)),
            b"anon_inode:[io_uring]" => found.uring = true,
            link => {
                if let Some(inode) = socket(link) {
                    found.sockets += 1;
                    if wanted.contains(&inode) {
                        found.holds.push((inode, number));
                    }
                }
            }
        }
        buffer = link.into_bytes();
        buffer.clear();
    }
    found.epoll |= !epolls.is_empty();
    Some(epolls)
}

fn open(path: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// The inode in `socket:[1234]`.
pub(super) fn socket(link: &[u8]) -> Option<u64> {
    let inode = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(inode).ok()?.parse().ok()
}

/// Adds the registrations of one epoll instance. Its fdinfo is read line by line:
/// a busy proxy has tens of thousands.
fn registrations(
    base: &str,
    epoll: i32,
    wanted: &HashSet<u64>,
    sockfs: u32,
    found: &mut Descriptors,
) {
    let Ok(file) = std::fs::File::open(format!("{base}/fdinfo/{epoll}")) else {
        return;
    };
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        let Some((number, events, inode, device)) = registration(&line) else {
            continue;
        };
        // Other kinds of files have inodes of their own, which may be the same numbers.
        if device == sockfs && wanted.contains(&inode) {
            // Where threads have tables of their own it is alive if any of them has it.
            let live = found.holds.contains(&(inode, number));
            found.registrations.push(Registration { inode, number, events, live });
        }
    }
}

/// Number, events, inode and device of a line
/// `tfd: 5 events: 19 data: 5 pos:0 ino:1b2c sdev:8` (proc_pid_fdinfo(5)).
fn registration(line: &str) -> Option<(i32, u32, u64, u32)> {
    let mut words = line.strip_prefix("tfd:")?.split_ascii_whitespace();
    let number = words.next()?.parse().ok()?;
    words.next().filter(|word| *word == "events:")?;
    let events = u32::from_str_radix(words.next()?, 16).ok()?;
    let inode = words.find_map(|word| word.strip_prefix("ino:"))?;
    let inode = u64::from_str_radix(inode, 16).ok()?;
    let device = words.find_map(|word| word.strip_prefix("sdev:"))?;
    Some((number, events, inode, u32::from_str_radix(device, 16).ok()?))
}

/// The device of the kernel's socket file system, as fdinfo shows it, from any socket.
pub(super) fn socket_device() -> Option<u32> {
    let (one, _other) = std::os::unix::net::UnixStream::pair().ok()?;
    let about = rustix::fs::statat(&one, "", AtFlags::EMPTY_PATH).ok()?;
    // The kernel's own encoding (MKDEV) has 20 bits for the minor number.
    Some(rustix::fs::major(about.st_dev) << 20 | rustix::fs::minor(about.st_dev))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_lines_and_nothing_else() {
        let line = "tfd:        5 events:     2019 data:                5  pos:0 ino:1b2c sdev:8";
        assert_eq!(registration(line), Some((5, 0x2019, 0x1b2c, 8)));
        for other in ["pos:\t0", "tfd:", "tfd: x ino:1", "tfd: 5 events: 19 ino:1", "tfd: 5"] {
            assert_eq!(registration(other), None, "{other}");
        }
        assert_eq!(socket(b"socket:[77]"), Some(77));
        assert_eq!(socket(b"pipe:[77]"), None);
    }
}
