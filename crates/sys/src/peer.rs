//! Identifies the process at the other end of a UNIX socket.
//!
//! The kernel bound these credentials to the connection when it was made (unix(7): SO_PEERCRED,
//! SO_PEERGROUPS). They do not change when the connecting process changes its user, passes the
//! connection on, or ends and its process id is reused.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::OnceLock;

use bindonce_core::policy::Peer;
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};

/// Most processes have fewer supplementary groups.
const GROUPS: usize = 64;

/// The peer's credentials when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Process id in our pid namespace; 0 if the peer has none there.
    pub pid: i32,
    /// Effective user id; [`Peer::UNKNOWN`] if it has no id in our user namespace.
    pub uid: u32,
    /// Effective group id, likewise.
    pub gid: u32,
    /// Supplementary groups, without those that have no id in our user namespace.
    pub groups: Vec<u32>,
}

/// The credentials of the process that connected (or created the socket pair).
///
/// # Errors
/// Errors from getsockopt(2), for anything that is not a connected UNIX socket.
pub fn credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
    let Overflow { uid, gid } = overflow();
    let known = |id: u32, overflow: Option<u32>| {
        if Some(id) == overflow { Peer::UNKNOWN } else { id }
    };
    let mut groups = groups(socket)?;
    groups.retain(|group| Some(*group) != gid);
    Ok(Credentials {
        pid: peer.pid(),
        uid: known(peer.uid(), uid),
        gid: known(peer.gid(), gid),
        groups,
    })
}

/// The supplementary groups of the process that connected.
fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; GROUPS];
    loop {
        let size = size_of_val(groups.as_slice());
        let mut length = libc::socklen_t::try_from(size).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the kernel writes at most `length` bytes into the vector, and the number of bytes
        // into `length`.
        let done = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<u32>();
        if done == 0 {
            groups.truncate(count);
            groups.shrink_to_fit();
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// The ids that the kernel shows for users and groups without an id in our user namespace; None if
/// every one has an id (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Overflow {
    uid: Option<u32>,
    gid: Option<u32>,
}

/// Looked up once: a process stays in its user namespace, whose map is written once.
fn overflow() -> Overflow {
    static KNOWN: OnceLock<Overflow> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let id = |map: &str, overflow: &str| {
            let number = read(overflow).trim().parse().unwrap_or(65534);
            (!is_whole(&read(map))).then_some(number)
        };
        Overflow {
            uid: id("/proc/self/uid_map", "/proc/sys/kernel/overflowuid"),
            gid: id("/proc/self/gid_map", "/proc/sys/kernel/overflowgid"),
        }
    })
}

/// Whether a map covers every id. Then the overflow id belongs to one user; otherwise it may stand
/// for any user.
fn is_whole(map: &str) -> bool {
    let words: Vec<&str> = map.split_ascii_whitespace().collect();
    words == ["0", "0", "4294967295"]
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_groups_of_a_peer_are_those_it_had_when_it_connected() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let peer = credentials(one.as_fd()).expect("credentials");
        assert_eq!(peer, credentials(other.as_fd()).expect("credentials"));
        assert_eq!(peer.pid, std::process::id().cast_signed());
        let own = nix::unistd::getgroups().expect("groups");
        let own: Vec<u32> = own.iter().map(|group| group.as_raw()).collect();
        assert_eq!(peer.groups, own);
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        // More groups than fit at first. Groups that the process gets later must not appear. Only
        // this thread is changed: the library's wrapper would change the whole process.
        let many: Vec<u32> = (1000..1200).collect();
        let set = |groups: &[u32]| {
            // SAFETY: the kernel reads that many groups.
            let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
            assert_eq!(done, 0, "{}", io::Error::last_os_error());
        };
        set(&many);
        let (one, _other) = UnixStream::pair().expect("a pair");
        set(&own);
        assert_eq!(credentials(one.as_fd()).expect("credentials").groups, many);
        let listening = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        credentials(listening.as_fd()).expect_err("it has no peer");
    }

    #[test]
    fn only_the_first_user_namespace_knows_everybody() {
        assert!(is_whole("         0          0 4294967295\n"));
        for map in ["", "0 1000 1\n", "0 100000 65536\n", "0 0 4294967294\n 4294967294 7 1\n"] {
            assert!(!is_whole(map), "{map}");
        }
    }
}
