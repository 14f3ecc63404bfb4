//! Copies the options that a program set on its own socket to the socket that replaces it.

use std::os::fd::{AsFd as _, BorrowedFd};

use nix::libc::{self, c_int};
use rustix::net::sockopt as get;
use socket2::{Domain, SockRef, Socket, Type};

use crate::options::{bytes, number, set, set_bytes};

/// Options that are not part of a claim, by level. Without SO_REUSEADDR and SO_REUSEPORT: the
/// broker decides who may bind beside the socket. Also without anything that cannot be read back:
/// packet filters, multicast memberships, keys.
const COPIED: [(c_int, &[(&str, c_int)]); 5] = [
    (
        libc::SOL_SOCKET,
        &[
            ("SO_BROADCAST", libc::SO_BROADCAST),
            ("SO_BUSY_POLL", libc::SO_BUSY_POLL),
            ("SO_DONTROUTE", libc::SO_DONTROUTE),
            ("SO_INCOMING_CPU", libc::SO_INCOMING_CPU),
            ("SO_KEEPALIVE", libc::SO_KEEPALIVE),
            ("SO_LINGER", libc::SO_LINGER),
            ("SO_MARK", libc::SO_MARK),
            ("SO_MAX_PACING_RATE", libc::SO_MAX_PACING_RATE),
            ("SO_OOBINLINE", libc::SO_OOBINLINE),
            ("SO_PASSCRED", libc::SO_PASSCRED),
            ("SO_PRIORITY", libc::SO_PRIORITY),
            ("SO_RCVLOWAT", libc::SO_RCVLOWAT),
            ("SO_RCVTIMEO", libc::SO_RCVTIMEO),
            ("SO_RXQ_OVFL", libc::SO_RXQ_OVFL),
            ("SO_SNDTIMEO", libc::SO_SNDTIMEO),
            ("SO_TIMESTAMP", libc::SO_TIMESTAMP),
            ("SO_TIMESTAMPNS", libc::SO_TIMESTAMPNS),
            ("SO_ZEROCOPY", libc::SO_ZEROCOPY),
        ],
    ),
    (
        libc::IPPROTO_IP,
        &[
            ("IP_MINTTL", libc::IP_MINTTL),
            ("IP_MTU_DISCOVER", libc::IP_MTU_DISCOVER),
            ("IP_MULTICAST_LOOP", libc::IP_MULTICAST_LOOP),
            ("IP_MULTICAST_TTL", libc::IP_MULTICAST_TTL),
            ("IP_PKTINFO", libc::IP_PKTINFO),
            ("IP_RECVERR", libc::IP_RECVERR),
            ("IP_RECVORIGDSTADDR", libc::IP_RECVORIGDSTADDR),
            ("IP_RECVTOS", libc::IP_RECVTOS),
            ("IP_RECVTTL", libc::IP_RECVTTL),
            ("IP_TOS", libc::IP_TOS),
            ("IP_TTL", libc::IP_TTL),
        ],
    ),
    (
        libc::IPPROTO_IPV6,
        &[
            ("IPV6_MTU_DISCOVER", libc::IPV6_MTU_DISCOVER),
            ("IPV6_MULTICAST_HOPS", libc::IPV6_MULTICAST_HOPS),
            ("IPV6_MULTICAST_LOOP", libc::IPV6_MULTICAST_LOOP),
            ("IPV6_RECVERR", libc::IPV6_RECVERR),
            ("IPV6_RECVHOPLIMIT", libc::IPV6_RECVHOPLIMIT),
            ("IPV6_RECVORIGDSTADDR", libc::IPV6_RECVORIGDSTADDR),
            ("IPV6_RECVPKTINFO", libc::IPV6_RECVPKTINFO),
            ("IPV6_RECVTCLASS", libc::IPV6_RECVTCLASS),
            ("IPV6_TCLASS", libc::IPV6_TCLASS),
            ("IPV6_UNICAST_HOPS", libc::IPV6_UNICAST_HOPS),
        ],
    ),
    (
        libc::IPPROTO_TCP,
        &[
            ("TCP_CONGESTION", libc::TCP_CONGESTION),
            ("TCP_CORK", libc::TCP_CORK),
            ("TCP_DEFER_ACCEPT", libc::TCP_DEFER_ACCEPT),
            ("TCP_FASTOPEN", libc::TCP_FASTOPEN),
            ("TCP_KEEPCNT", libc::TCP_KEEPCNT),
            ("TCP_KEEPIDLE", libc::TCP_KEEPIDLE),
            ("TCP_KEEPINTVL", libc::TCP_KEEPINTVL),
            ("TCP_LINGER2", libc::TCP_LINGER2),
            ("TCP_MAXSEG", libc::TCP_MAXSEG),
            ("TCP_NODELAY", libc::TCP_NODELAY),
            ("TCP_NOTSENT_LOWAT", libc::TCP_NOTSENT_LOWAT),
            ("TCP_SAVE_SYN", libc::TCP_SAVE_SYN),
            ("TCP_SYNCNT", libc::TCP_SYNCNT),
            ("TCP_THIN_LINEAR_TIMEOUTS", libc::TCP_THIN_LINEAR_TIMEOUTS),
            ("TCP_USER_TIMEOUT", libc::TCP_USER_TIMEOUT),
            ("TCP_WINDOW_CLAMP", libc::TCP_WINDOW_CLAMP),
        ],
    ),
    (libc::IPPROTO_UDP, &[("UDP_GRO", libc::UDP_GRO), ("UDP_SEGMENT", libc::UDP_SEGMENT)]),
];

/// Options whose value the kernel doubles when it is set (socket(7)).
const DOUBLED: [(&str, c_int); 2] =
    [("SO_RCVBUF", libc::SO_RCVBUF), ("SO_SNDBUF", libc::SO_SNDBUF)];

/// Copies to `to` each option of `from` that differs from a new socket of its kind. Returns the
/// names of options that could not be set.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Vec<&'static str> {
    let like = (|| {
        let family = c_int::from(get::socket_domain(from).ok()?.as_raw());
        let kind = SockRef::from(&from).r#type().ok()?;
        Socket::new(Domain::from(family), Type::from(c_int::from(kind)), None).ok()
    })();
    let Some(like) = like else { return Vec::new() };
    let new = like.as_fd();
    let mut failed = Vec::new();
    for (level, options) in COPIED {
        for (name, option) in options {
            let has = bytes(from, level, *option);
            let is_own = has.is_some() && has != bytes(new, level, *option);
            let value = has
                .filter(|_| is_own)
                .filter(|has| bytes(to, level, *option).as_ref() != Some(has));
            if value.is_some_and(|value| !set_bytes(to, level, *option, &value)) {
                failed.push(*name);
            }
        }
    }
    for (name, option) in DOUBLED {
        let size = |socket| number(socket, libc::SOL_SOCKET, option);
        let own = size(from).filter(|own| Some(*own) != size(new) && Some(*own) != size(to));
        if own.is_some_and(|own| !set(to, libc::SOL_SOCKET, option, own / 2)) {
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
        let linger = Some(std::time::Duration::from_secs(5));
        own.set_linger(linger).expect("SO_LINGER");
        assert!(set_bytes(own.as_fd(), libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"reno"));
        broker.set_tcp_nodelay(true).expect("TCP_NODELAY");
        assert_eq!(copy(own.as_fd(), broker.as_fd()), [""; 0]);
        let size = |socket: &Socket| socket.recv_buffer_size().expect("SO_RCVBUF");
        assert_eq!(size(&broker), size(&own));
        assert_eq!(broker.linger().expect("it"), linger);
        let congestion = bytes(broker.as_fd(), libc::IPPROTO_TCP, libc::TCP_CONGESTION);
        assert!(congestion.expect("it").starts_with(b"reno"));
        assert!(broker.keepalive().expect("it") && broker.tcp_nodelay().expect("it"));
    }
}
