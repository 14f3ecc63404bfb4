//! `transparent`: a socket can be bound to an address that the host does not have, and receives
//! traffic that is diverted to it. The latter needs CAP_NET_RAW or CAP_NET_ADMIN. Without both
//! capabilities the socket gets IP_FREEBIND, which gives only the former, as in haproxy itself
//! (sock_inet4_make_foreign() in its src/sock_inet.c).

use std::io;
use std::os::fd::BorrowedFd;

use bindonce_core::address::Address;
use nix::errno::Errno;
use socket2::SockRef;

use crate::error::errno_of;

/// The result of [`set`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Foreign {
    Transparent,
    /// IP_FREEBIND alone: the process may not set IP_TRANSPARENT.
    Free,
}

/// Makes a socket of IPv6 or IPv4 transparent, as far as permitted.
pub(super) fn set(socket: &SockRef<'_>, is_v6: bool) -> io::Result<Foreign> {
    match set_transparent(socket, is_v6, true) {
        Ok(()) => Ok(Foreign::Transparent),
        Err(error) if matches!(errno_of(&error), Errno::EPERM | Errno::EACCES) => {
            // If IP_FREEBIND fails too, report the missing right to IP_TRANSPARENT.
            set_freebind(socket, is_v6, true).map(|()| Foreign::Free).map_err(|_| error)
        }
        Err(error) => Err(error),
    }
}

pub(super) fn set_transparent(socket: &SockRef<'_>, is_v6: bool, on: bool) -> io::Result<()> {
    if is_v6 { socket.set_ip_transparent_v6(on) } else { socket.set_ip_transparent_v4(on) }
}

pub(super) fn set_freebind(socket: &SockRef<'_>, is_v6: bool, on: bool) -> io::Result<()> {
    if is_v6 { socket.set_freebind_v6(on) } else { socket.set_freebind_v4(on) }
}

/// Whether a socket at this address receives diverted traffic (IP_TRANSPARENT).
///
/// # Errors
/// Errors from getsockopt(2).
pub fn is_transparent(socket: BorrowedFd<'_>, address: &Address) -> io::Result<bool> {
    let socket = SockRef::from(&socket);
    if is_v6(address) { socket.ip_transparent_v6() } else { socket.ip_transparent_v4() }
}

pub(super) fn is_v6(address: &Address) -> bool {
    address.ip().is_some_and(|at| at.is_ipv6())
}
