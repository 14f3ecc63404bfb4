//! The length of accept queues and receive buffers, as the kernel counts them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};

use crate::diag::LISTEN;
use crate::{diag, guard};

pub use crate::diag::Queue;

/// The approximate number of bytes sent on a UNIX socket and not yet read, including kernel
/// overhead (SIOCOUTQ, unix(7)). It is 0 only if everything was read.
///
/// # Errors
/// Errors from ioctl(2).
pub fn unread(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int to the given address.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    Errno::result(done)?;
    Ok(u64::try_from(bytes).unwrap_or_default())
}

/// The receive buffer of a datagram socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Buffer {
    /// Bytes in the buffer, including kernel overhead (`sk_rmem_alloc`). Only a process that reads
    /// makes it shrink. If a process reads several datagrams, the kernel updates the number late:
    /// at the last datagram, or at a quarter of the buffer (`udp_rmem_release`).
    pub len: u32,
    /// Size of the buffer in bytes (SO_RCVBUF).
    pub limit: u32,
    /// Datagrams dropped since the socket was created.
    pub drops: u32,
}

/// The receive buffer of a UDP socket (SO_MEMINFO).
///
/// # Errors
/// Errors from getsockopt(2).
pub fn receive_buffer(socket: BorrowedFd<'_>) -> io::Result<Buffer> {
    // SK_MEMINFO_RMEM_ALLOC, SK_MEMINFO_RCVBUF, six others, SK_MEMINFO_DROPS; the kernel fills as
    // many words as there is room for.
    let [len, limit, _, _, _, _, _, _, drops] = words(socket, libc::SOL_SOCKET, libc::SO_MEMINFO)?;
    Ok(Buffer { len, limit, drops })
}

/// The accept queue of a listening TCP or UNIX socket, read through any descriptor of the socket.
/// For TCP this is one cheap call: in the LISTEN state `tcpi_unacked` and `tcpi_sacked` of TCP_INFO
/// are the queue's length and limit (tcp_get_info in the kernel).
///
/// # Errors
/// `EINVAL` if the socket does not listen (any more); `EOPNOTSUPP` for UDP; `ENOENT` for a UNIX
/// socket of another network namespace.
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
    // The head of struct tcp_info: eight bytes, of which the first is the state, then 32-bit
    // counters; the queue is in the sixth and the seventh.
    let [states, _, _, _, _, _, len, limit] = words(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    match states.to_ne_bytes() {
        [LISTEN, ..] => Ok(Queue { len, limit }),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// The first `N` 32-bit words of an option's value (getsockopt(2)).
pub(crate) fn words<const N: usize>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
) -> io::Result<[u32; N]> {
    let mut words = [0_u32; N];
    let mut length = size_of_val(&words) as libc::socklen_t;
    // SAFETY: `words` is writable for `length` bytes, of which the kernel fills at most that many,
    // and any bit pattern is a u32.
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

/// Whether the socket listens. False for UDP, and for a listener that another holder has shut down
/// or disconnected. (SO_ACCEPTCONN alone stays set on a UNIX socket that was shut down.)
pub fn is_listening(socket: BorrowedFd<'_>) -> bool {
    socket_acceptconn(socket).unwrap_or(false) && !guard::is_shut_down(socket)
}
