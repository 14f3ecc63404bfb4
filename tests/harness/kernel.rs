//! The kernel's state, read with its own tools and not with ours.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{eventually, finish};

/// One listening TCP socket as `ss` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listening {
    /// Local address as `ss` prints it.
    pub(crate) address: String,
    /// Inode of the socket.
    pub(crate) inode: u64,
    /// Connections in its accept queue.
    pub(crate) waiting: u32,
    /// The accept queue's limit.
    pub(crate) limit: u32,
}

/// The listening TCP sockets on this port, in the network of the calling thread.
pub(crate) fn listening(address: SocketAddr) -> Vec<Listening> {
    let filter = format!("sport = :{}", address.port());
    let shown = finish(Command::new("ss").args(["-Hltne", &filter])).ok();
    let line = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let inode = fields.iter().find_map(|field| field.strip_prefix("ino:"));
        Listening {
            address: fields[3].to_owned(),
            inode: inode.and_then(|inode| inode.parse().ok()).unwrap_or_else(|| panic!("{line}")),
            waiting: fields[1].parse().unwrap_or_else(|_| panic!("{line}")),
            limit: fields[2].parse().unwrap_or_else(|_| panic!("{line}")),
        }
    };
    shown.lines().map(line).collect()
}

/// The open files of a process, sorted, without the numbers that distinguish sockets.
pub(crate) fn open_files(pid: u32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let names = links.filter_map(|link| fs::read_link(link.path()).ok());
    let number = |c: char| c.is_ascii_digit() || "[]".contains(c);
    let mut names: Vec<_> =
        names.map(|name| name.to_string_lossy().trim_end_matches(number).to_owned()).collect();
    names.sort();
    names
}

/// Waits until a stopped process has this signal pending: sent, but not handled yet.
pub(crate) fn wait_pending(pid: Pid, signal: Signal) {
    eventually(&format!("{signal} to be sent to pid {pid}"), || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:\t"))?;
        let pending = u64::from_str_radix(pending, 16).ok()?;
        (pending & 1 << (signal as i32 - 1) != 0).then_some(())
    });
}
