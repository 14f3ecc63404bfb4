//! Opens a socket beside other sockets of this process that it overlaps: `127.0.0.1:80` beside
//! `*:80`, or `*:80` beside `[::]:80`. The kernel then gives each connection to the more specific
//! one.
//!
//! The kernel refuses a second TCP listener that overlaps a first, unless both have SO_REUSEPORT
//! during bind and listen. So they have it for that time, some microseconds, and never longer: with
//! it every process of the same user could join them. Removing the option is not enough: the kernel
//! notes with the port (`inet_bind_bucket.fastreuseport`, in net/ipv4/inet_connection_sock.c) that
//! it was bound with SO_REUSEPORT, by which user and at which address, and admits the next such
//! socket without checking the existing ones. So a last socket is bound at the port and closed at
//! once: it leaves a note that admits nobody. Finally a test bind checks whether another process
//! could join. (UDP has no such note.)

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{Accounts, Opened, netns, open_here};
use crate::error::{Error, errno_of};
use crate::guard::{self, Health};

/// Addresses where nothing listens: the first is for documentation (RFC 5737), the second is the
/// discard prefix (RFC 6666).
const NOWHERE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const NOWHERE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1));

/// As [`super::open`], beside sockets of this process that it overlaps. With `hide` a TCP socket
/// gets no new connections yet; they go to the others. `Opened::hidden` says whether the socket
/// could be [hidden](crate::hidden).
///
/// # Errors
/// As [`super::open`]; [`Error::NotExclusive`] if others could join. If only privileges are
/// missing, nothing has been touched.
pub fn open_beside(
    listener: &Listener,
    others: &[BorrowedFd<'_>],
    hide: bool,
) -> Result<Opened, Error> {
    let open = || {
        let not_exclusive = || Error::NotExclusive { address: listener.address.clone() };
        let seal = Seal::of(&listener.address).ok_or_else(not_exclusive)?;
        let shared = Shared::among(others)
            .map_err(Error::listen("setsockopt(SO_REUSEPORT)", &listener.address))?;
        // Only a UNIX path has an owner, and it overlaps nothing.
        let opened = open_here(listener, &Accounts::default(), true, hide)?;
        let sealed = seal.put();
        let alone = SockRef::from(&opened.fd).set_reuse_port(false);
        drop(shared);
        let all = others.iter().copied().chain([opened.fd.as_fd()]);
        if sealed && alone.is_ok() && all.into_iter().all(is_closed_to_others) {
            return Ok(opened);
        }
        Err(not_exclusive())
    };
    match &listener.options.netns {
        None => open(),
        Some(name) => netns::within(name, open)?,
    }
}

/// As [`guard::repair`], beside sockets of this process that overlap `listener`, as it was bound.
/// Also returns whether no other process can join them; the socket listens in any case, since
/// clients are being refused.
///
/// # Errors
/// Errors from [`guard::repair`].
pub fn repair_beside(
    socket: BorrowedFd<'_>,
    listener: &Listener,
    backlog: u32,
    others: &[BorrowedFd<'_>],
) -> io::Result<(Health, bool)> {
    let bound = &listener.address;
    if others.is_empty() || rustix::net::sockopt::socket_acceptconn(socket)? {
        return Ok((guard::repair(socket, bound, backlog)?, true));
    }
    let repair = || {
        let seal = Seal::of(bound);
        let health = {
            let _others = Shared::among(others)?;
            let _socket = Shared::among(&[socket])?;
            let health = guard::repair(socket, bound, backlog)?;
            // Whether the seal worked is checked below.
            let _ = seal.map(Seal::put);
            health
        };
        let closed = others.iter().copied().chain([socket]).all(is_closed_to_others);
        Ok((health, closed))
    };
    match &listener.options.netns {
        None => repair(),
        Some(name) => netns::within(name, repair).map_err(io::Error::other)?,
    }
}

/// Sets SO_REUSEPORT on sockets while this value lives, except on those that already have it.
struct Shared<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Shared<'a> {
    fn among(sockets: &[BorrowedFd<'a>]) -> io::Result<Self> {
        let mut shared = Self(Vec::with_capacity(sockets.len()));
        for socket in sockets {
            let options = SockRef::from(socket);
            if !options.reuse_port()? {
                options.set_reuse_port(true)?;
                shared.0.push(*socket);
            }
        }
        Ok(shared)
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        for socket in &self.0 {
            // An option that could be set can be cleared; the final check verifies it.
            let _ = SockRef::from(socket).set_reuse_port(false);
        }
    }
}

/// How to leave the last note with the port of a TCP socket.
enum Seal {
    /// UDP has no note.
    Nothing,
    /// A socket in repair mode conflicts with no other socket; without SO_REUSEPORT it clears the
    /// note.
    Forced(Socket, SocketAddr),
    /// A socket with SO_REUSEPORT at an address that the old note does not cover: the new note is
    /// for that address alone, where nothing listens.
    Aside(Vec<(Socket, SocketAddr)>),
}

impl Seal {
    /// The seal for a socket at `address`; None if there is no way. Binds nothing yet.
    fn of(address: &Address) -> Option<Self> {
        let Address::Tcp(at) = address else { return Some(Self::Nothing) };
        let v6 = SocketAddr::new(NOWHERE_V6, at.port());
        let v4 = SocketAddr::new(NOWHERE_V4, at.port());
        // Needs CAP_NET_ADMIN.
        if let Ok(socket) = nowhere(v4)
            && setsockopt(&socket, sockopt::TcpRepair, &1).is_ok()
        {
            return Some(Self::Forced(socket, v4));
        }
        let ip = at.ip().to_canonical();
        let order = match ip {
            // The note of a wildcard for both families covers every address.
            IpAddr::V6(ip) if ip.is_unspecified() => return None,
            IpAddr::V6(_) => [v4, v6],
            IpAddr::V4(_) => [v6, v4],
        };
        let usable = if ip.is_unspecified() { 1 } else { 2 };
        let sockets: Vec<_> = order[..usable]
            .iter()
            .filter_map(|at| {
                let socket = nowhere(*at).ok()?;
                socket.set_reuse_port(true).ok()?;
                Some((socket, *at))
            })
            .collect();
        (!sockets.is_empty()).then_some(Self::Aside(sockets))
    }

    /// Leaves the note; returns whether that worked.
    fn put(self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Forced(socket, at) => socket.bind(&at.into()).is_ok(),
            Self::Aside(sockets) => {
                sockets.iter().any(|(socket, at)| socket.bind(&(*at).into()).is_ok())
            }
        }
    }
}

/// A TCP socket that may be bound to an address that this host does not have.
fn nowhere(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new_raw(Domain::for_address(at), Type::STREAM.cloexec(), None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    Ok(socket)
}

/// Whether the kernel refuses another process of the same user that tries to join this socket,
/// tested by a bind.
fn is_closed_to_others(socket: BorrowedFd<'_>) -> bool {
    let attempt = || -> io::Result<bool> {
        let held = SockRef::from(&socket);
        if held.reuse_port()? {
            // Another holder set the option before: the socket was never exclusively ours.
            return Ok(true);
        }
        let address = held.local_addr()?;
        let (domain, kind) = (held.domain()?, held.r#type()?);
        let stranger = Socket::new_raw(domain, kind.cloexec(), None::<Protocol>)?;
        stranger.set_reuse_port(true)?;
        if kind == Type::STREAM {
            stranger.set_reuse_address(true)?;
        }
        if domain == Domain::IPV6 {
            stranger.set_only_v6(held.only_v6()?)?;
            stranger.set_freebind_v6(true)?;
        } else {
            stranger.set_freebind_v4(true)?;
        }
        match stranger.bind(&address) {
            Err(error) if errno_of(&error) == Errno::EADDRINUSE => Ok(true),
            _ => Ok(false),
        }
    };
    attempt().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use bindonce_core::listener::Options;

    use super::*;
    use crate::listen::open;

    fn free_port() -> u16 {
        let any = TcpListener::bind("[::]:0").expect("a port");
        any.local_addr().expect("its address").port()
    }

    fn listener(text: &str, port: u16) -> Listener {
        text.replace("PORT", &port.to_string()).parse().expect(text)
    }

    /// Every way in which a process of this user can bind the port, and where it succeeds.
    fn strangers(kind: Type, port: u16) -> Vec<String> {
        let mut in_there = Vec::new();
        for ip in ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1"] {
            for (port_shared, address_shared) in [(true, true), (true, false), (false, true)] {
                let at = SocketAddr::new(ip.parse().expect(ip), port);
                let socket = Socket::new(Domain::for_address(at), kind, None).expect("socket");
                socket.set_reuse_port(port_shared).expect("SO_REUSEPORT");
                socket.set_reuse_address(address_shared).expect("SO_REUSEADDR");
                if socket.bind(&at.into()).is_ok()
                    && (kind == Type::DGRAM || socket.listen(1).is_ok())
                {
                    in_there.push(format!("{ip} {port_shared} {address_shared}"));
                }
            }
        }
        in_there
    }

    /// Pairs in the order in which they are opened; together they cover both families.
    const PAIRS: [(&str, &str, &str); 6] = [
        ("[::]:PORT", "0.0.0.0:PORT", "127.0.0.1"),
        ("[::]:PORT", "127.0.0.1:PORT", "127.0.0.1"),
        ("[::]:PORT", "[::1]:PORT", "::1"),
        ("0.0.0.0:PORT", "[::]:PORT", "127.0.0.1"),
        ("127.0.0.1:PORT", "[::]:PORT", "127.0.0.1"),
        ("[::1]:PORT", "[::]:PORT", "::1"),
    ];

    #[test]
    fn two_that_overlap_stand_side_by_side_and_nobody_joins_them() {
        for (first, second, to) in PAIRS {
            let port = free_port();
            let (first, second) = (listener(first, port), listener(second, port));
            let one = open(&first).expect("the first");
            assert!(open(&second).is_err(), "{second} needs the other's help");
            let two = match open_beside(&second, &[one.fd.as_fd()], false) {
                Ok(two) => two,
                // Without CAP_NET_ADMIN the wildcard of both families cannot be opened last.
                Err(Error::NotExclusive { .. }) if second.key().is_dual() => {
                    let ip = first.address.ip().expect("IP").ip().to_string() + " ";
                    let joined = |at: &String| at.starts_with(&ip);
                    assert!(!strangers(Type::STREAM, port).iter().any(joined), "{first}");
                    continue;
                }
                Err(error) => panic!("{second} beside {first}: {error}"),
            };
            assert_eq!(strangers(Type::STREAM, port), [""; 0], "{first} and {second}");
            // The more specific socket gets the connection.
            let specific = if second.key().is_dual() { &one } else { &two };
            let client = TcpStream::connect((to, port)).expect("connect");
            let accepting = SockRef::from(&specific.fd);
            let (_, peer) = accepting.accept().expect("it is in this queue");
            let peer = peer.as_socket().expect("IP").port();
            assert_eq!(peer, client.local_addr().expect("address").port());
        }
    }

    #[test]
    fn a_wildcard_beside_those_of_one_family() {
        let port = free_port();
        let texts = ["127.0.0.1:PORT", "127.0.0.2:PORT", "0.0.0.0:PORT", "127.0.0.3:PORT"];
        let mut opened: Vec<Opened> = Vec::new();
        for text in texts {
            let others: Vec<_> = opened.iter().map(|one| one.fd.as_fd()).collect();
            opened.push(open_beside(&listener(text, port), &others, false).expect(text));
        }
        let v6 = open(&listener("[::]:PORT,v6only", port)).expect("it overlaps none");
        let others: Vec<_> = opened.iter().chain([&v6]).map(|one| one.fd.as_fd()).collect();
        let last =
            open_beside(&listener("127.0.0.4:PORT", port), &others, true).expect("beside all");
        assert_eq!(strangers(Type::STREAM, port), [""; 0]);
        drop(last);
    }

    #[test]
    fn datagrams_go_to_the_specific_one_too() {
        for (first, second) in
            [("udp@:PORT", "udp@127.0.0.1:PORT"), ("udp@127.0.0.1:PORT", "udp@[::]:PORT")]
        {
            let port = free_port();
            let one = open(&listener(first, port)).expect("the first");
            let two =
                open_beside(&listener(second, port), &[one.fd.as_fd()], false).expect("the second");
            let here = |text: &str| text.contains("127.0.0.1");
            assert!(strangers(Type::DGRAM, port).iter().all(|at| at.starts_with("::")));
            let specific = if here(first) { one } else { two };
            let client = UdpSocket::bind("127.0.0.1:0").expect("client");
            client.send_to(b"here", ("127.0.0.1", port)).expect("send");
            let mut buffer = [0; 8];
            let socket = UdpSocket::from(specific.fd);
            assert_eq!(socket.recv(&mut buffer).expect("it is in this buffer"), 4);
        }
    }

    #[test]
    fn a_listener_that_was_disconnected_listens_again_beside_the_other() {
        let port = free_port();
        let wildcard = open(&listener("0.0.0.0:PORT", port)).expect("wildcard");
        let others = [wildcard.fd.as_fd()];
        let specific =
            open_beside(&listener("127.0.0.1:PORT", port), &others, false).expect("specific");
        for (one, other) in [(&specific, &wildcard), (&wildcard, &specific)] {
            rustix::net::connect_unspec(&one.fd).expect("disconnect");
            assert!(guard::repair(one.fd.as_fd(), &one.bound, 5).is_err());
            let place =
                Listener { name: None, address: one.bound.clone(), options: Options::default() };
            let repaired = repair_beside(one.fd.as_fd(), &place, 5, &[other.fd.as_fd()]);
            assert_eq!(repaired.expect("repair"), (Health::Repaired, true));
            assert!(strangers(Type::STREAM, port).iter().all(|at| at.starts_with("::")));
        }
    }
}
