//! Options that a program has set on its own socket, copied to the one that it gets instead.

use std::os::fd::{AsFd as _, BorrowedFd};

use nix::libc::{self, c_int};
use rustix::net::sockopt as get;
use socket2::{Domain, SockRef, Socket, Type};

use crate::options::{number, set};

/// Options whose value is an int, and that a claim does not say. Not SO_REUSEADDR and SO_REUSEPORT: who may bind beside the
/// socket is for the broker.
const COPIED: [(&str, c_int, c_int); 14] = [
    ("SO_RCVBUF", libc::SOL_SOCKET, libc::SO_RCVBUF),
    ("SO_SNDBUF", libc::SOL_SOCKET, libc::SO_SNDBUF),
    ("SO_KEEPALIVE", libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    ("SO_PRIORITY", libc::SOL_SOCKET, libc::SO_PRIORITY),
    ("SO_MARK", libc::SOL_SOCKET, libc::SO_MARK),
    ("IP_TOS", libc::IPPROTO_IP, libc::IP_TOS),
    ("IPV6_TCLASS", libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    ("TCP_MAXSEG", libc::IPPROTO_TCP, libc::TCP_MAXSEG),
    ("TCP_NODELAY", libc::IPPROTO_TCP, libc::TCP_NODELAY),
    ("TCP_KEEPIDLE", libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    ("TCP_KEEPINTVL", libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    ("TCP_USER_TIMEOUT", libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    ("TCP_DEFER_ACCEPT", libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    ("TCP_FASTOPEN", libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
];

/// Sets on `to` what `from` has of its own: each option with another value than in a new socket of its kind. Gives the
/// names of those that could not be set.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Vec<&'static str> {
    let like = (|| {
        let family = c_int::from(get::socket_domain(from).ok()?.as_raw());
        let kind = SockRef::from(&from).r#type().ok()?;
        Socket::new(Domain::from(family), Type::from(c_int::from(kind)), None).ok()
    })();
    let Some(like) = like else { return Vec::new() };
    let new = SockRef::from(&like);
    let mut failed = Vec::new();
    for (name, level, option) in COPIED {
        let has = number(from, level, option);
        let is_own = has.is_some() && has != number(new.as_fd(), level, option);
        let Some(value) = has.filter(|_| is_own && has != number(to, level, option)) else {
            continue;
        };
        // The kernel doubles what it is told (socket(7)).
        let doubled =
            level == libc::SOL_SOCKET && [libc::SO_RCVBUF, libc::SO_SNDBUF].contains(&option);
        if !set(to, level, option, if doubled { value / 2 } else { value }) {
            failed.push(name);
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_has_set_is_copied_and_nothing_else() {
        let make = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        let (own, broker) = (make(), make());
        own.set_recv_buffer_size(20_000).expect("SO_RCVBUF");
        own.set_keepalive(true).expect("SO_KEEPALIVE");
        broker.set_tcp_nodelay(true).expect("TCP_NODELAY");
        assert_eq!(copy(own.as_fd(), broker.as_fd()), [""; 0]);
        let size = |socket: &Socket| socket.recv_buffer_size().expect("SO_RCVBUF");
        assert_eq!(size(&broker), size(&own));
        assert!(broker.keepalive().expect("it") && broker.tcp_nodelay().expect("it"));
    }
}
