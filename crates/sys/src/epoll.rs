//! The epoll registrations of a process, as the kernel shows them (proc_pid_fdinfo(5)).
//!
//! A registration refers to the open file, not to the descriptor, so it can outlive the descriptor.
//! [`crate::ghosts`] deletes such a registration.

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

use rustix::fs::AtFlags;

use crate::holders::{self, Table};

/// An epoll registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// The number that the descriptor had when it was registered.
    pub number: i32,
    /// The registered events (epoll_ctl(2)).
    pub events: u32,
    /// The data that the process gets with an event (epoll_event(3type)).
    pub data: u64,
    /// The inode of the registered file.
    pub inode: u64,
    /// The device of the file in the kernel's encoding; see [`socket_device`].
    pub device: u32,
}

impl Registration {
    /// EPOLLIN: for a listener, new connections.
    const INPUT: u32 = 1;

    /// Parses a line `tfd: 5 events: 19 data: 5 pos:0 ino:1b2c sdev:8` of an epoll instance's
    /// fdinfo; None for any other line.
    pub fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("tfd:")?.split_ascii_whitespace();
        let number = words.next()?.parse().ok()?;
        words.next().filter(|word| *word == "events:")?;
        let events = u32::from_str_radix(words.next()?, 16).ok()?;
        words.next().filter(|word| *word == "data:")?;
        let data = u64::from_str_radix(words.next()?, 16).ok()?;
        let inode = words.find_map(|word| word.strip_prefix("ino:"))?;
        let inode = u64::from_str_radix(inode, 16).ok()?;
        let device = words.find_map(|word| word.strip_prefix("sdev:"))?;
        let device = u32::from_str_radix(device, 16).ok()?;
        Some(Self { number, events, data, inode, device })
    }

    /// Whether the registration waits for input.
    pub fn is_for_input(&self) -> bool {
        self.events & Self::INPUT != 0
    }
}

/// The registrations of each readable epoll instance in a table, with the instance's descriptor.
pub(crate) fn registrations(table: &Table) -> impl Iterator<Item = (RawFd, Vec<Registration>)> {
    let epolls = table.numbers.iter().copied().filter(|fd| table.is_epoll(*fd));
    epolls.filter_map(|fd| {
        let info = table.info(fd)?;
        Some((fd, info.lines().filter_map(Registration::read).collect()))
    })
}

/// The sockets among these on which a process waits for input. None if the process has no epoll
/// instance, or if its /proc entries may not be read.
pub fn waited_for(pid: i32, inodes: &[u64]) -> Option<BTreeSet<u64>> {
    let device = socket_device()?;
    let mut found: Option<BTreeSet<u64>> = None;
    for table in holders::tables(pid) {
        for (_, all) in registrations(&table) {
            let wanted = all.iter().filter(|one| {
                one.device == device && one.is_for_input() && inodes.contains(&one.inode)
            });
            found.get_or_insert_default().extend(wanted.map(|one| one.inode));
        }
    }
    found
}

/// The device of the kernel's socket file system, read from any socket. Files of other kinds may
/// have the same inode numbers.
pub fn socket_device() -> Option<u32> {
    let (one, _other) = UnixStream::pair().ok()?;
    let about = rustix::fs::statat(&one, "", AtFlags::EMPTY_PATH).ok()?;
    // The kernel's own encoding (MKDEV) has 20 bits for the minor number.
    Some(rustix::fs::major(about.st_dev) << 20 | rustix::fs::minor(about.st_dev))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_lines_and_nothing_else() {
        let line = "tfd:        5 events:     2019 data:               a5  pos:0 ino:1b2c sdev:8";
        let read = Registration::read(line).expect("a registration");
        let expected =
            Registration { number: 5, events: 0x2019, data: 0xa5, inode: 0x1b2c, device: 8 };
        assert_eq!(read, expected);
        assert!(read.is_for_input());
        for other in
            ["pos:\t0", "flags:\t02", "tfd:", "tfd: x ino:1", "tfd: 5 events: 19 ino:1", "tfd: 5"]
        {
            assert_eq!(Registration::read(other), None, "{other}");
        }
    }
}
