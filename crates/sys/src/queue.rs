//! How many connections wait to be accepted, and how much waits to be read, as the kernel counts them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};

use crate::diag::LISTEN;
use crate::{diag, guard};

pub use crate::diag::Queue;

/// About how much was sent on a UNIX socket and is not read yet, in bytes, with what the kernel needs besides
/// (SIOCOUTQ, unix(7)): 0 only if everything was read.
///
/// # Errors
/// Those of ioctl(2).
pub fn unread(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int to where it is told.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    Errno::result(done)?;
    Ok(u64::try_from(bytes).unwrap_or_default())
}

/// The receive buffer of a datagram socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Buffer {
    /// What lies in it, in bytes with what the kernel needs besides (`sk_rmem_alloc`). It shrinks only where a process reads. The kernel
    /// notes what a process takes out of several datagrams late, at the last one of them or at a quarter of the buffer
    /// (`udp_rmem_release`).
    pub len: u32,
    /// Its size (SO_RCVBUF).
    pub limit: u32,
    /// Datagrams that were dropped since the socket exists.
    pub drops: u32,
}

/// The receive buffer of a UDP socket (SO_MEMINFO).
///
/// # Errors
/// Those of getsockopt(2).
pub fn receive_buffer(socket: BorrowedFd<'_>) -> io::Result<Buffer> {
    // SK_MEMINFO_RMEM_ALLOC, SK_MEMINFO_RCVBUF, six others, SK_MEMINFO_DROPS; a kernel gives as many as there is room for.
    let [len, limit, _, _, _, _, _, _, drops] = words(socket, libc::SOL_SOCKET, libc::SO_MEMINFO)?;
    Ok(Buffer { len, limit, drops })
}

/// The accept queue of a listening TCP or UNIX socket. For TCP a single cheap
/// call: TCP_INFO, whose `tcpi_unacked` and `tcpi_sacked` are, in the LISTEN state,
/// the queue's length and limit (tcp_get_info in the kernel). Any descriptor of
/// the socket will do.
///
/// # Errors
/// `EINVAL` if the socket does not listen (any more); `EOPNOTSUPP` for UDP; `ENOENT`
/// for a UNIX socket of another network namespace.
pub fn accept_queue(socket: BorrowedFd<'_>) -> io::Result<Queue> {
    if socket_domain(socket)? == AddressFamily::UNIX {
        if !is_listening(socket) {
            return Err(Errno::EINVAL.into());
        }
        let inode = rustix::fs::fstat(socket)?.st_ino;
        return diag::unix_queue(inode).map_err(|error| {
            error.errno().map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
        });
    }
    tcp_queue(socket)
}

fn tcp_queue(socket: BorrowedFd<'_>) -> io::Result<Queue> {
    // The head of struct tcp_info: eight bytes, of which the first is the
    // state, then 32-bit counters; the sixth and the seventh are ours.
    let [states, _, _, _, _, _, len, limit] = words(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    match states.to_ne_bytes() {
        [LISTEN, ..] => Ok(Queue { len, limit }),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// A value of getsockopt(2) that the kernel gives as 32-bit numbers: as many of its first as are asked for.
pub(crate) fn words<const N: usize>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
) -> io::Result<[u32; N]> {
    let mut words = [0_u32; N];
    let mut length = size_of_val(&words) as libc::socklen_t;
    // SAFETY: `words` is writable for `length` bytes, of which the kernel fills at most that many, and any bit pattern is a u32.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            words.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(words)
}

/// Whether the socket listens. False for UDP, and for a listener that
/// another holder has shut down or disconnected. (Of a UNIX socket that was
/// shut down SO_ACCEPTCONN alone would say that it listens.)
pub fn is_listening(socket: BorrowedFd<'_>) -> bool {
    socket_acceptconn(socket).unwrap_or(false) && !guard::is_shut_down(socket)
}
