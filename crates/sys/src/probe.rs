//! Puts one entry into an accept queue with a short-lived connection, or one datagram into the
//! receive queue of a QUIC socket.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use bindonce_core::address::Address;
use nix::errno::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::Error;
use crate::listen::named;
use crate::{diag, options};

/// A packet that QUIC drops without an answer: its version is one that no implementation has, and
/// it is too short for a version negotiation (RFC 9000, sections 6 and 14.1).
const NOTHING_FOR_QUIC: [u8; 7] = [0xc0, 0x0a, 0x1a, 0x2a, 0x3a, 0, 0];
/// The kernel may deliver a datagram after sendto(2) has returned.
const DELIVERY: Duration = Duration::from_millis(1);

/// A connection to a listener on this host, which is reset when this is dropped. The entry stays in
/// the accept queue until a process accepts it; that process gets a connection that has already
/// ended (tcp(7), unix(7)).
#[derive(Debug)]
pub struct Probe {
    socket: Socket,
    complete: bool,
    /// When the datagram was sent.
    sent: Option<Instant>,
}

impl Probe {
    /// Connects to `to`, the address of `listener`, a descriptor of the listener.
    ///
    /// On loopback the handshake is complete when connect(2) returns, so this does not wait. A
    /// listener with TCP_DEFER_ACCEPT keeps a connection that has sent nothing out of its queue, so
    /// the option is cleared for the time of this call. (Sending a byte would work too, but the
    /// process that accepts the probe would read it and perhaps pass it on.)
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` if the address does not belong to this host, so that a connection would go
    /// to another host; otherwise errors from socket(2) and connect(2). `Unsupported` for an
    /// address of `udp@`: a program might take the datagram for a client's.
    pub fn begin(to: &Address, listener: BorrowedFd<'_>) -> io::Result<Self> {
        let address = match to {
            Address::Tcp(address) | Address::Quic(address) if !is_local(*address) => {
                return Err(Errno::EADDRNOTAVAIL.into());
            }
            Address::Tcp(address) => SockAddr::from(*address),
            Address::Unix(path) => SockAddr::unix(path)?,
            Address::Abstract(_) | Address::Unpadded(_) => named(to)?,
            Address::Quic(address) => return Self::datagram(*address),
            Address::Udp(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        let socket = Socket::new(Domain::from(i32::from(address.family())), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let is_tcp = matches!(to, Address::Tcp(_));
        if is_tcp {
            // Closing sends a reset: nothing is left in TIME_WAIT.
            socket.set_linger(Some(Duration::ZERO))?;
        }
        let _lifted = is_tcp.then(|| Deferred::lift(listener));
        match socket.connect(&address) {
            Ok(()) => Ok(Self { socket, complete: true, sent: None }),
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {
                Ok(Self { socket, complete: false, sent: None })
            }
            Err(error) => Err(error),
        }
    }

    fn datagram(to: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        socket.send_to(&NOTHING_FOR_QUIC, &to.into())?;
        Ok(Self { socket, complete: false, sent: Some(Instant::now()) })
    }

    /// Whether the connection is established and so is, or was, in the queue. On a busy machine the
    /// kernel may need a moment; if a firewall drops the connection, this stays false. A datagram
    /// always gets such a moment.
    pub fn is_complete(&mut self) -> bool {
        if let Some(sent) = self.sent {
            return sent.elapsed() >= DELIVERY;
        }
        self.complete = self.complete || self.socket.peer_addr().is_ok();
        self.complete
    }
}

/// TCP_DEFER_ACCEPT of a listener, restored on drop.
struct Deferred<'a> {
    listener: BorrowedFd<'a>,
    seconds: i32,
}

impl<'a> Deferred<'a> {
    /// None if the listener does not have the option.
    fn lift(listener: BorrowedFd<'a>) -> Option<Self> {
        let seconds = options::defer_accept(listener);
        (seconds > 0).then(|| {
            options::set_defer_accept(listener, 0);
            Self { listener, seconds }
        })
    }
}

impl Drop for Deferred<'_> {
    fn drop(&mut self) {
        // The kernel stores a number of retransmissions and reports seconds: setting the reported
        // value restores the same number.
        options::set_defer_accept(self.listener, self.seconds);
    }
}

/// Whether a connection to `to` reaches the listener with this inode, and not another one that the
/// kernel prefers: a more specific address beside a wildcard, another listener with the same
/// address, another file at the path. Always true for kinds of addresses without such a choice.
///
/// # Errors
/// As [`diag::listening`].
pub fn comes_to(to: &Address, inode: u64) -> Result<bool, Error> {
    match to {
        Address::Tcp(at) | Address::Quic(at) => {
            let all = if to.listens() { diag::tcp()? } else { diag::udp()? };
            let Some(ours) = all.iter().find(|socket| socket.inode == inode) else {
                return Ok(false);
            };
            let others = all.iter().filter(|socket| socket.inode != inode);
            Ok(!others.into_iter().any(|other| preferred(*at, other, ours)))
        }
        Address::Unix(path) => diag::unix_is_at(inode, path.as_ref()),
        Address::Udp(_) | Address::Abstract(_) | Address::Unpadded(_) => Ok(true),
    }
}

/// Whether the kernel might give a connection to `to` to `other` rather than to `ours`.
fn preferred(to: SocketAddr, other: &diag::Socket, ours: &diag::Socket) -> bool {
    let (Some(theirs), Some(own)) = (other.address.ip(), ours.address.ip()) else {
        return false;
    };
    if theirs.port() != to.port() {
        return false;
    }
    let exact = |address: SocketAddr| address.ip().to_canonical() == to.ip().to_canonical();
    if exact(theirs) {
        return true;
    }
    // Another wildcard: IPv4 traffic matches both families and prefers its own.
    let same_family = theirs.is_ipv4() == to.is_ipv4();
    let takes = theirs.ip().is_unspecified() && (same_family || to.is_ipv4());
    let worse = exact(own) || (own.is_ipv4() == to.is_ipv4() && !same_family);
    takes && (!worse || other.interface.is_some())
}

/// Whether an address belongs to this host: the kernel uses it as the source address for itself.
fn is_local(address: SocketAddr) -> bool {
    if address.ip().is_loopback() {
        return true;
    }
    let from: SocketAddr = match address {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // connect(2) of a datagram socket only looks up the route: nothing is sent.
    let source = UdpSocket::bind(from).and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address.ip())
}

/// The IPv6 addresses of this network namespace, from /proc/net/if_inet6; empty without IPv6.
pub fn local_ipv6() -> Vec<SocketAddrV6> {
    let text = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let address = |line: &str| {
        let mut fields = line.split_whitespace();
        let ip = Ipv6Addr::from_bits(u128::from_str_radix(fields.next()?, 16).ok()?);
        let device = u32::from_str_radix(fields.next()?, 16).ok()?;
        let scope = if ip.is_unicast_link_local() { device } else { 0 };
        Some(SocketAddrV6::new(ip, 0, 0, scope))
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;
    use crate::queue::accept_queue;

    fn probe(address: &Address, listener: &TcpListener) {
        let mut probe = Probe::begin(address, listener.as_fd()).expect("connect");
        assert!(probe.is_complete());
    }

    #[test]
    fn the_entry_stays_until_it_is_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = Address::Tcp(listener.local_addr().expect("address"));
        for length in 1..4 {
            probe(&address, &listener);
            assert_eq!(accept_queue(listener.as_fd()).expect("queue").len, length);
        }
        listener.accept().expect("accept");
        assert_eq!(accept_queue(listener.as_fd()).expect("queue").len, 2);
    }

    #[test]
    fn the_addresses_of_this_network_are_found() {
        let found = local_ipv6();
        // Without IPv6 the list must be empty.
        let there = std::net::TcpListener::bind("[::1]:0").is_ok();
        assert_eq!(found.iter().any(|at| at.ip().is_loopback()), there, "{found:?}");
    }

    #[test]
    fn a_listener_that_defers_gets_the_entry_without_a_byte_and_defers_on() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = Address::Tcp(listener.local_addr().expect("address"));
        for seconds in [1, 3, 30, 100] {
            options::set_defer_accept(listener.as_fd(), seconds);
            let before = options::defer_accept(listener.as_fd());
            assert!(before > 0);
            probe(&address, &listener);
            assert_eq!(accept_queue(listener.as_fd()).expect("queue").len, 1);
            assert_eq!(options::defer_accept(listener.as_fd()), before);
            let (mut accepted, _) = listener.accept().expect("accept");
            assert!(accepted.read(&mut [0]).is_err(), "it was reset, and sent nothing");
        }
    }

    #[test]
    fn an_address_of_another_host_is_not_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let there = Address::Tcp(([192, 0, 2, 1], 80).into());
        let error = Probe::begin(&there, listener.as_fd()).expect_err("not of this host");
        assert_eq!(error.raw_os_error(), Some(Errno::EADDRNOTAVAIL as i32));
        for address in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1"] {
            assert!(is_local(address.parse().expect("address")), "{address}");
        }
    }

    #[test]
    fn the_listener_that_the_kernel_prefers_is_known() {
        let socket = |address: &str, interface: Option<&str>| diag::Socket {
            address: Address::Tcp(address.parse().expect("address")),
            inode: 0,
            cookie: 0,
            queue: crate::queue::Queue::default(),
            uid: None,
            interface: interface.map(str::to_owned),
            v6only: None,
            mptcp: false,
            drops: 0,
        };
        for (to, other, interface, ours, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", None, "0.0.0.0:80", true),
            ("127.0.0.2:80", "127.0.0.1:80", None, "0.0.0.0:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", None, "0.0.0.0:80", false),
            ("127.0.0.1:80", "0.0.0.0:80", None, "127.0.0.1:80", false),
            ("127.0.0.1:80", "0.0.0.0:80", Some("lo"), "127.0.0.1:80", true),
            ("127.0.0.1:80", "[::]:80", None, "0.0.0.0:80", false),
            ("127.0.0.1:80", "0.0.0.0:80", None, "[::]:80", true),
            ("[::1]:80", "0.0.0.0:80", None, "[::]:80", false),
            ("[::1]:80", "[::1]:80", None, "[::]:80", true),
            ("127.0.0.1:80", "127.0.0.1:80", None, "127.0.0.1:80", true),
        ] {
            let to = to.parse().expect("address");
            let (other, ours) = (socket(other, interface), socket(ours, None));
            assert_eq!(preferred(to, &other, &ours), expected, "{to} {other:?} {ours:?}");
        }
    }
}
