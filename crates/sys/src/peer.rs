//! Who is at the other end of a UNIX socket.

use std::io;
use std::os::fd::BorrowedFd;

use bindonce_core::policy::Facts;
use nix::sys::socket::{getsockopt, sockopt};

/// The peer as the kernel saw it when it connected (SO_PEERCRED, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// Its process id, in our pid namespace; 0 if it has none there.
    pub pid: i32,
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
}

/// The credentials of the process that connected (or made the socket pair).
///
/// # Errors
/// Those of getsockopt(2), for something that is not a connected UNIX socket.
pub fn credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(Credentials { pid: peer.pid(), uid: peer.uid(), gid: peer.gid() })
}

/// What can be seen in /proc of a process that connected, beside its credentials; nothing of
/// one that has ended, or of another pid namespace (pid 0).
pub fn facts(pid: u32) -> Facts {
    if pid == 0 {
        return Facts::default();
    }
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let groups = read("status").and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:"))?;
        Some(line.split_ascii_whitespace().filter_map(|gid| gid.parse().ok()).collect())
    });
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    // cgroups(7): the line of the one hierarchy of version 2.
    let cgroup = read("cgroup")
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned)));
    Facts {
        groups: groups.unwrap_or_default(),
        exe: exe.and_then(|path| path.into_os_string().into_string().ok()),
        cgroup,
    }
}
