//! Remembers the options of a shared socket, and puts back those that another holder has changed.
//!
//! A starting haproxy sets these on each socket that it inherits: to what its own configuration
//! asks for, or to a default. They hold at once for the generation that serves on the socket, so
//! they must go again if the start fails.

use std::os::fd::BorrowedFd;

use bindonce_core::address::Address;
use nix::libc::{self, c_int};

use crate::options::{bytes_into, number, set, set_bytes};

/// The name of an option, its level and number, and the length of its value.
type Known = (&'static str, c_int, c_int, usize);

const MSS: Known = ("TCP_MAXSEG", libc::IPPROTO_TCP, libc::TCP_MAXSEG, 4);

/// The MSS that the kernel shows while none is requested (TCP_MSS_DEFAULT of its tcp.h).
const NO_MSS: c_int = 536;

/// The options of TCP that haproxy's `tcp_bind_listener` sets (its src/proto_tcp.c). Without the
/// keys of `tcp-md5sig`, which getsockopt(2) does not show.
const TCP: [Known; 8] = [
    MSS,
    ("SO_LINGER", libc::SOL_SOCKET, libc::SO_LINGER, 8),
    ("TCP_CONGESTION", libc::IPPROTO_TCP, libc::TCP_CONGESTION, 16),
    ("TCP_DEFER_ACCEPT", libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 4),
    ("TCP_FASTOPEN", libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 4),
    ("TCP_QUICKACK", libc::IPPROTO_TCP, libc::TCP_QUICKACK, 4),
    ("TCP_SAVE_SYN", libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 4),
    ("TCP_USER_TIMEOUT", libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 4),
];

/// The same for UDP and QUIC (`udp_bind_listener`, `quic_bind_listener`).
const DATAGRAMS: [Known; 2] = [
    ("SO_RCVBUF", libc::SOL_SOCKET, libc::SO_RCVBUF, 4),
    ("SO_SNDBUF", libc::SOL_SOCKET, libc::SO_SNDBUF, 4),
];

/// A value, with zeroes behind it.
type Value = [u8; 16];

/// The options of one socket, as they were.
#[derive(Debug)]
pub struct Remembered {
    options: &'static [Known],
    /// None for an option that the kernel does not have.
    values: Box<[Option<Value>]>,
}

impl Remembered {
    /// The present options of the socket of a listener with this address. For TCP these are eight
    /// short system calls; a starting haproxy makes more on each socket.
    pub fn of(socket: BorrowedFd<'_>, address: &Address) -> Self {
        let options: &'static [Known] = match address {
            Address::Tcp(_) => &TCP,
            Address::Udp(_) | Address::Quic(_) => &DATAGRAMS,
            _ => &[],
        };
        Self { options, values: options.iter().map(|known| value(socket, known)).collect() }
    }

    /// Puts back the options that have another value by now. Returns their names, each with whether
    /// the kernel has taken the value.
    pub fn put_back(&self, socket: BorrowedFd<'_>) -> Vec<(&'static str, bool)> {
        let mut changed = Vec::new();
        for (known, was) in self.options.iter().zip(self.values.iter()) {
            if let Some(was) = was
                && value(socket, known).is_some_and(|now| now != *was)
            {
                changed.push((known.0, restore(socket, known, was)));
            }
        }
        changed
    }

    /// Removes a limit of 536 bytes on every segment, if another MSS was requested before. When its
    /// line asks for none any more, haproxy sets the value that a new socket shows, and so requests
    /// that one. (A line that asks for just this value after another one is taken for none.)
    pub fn lift_mss(&self, socket: BorrowedFd<'_>) {
        let mut values = self.options.iter().zip(self.values.iter());
        let was = values.find_map(|(known, was)| was.as_ref().filter(|_| *known == MSS));
        let (_, level, option, _) = MSS;
        if was.is_some_and(|was| int(was) != NO_MSS)
            && number(socket, level, option) == Some(NO_MSS)
        {
            set(socket, level, option, 0);
        }
    }
}

fn value(socket: BorrowedFd<'_>, &(_, level, option, length): &Known) -> Option<Value> {
    let mut value = Value::default();
    let found = bytes_into(socket, level, option, value.get_mut(..length)?)?;
    (found == length).then_some(value)
}

fn restore(socket: BorrowedFd<'_>, &(_, level, option, length): &Known, was: &Value) -> bool {
    match (level, option) {
        // The kernel doubles what is set (socket(7)).
        (libc::SOL_SOCKET, libc::SO_RCVBUF | libc::SO_SNDBUF) => {
            set(socket, level, option, int(was) / 2)
        }
        // The value that is shown would be a request.
        (libc::IPPROTO_TCP, libc::TCP_MAXSEG) if int(was) == NO_MSS => {
            set(socket, level, option, 0)
        }
        _ => set_bytes(socket, level, option, &was[..length]),
    }
}

fn int(value: &Value) -> c_int {
    let [a, b, c, d, ..] = *value;
    c_int::from_ne_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use socket2::SockRef;

    use super::*;
    use crate::listen;
    use crate::options::set_defer_accept;

    #[test]
    fn what_another_holder_has_changed_is_put_back_and_nothing_else() {
        let opened = listen::open(&"127.0.0.1:0".parse().expect("address")).expect("open");
        let (fd, socket) = (opened.fd.as_fd(), SockRef::from(&opened.fd));
        socket.set_tcp_user_timeout(Some(Duration::from_millis(900))).expect("TCP_USER_TIMEOUT");
        set_defer_accept(fd, 3);
        let before = Remembered::of(fd, &opened.bound);
        assert_eq!(before.put_back(fd), []);
        socket.set_tcp_mss(1400).expect("TCP_MAXSEG");
        socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        socket.set_tcp_user_timeout(None).expect("TCP_USER_TIMEOUT");
        set_defer_accept(fd, 0);
        assert!(set(fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 7));
        assert!(set(fd, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0));
        let changed = [
            "TCP_MAXSEG",
            "SO_LINGER",
            "TCP_DEFER_ACCEPT",
            "TCP_FASTOPEN",
            "TCP_QUICKACK",
            "TCP_USER_TIMEOUT",
        ];
        assert_eq!(before.put_back(fd), changed.map(|name| (name, true)));
        assert_eq!(before.put_back(fd), []);
        assert_eq!(socket.linger().expect("SO_LINGER"), None);
    }

    #[test]
    fn buffers_of_a_socket_for_datagrams_are_put_back() {
        let opened = listen::open(&"quic4@127.0.0.1:0".parse().expect("address")).expect("open");
        let (fd, socket) = (opened.fd.as_fd(), SockRef::from(&opened.fd));
        let was = socket.recv_buffer_size().expect("SO_RCVBUF");
        let before = Remembered::of(fd, &opened.bound);
        socket.set_recv_buffer_size(20_000).expect("SO_RCVBUF");
        assert_eq!(before.put_back(fd), [("SO_RCVBUF", true)]);
        assert_eq!(socket.recv_buffer_size().expect("SO_RCVBUF"), was);
    }

    #[test]
    fn no_limit_on_segments_is_left_where_none_is_requested() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let (fd, socket) = (listener.as_fd(), SockRef::from(&listener));
        let at = listener.local_addr().expect("address");
        let remember = || Remembered::of(fd, &Address::Tcp(at));
        let request = |mss| socket.set_tcp_mss(mss).expect("TCP_MAXSEG");
        let is_limited = || {
            let client = TcpStream::connect(at).expect("connect");
            SockRef::from(&client).tcp_mss().expect("TCP_MAXSEG") <= 700
        };
        assert!(!is_limited());
        let before = remember();
        request(700);
        assert!(is_limited());
        before.put_back(fd);
        assert!(!is_limited());
        // What haproxy does when `mss 700` has gone from its line.
        request(700);
        let before = remember();
        request(536);
        assert!(is_limited());
        before.lift_mss(fd);
        assert!(!is_limited());
        // A limit that both lines ask for stays.
        request(700);
        remember().lift_mss(fd);
        assert!(is_limited());
    }
}
