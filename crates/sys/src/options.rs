//! Detects socket options that another holder has changed.
//!
//! Options belong to the socket, not to a descriptor: a change by one process applies to all that
//! share the socket, and to every connection accepted later. haproxy, for example, sets several at
//! each start from its own bind line. The options here are those with a known value in a socket
//! made by [`crate::listen`]: they do not follow a sysctl, and any other value was set by another
//! holder.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::{mem, ptr};

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use nix::libc::{self, c_int, c_void, socklen_t};
use rustix::fs::{OFlags, fcntl_getfl};

/// An option whose value is not the one that the socket was created with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Change {
    /// The name of the option, as in the manual pages.
    pub option: &'static str,
    /// The value that the socket was created with.
    pub was: i64,
    /// The current value.
    pub now: i64,
}

struct Known {
    name: &'static str,
    level: c_int,
    option: c_int,
    was: i64,
}

const fn known(name: &'static str, level: c_int, option: c_int, was: i64) -> Known {
    Known { name, level, option, was }
}

/// Options of every socket, with their value in a new one (socket(7)).
const ALL: [Known; 5] = [
    known("SO_KEEPALIVE", libc::SOL_SOCKET, libc::SO_KEEPALIVE, 0),
    known("SO_PRIORITY", libc::SOL_SOCKET, libc::SO_PRIORITY, 0),
    known("SO_MARK", libc::SOL_SOCKET, libc::SO_MARK, 0),
    known("SO_REUSEPORT", libc::SOL_SOCKET, libc::SO_REUSEPORT, 0),
    known("SO_RCVLOWAT", libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1),
];

/// The option of a socket for QUIC.
const QUIC: [Known; 1] = [known("SO_REUSEADDR", libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)];

/// Options of TCP, as tcp_init_sock in the kernel leaves them (tcp(7)).
const TCP: [Known; 7] = [
    known("SO_REUSEADDR", libc::SOL_SOCKET, libc::SO_REUSEADDR, 1),
    // TCP_MSS_DEFAULT of the kernel's tcp.h: no MSS was requested.
    known("TCP_MAXSEG", libc::IPPROTO_TCP, libc::TCP_MAXSEG, 536),
    known("TCP_NODELAY", libc::IPPROTO_TCP, libc::TCP_NODELAY, 0),
    known("TCP_SAVE_SYN", libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 0),
    known("TCP_USER_TIMEOUT", libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 0),
    known("TCP_DEFER_ACCEPT", libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 0),
    known("TCP_FASTOPEN", libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 0),
    // Not TCP_QUICKACK: haproxy clears it at each start, and it is a property of a connection
    // anyway.
];

/// The options of the socket of `listener` that differ from their initial value, in a fixed order.
/// About fifteen short system calls.
pub fn changed(socket: BorrowedFd<'_>, listener: &Listener) -> Vec<Change> {
    let address = &listener.address;
    let of_kind: &[Known] = match address {
        Address::Tcp(_) => &TCP,
        Address::Quic(_) => &QUIC,
        _ => &[],
    };
    let mut found = Vec::new();
    let mut note = |option, was, now: Option<i64>| {
        if let Some(now) = now.filter(|now| *now != was) {
            found.push(Change { option, was, now });
        }
    };
    for known in ALL.iter().chain(of_kind) {
        note(known.name, known.was, number(socket, known.level, known.option).map(i64::from));
    }
    note("SO_LINGER", -1, linger(socket));
    note("SO_ATTACH_FILTER", 0, filter(socket));
    let blocking = fcntl_getfl(socket).map(|flags| !flags.contains(OFlags::NONBLOCK));
    note(
        "O_NONBLOCK",
        i64::from(!listener.options.blocking),
        blocking.ok().map(|blocking| i64::from(!blocking)),
    );
    // A listener that asks for it, without the right to it, has only IP_FREEBIND.
    if let Some(at) = address.ip().filter(|_| !listener.options.transparent) {
        let (level, option) = if at.is_ipv6() {
            (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT)
        } else {
            (libc::IPPROTO_IP, libc::IP_TRANSPARENT)
        };
        note("IP_TRANSPARENT", 0, number(socket, level, option).map(i64::from));
    }
    if !address.listens() {
        // A connected UDP socket receives only from its peer.
        let connected = rustix::net::getpeername(socket).is_ok_and(|peer| peer.is_some());
        note("connect", 0, Some(i64::from(connected)));
    }
    found
}

/// Whether no other socket can bind `address` beside this one: SO_REUSEPORT is off, and for UDP
/// SO_REUSEADDR too.
pub fn is_exclusive(socket: BorrowedFd<'_>, address: &Address) -> bool {
    let is_off = |option| number(socket, libc::SOL_SOCKET, option).unwrap_or(0) == 0;
    is_off(libc::SO_REUSEPORT) && (address.listens() || is_off(libc::SO_REUSEADDR))
}

/// The cookie of a socket's network namespace (SO_NETNS_COOKIE), which is never reused; None before
/// Linux 5.14.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut value = 0_u64;
    let room = size_of_val(&value);
    let length =
        get(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, (&raw mut value).cast(), room)?;
    (length == room).then_some(value)
}

/// How long, in seconds, the kernel keeps a connection that has sent nothing out of the accept
/// queue; 0 if it does not (TCP_DEFER_ACCEPT, tcp(7)).
pub(crate) fn defer_accept(socket: BorrowedFd<'_>) -> c_int {
    number(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT).unwrap_or(0)
}

/// Sets TCP_DEFER_ACCEPT.
pub(crate) fn set_defer_accept(socket: BorrowedFd<'_>, seconds: c_int) {
    // Only a socket that is not TCP refuses the option, and then there is nothing to set.
    set(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, seconds);
}

/// The value of an option that is an int.
pub(crate) fn number(socket: BorrowedFd<'_>, level: c_int, option: c_int) -> Option<c_int> {
    let mut value: c_int = 0;
    let length = get(socket, level, option, (&raw mut value).cast(), size_of::<c_int>())?;
    (length == size_of::<c_int>()).then_some(value)
}

/// Sets an option that is an int. False if the kernel refuses.
pub(crate) fn set(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: c_int) -> bool {
    set_bytes(socket, level, option, &value.to_ne_bytes())
}

/// The bytes of an option's value, 32 at most: no option of a socket that only listens has more.
pub(crate) fn bytes(socket: BorrowedFd<'_>, level: c_int, option: c_int) -> Option<Vec<u8>> {
    let mut value = [0_u8; 32];
    let length = bytes_into(socket, level, option, &mut value)?;
    value.get(..length).map(<[u8]>::to_vec)
}

/// Writes an option's value to the beginning of `room`. Returns its length.
pub(crate) fn bytes_into(
    socket: BorrowedFd<'_>,
    level: c_int,
    option: c_int,
    room: &mut [u8],
) -> Option<usize> {
    get(socket, level, option, room.as_mut_ptr().cast(), room.len())
}

/// Sets an option to these bytes. False if the kernel refuses.
pub(crate) fn set_bytes(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: &[u8]) -> bool {
    let Ok(length) = socklen_t::try_from(value.len()) else { return false };
    // SAFETY: the kernel reads `length` bytes at `value`, which has that many and lives until the
    // call returns.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), length)
    };
    done == 0
}

/// The seconds of SO_LINGER; -1 if it is off.
fn linger(socket: BorrowedFd<'_>) -> Option<i64> {
    let mut value = libc::linger { l_onoff: 0, l_linger: 0 };
    get(socket, libc::SOL_SOCKET, libc::SO_LINGER, (&raw mut value).cast(), size_of_val(&value))?;
    Some(if value.l_onoff == 0 { -1 } else { i64::from(value.l_linger) })
}

/// Number of instructions in the classic packet filter of the socket; a filter can make the socket
/// deaf. Given no room for them, the kernel only returns the count (sk_get_filter).
fn filter(socket: BorrowedFd<'_>) -> Option<i64> {
    let length = get(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, ptr::null_mut(), 0)?;
    i64::try_from(length).ok()
}

/// getsockopt(2); returns the length that the kernel reports.
fn get(
    socket: BorrowedFd<'_>,
    level: c_int,
    option: c_int,
    value: *mut c_void,
    room: usize,
) -> Option<usize> {
    let mut length = socklen_t::try_from(room).ok()?;
    // SAFETY: `value` is writable for `length` bytes (all callers with room point it at a value of
    // that size, whose every bit pattern is valid; without room the kernel does not touch it), and
    // the kernel writes no more than that.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value, &raw mut length) };
    (result == 0).then_some(length as usize)
}

const _: () = assert!(mem::size_of::<c_int>() == 4, "socket options are 32 bits wide");

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use socket2::SockRef;

    use super::*;
    use crate::listen;
    use crate::testing::Directory;

    #[test]
    fn a_socket_as_we_make_it_has_nothing_changed() {
        let directory = Directory::new("options");
        let path = directory.path().join("a");
        for text in [
            "127.0.0.1:0",
            "[::1]:0",
            "127.0.0.1:0,freebind,backlog=7",
            "127.0.0.1:0,blocking",
            "udp@127.0.0.1:0,blocking",
            "udp@127.0.0.1:0",
            "quic4@127.0.0.1:0",
            &format!("unix@{},mode=0600,blocking", path.display()),
            "abns@bindonce-options-test",
        ] {
            let listener: Listener = text.parse().expect(text);
            let opened = listen::open(&listener).expect(text);
            assert_eq!(changed(opened.fd.as_fd(), &listener), [], "{text}");
            let exclusive = is_exclusive(opened.fd.as_fd(), &listener.address);
            assert_eq!(exclusive, listener.address.is_exclusive(), "{text}");
        }
    }

    #[test]
    fn what_a_consumer_sets_is_told() {
        let listener: Listener = "127.0.0.1:0".parse().expect("address");
        let opened = listen::open(&listener).expect("open");
        let socket = SockRef::from(&opened.fd);
        socket.set_linger(Some(Duration::from_secs(5))).expect("SO_LINGER");
        socket.set_tcp_user_timeout(Some(Duration::from_millis(900))).expect("TCP_USER_TIMEOUT");
        socket.set_tcp_nodelay(true).expect("TCP_NODELAY");
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        socket.set_nonblocking(false).expect("O_NONBLOCK");
        let changes = changed(opened.fd.as_fd(), &listener);
        let changes_seen: Vec<(&str, i64, i64)> =
            changes.iter().map(|change| (change.option, change.was, change.now)).collect();
        let expected = [
            ("SO_REUSEPORT", 0, 1),
            ("TCP_NODELAY", 0, 1),
            ("TCP_USER_TIMEOUT", 0, 900),
            ("SO_LINGER", -1, 5),
            ("O_NONBLOCK", 1, 0),
        ];
        assert_eq!(changes_seen, expected);
        assert!(!is_exclusive(opened.fd.as_fd(), &listener.address));
    }

    #[test]
    fn a_socket_that_takes_foreign_traffic_is_told() {
        for text in ["127.0.0.1:0", "[::1]:0"] {
            let listener: Listener = text.parse().expect("address");
            let opened = listen::open(&listener).expect("open");
            let socket = SockRef::from(&opened.fd);
            let is_v6 = listener.address.ip().is_some_and(|at| at.is_ipv6());
            let set = if is_v6 {
                socket.set_ip_transparent_v6(true)
            } else {
                socket.set_ip_transparent_v4(true)
            };
            if set.is_err() {
                return crate::testing::skip("it takes CAP_NET_RAW or CAP_NET_ADMIN");
            }
            let expected = Change { option: "IP_TRANSPARENT", was: 0, now: 1 };
            assert_eq!(changed(opened.fd.as_fd(), &listener), [expected], "{text}");
            let wanted: Listener = format!("{text},transparent").parse().expect("address");
            assert_eq!(changed(opened.fd.as_fd(), &wanted), [], "{text}");
        }
    }

    #[test]
    fn a_connected_udp_socket_is_told() {
        let listener: Listener = "udp@127.0.0.1:0".parse().expect("address");
        let opened = listen::open(&listener).expect("open");
        let peer: std::net::SocketAddr = "127.0.0.1:9".parse().expect("address");
        SockRef::from(&opened.fd).connect(&peer.into()).expect("connect");
        let changes = changed(opened.fd.as_fd(), &listener);
        assert_eq!(changes, [Change { option: "connect", was: 0, now: 1 }]);
    }
}
