//! Who is at the other end of a UNIX socket.

use std::io;
use std::os::fd::BorrowedFd;

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
