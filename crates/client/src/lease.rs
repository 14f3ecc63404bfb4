//! Leases: an owned descriptor of a listener, and what the listener is.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use bindonce_core::name::Name;
use bindonce_wire::result::Bound;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::acceptor::Acceptor;
use crate::claim::Give;
use crate::error::Error;

/// A claimed listener, with a descriptor of its socket, which is close-on-exec. Dropping the lease
/// closes only this descriptor.
///
/// The conversions check the socket: its family, its type, and that it listens. None of them
/// changes the socket, so a std listener is non-blocking: see [`Acceptor`]. A failed conversion
/// closes the descriptor.
#[derive(Debug)]
pub struct Lease {
    bound: Bound,
    fd: OwnedFd,
}

impl Lease {
    pub(crate) fn new(bound: Bound, fd: OwnedFd) -> Self {
        Self { bound, fd }
    }

    /// The listener's name; its address if it was never named.
    pub fn name(&self) -> &str {
        &self.bound.name
    }

    /// The claimed address, in its canonical form.
    pub fn address(&self) -> &str {
        &self.bound.address
    }

    /// The address of the socket. It differs from [`address`](Self::address) in the port if the
    /// claim left the port to the system (port 0).
    pub fn bound(&self) -> &str {
        &self.bound.bound
    }

    /// Whether this claim created the listener; if not, it existed before.
    pub fn created(&self) -> bool {
        self.bound.created
    }

    /// The inode number of the socket, the same in every process that holds the socket, and in
    /// `ss -e`.
    pub fn inode(&self) -> u64 {
        self.bound.inode
    }

    /// This listener, to give back to the next broker after one was killed
    /// ([`Client::reconnect`](crate::Client::reconnect)). Once the lease has been converted into a
    /// listener, use [`Give::new`] with the listener's descriptor and the claim instead. A
    /// [`Generation`](crate::Generation) does all that itself.
    pub fn give(&self) -> Give<'_> {
        Give::new(self.listen(), self.fd.as_fd())
    }

    /// The claim in text form.
    pub(crate) fn listen(&self) -> String {
        let Bound { name, address, .. } = &self.bound;
        // The label of a listener without a name is its claim.
        match name.parse::<Name>() {
            Ok(name) => format!("{name}={address}"),
            Err(_) => name.clone(),
        }
    }

    /// Converts the lease into its descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// As a TCP listener. Its `accept` may return `WouldBlock`;
    /// [`into_tcp_acceptor`](Self::into_tcp_acceptor) waits.
    ///
    /// # Errors
    /// [`Error::Kind`] if the socket is of another kind.
    pub fn into_tcp_listener(self) -> Result<TcpListener, Error> {
        self.check("a listening TCP socket").map(|lease| TcpListener::from(lease.fd))
    }

    /// As a TCP listener whose `accept` waits.
    ///
    /// # Errors
    /// [`Error::Kind`] if the socket is of another kind; [`Error::Descriptor`] if it is blocking.
    pub fn into_tcp_acceptor(self) -> Result<Acceptor<TcpListener>, Error> {
        self.check_nonblocking()?.into_tcp_listener().map(Acceptor::new)
    }

    /// As a UDP socket. Its `recv` may return `WouldBlock`; [`wait_readable`](crate::wait_readable)
    /// waits.
    ///
    /// # Errors
    /// [`Error::Kind`] if the socket is of another kind.
    pub fn into_udp_socket(self) -> Result<UdpSocket, Error> {
        self.check("a UDP socket").map(|lease| UdpSocket::from(lease.fd))
    }

    /// As a UNIX stream listener. Its `accept` may return `WouldBlock`;
    /// [`into_unix_acceptor`](Self::into_unix_acceptor) waits.
    ///
    /// # Errors
    /// [`Error::Kind`] if the socket is of another kind.
    pub fn into_unix_listener(self) -> Result<UnixListener, Error> {
        self.check("a listening UNIX socket").map(|lease| UnixListener::from(lease.fd))
    }

    /// As a UNIX stream listener whose `accept` waits.
    ///
    /// # Errors
    /// As [`into_tcp_acceptor`](Self::into_tcp_acceptor).
    pub fn into_unix_acceptor(self) -> Result<Acceptor<UnixListener>, Error> {
        self.check_nonblocking()?.into_unix_listener().map(Acceptor::new)
    }

    /// As tokio's TCP listener. Call it inside a runtime.
    ///
    /// # Errors
    /// [`Error::Kind`] if the socket is of another kind; [`Error::Descriptor`] if the runtime
    /// refuses it, or if it is blocking.
    #[cfg(feature = "tokio")]
    pub fn into_tokio_tcp_listener(self) -> Result<tokio::net::TcpListener, Error> {
        let lease = self.check("a listening TCP socket")?.check_nonblocking()?;
        let Self { bound, fd } = lease;
        tokio::net::TcpListener::from_std(fd.into()).map_err(|source| unusable(&bound, source))
    }

    /// As a TCP listener for tokio that survives errors of accept(2). Call it inside a runtime.
    ///
    /// # Errors
    /// As [`into_tokio_tcp_listener`](Self::into_tokio_tcp_listener).
    #[cfg(feature = "tokio")]
    pub fn into_tokio_tcp_acceptor(self) -> Result<Acceptor<tokio::net::TcpListener>, Error> {
        self.into_tokio_tcp_listener().map(Acceptor::new)
    }

    /// As tokio's UNIX listener. Call it inside a runtime.
    ///
    /// # Errors
    /// As [`into_tokio_tcp_listener`](Self::into_tokio_tcp_listener).
    #[cfg(feature = "tokio")]
    pub fn into_tokio_unix_listener(self) -> Result<tokio::net::UnixListener, Error> {
        let lease = self.check("a listening UNIX socket")?.check_nonblocking()?;
        let Self { bound, fd } = lease;
        tokio::net::UnixListener::from_std(fd.into()).map_err(|source| unusable(&bound, source))
    }

    /// As a UNIX listener for tokio that survives errors of accept(2). Call it inside a runtime.
    ///
    /// # Errors
    /// As [`into_tokio_tcp_listener`](Self::into_tokio_tcp_listener).
    #[cfg(feature = "tokio")]
    pub fn into_tokio_unix_acceptor(self) -> Result<Acceptor<tokio::net::UnixListener>, Error> {
        self.into_tokio_unix_listener().map(Acceptor::new)
    }

    /// As tokio's UDP socket. Call it inside a runtime.
    ///
    /// # Errors
    /// As [`into_tokio_tcp_listener`](Self::into_tokio_tcp_listener).
    #[cfg(feature = "tokio")]
    pub fn into_tokio_udp_socket(self) -> Result<tokio::net::UdpSocket, Error> {
        let lease = self.check("a UDP socket")?.check_nonblocking()?;
        let Self { bound, fd } = lease;
        tokio::net::UdpSocket::from_std(fd.into()).map_err(|source| unusable(&bound, source))
    }

    /// On a blocking socket accept(2) hangs when another process has taken the connection, whatever
    /// the deadline, the stop or the runtime. This crate must not change a shared flag.
    fn check_nonblocking(self) -> Result<Self, Error> {
        match rustix::fs::fcntl_getfl(&self.fd) {
            Ok(flags) if flags.contains(rustix::fs::OFlags::NONBLOCK) => Ok(self),
            Ok(_) => {
                let why = "the socket is blocking: by its claim, by a systemd unit that lacks \
                           NonBlocking=yes, or by another process that shares it";
                Err(unusable(&self.bound, io::Error::other(why)))
            }
            Err(source) => Err(unusable(&self.bound, source.into())),
        }
    }

    fn check(self, wanted: &'static str) -> Result<Self, Error> {
        let found = kind(&self.fd).map_err(|source| unusable(&self.bound, source))?;
        if found == wanted {
            return Ok(self);
        }
        let Bound { name, address, .. } = self.bound;
        Err(Error::Kind { name, address, wanted, found })
    }
}

/// The only lease; an error if there are more.
pub(crate) fn only(mut leases: Vec<Lease>) -> Result<Lease, Error> {
    match (leases.len(), leases.pop()) {
        (1, Some(lease)) => Ok(lease),
        (count, _) => Err(Error::NotOne { count }),
    }
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn unusable(bound: &Bound, source: io::Error) -> Error {
    Error::Descriptor { name: bound.name.clone(), address: bound.address.clone(), source }
}

/// The kind of a descriptor, as far as the conversions distinguish kinds.
fn kind(fd: &OwnedFd) -> io::Result<&'static str> {
    let kind = match socket_type(fd) {
        Err(rustix::io::Errno::NOTSOCK) => return Ok("no socket"),
        kind => kind?,
    };
    let domain = socket_domain(fd)?;
    let internet = matches!(domain, AddressFamily::INET | AddressFamily::INET6);
    Ok(match kind {
        SocketType::STREAM if !socket_acceptconn(fd)? => "a stream socket that does not listen",
        SocketType::STREAM if internet => "a listening TCP socket",
        SocketType::STREAM if domain == AddressFamily::UNIX => "a listening UNIX socket",
        SocketType::DGRAM if internet => "a UDP socket",
        _ => "a socket of another kind",
    })
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    use super::*;

    fn lease(socket: impl Into<OwnedFd>) -> Lease {
        let text = || "web".to_owned();
        let bound = Bound { name: text(), address: text(), bound: text(), created: true, inode: 1 };
        Lease::new(bound, socket.into())
    }

    #[test]
    fn an_acceptor_gets_no_blocking_socket() {
        let tcp = || TcpListener::bind("127.0.0.1:0").expect("bind");
        let error = lease(tcp()).into_tcp_acceptor().expect_err("it blocks");
        assert!(matches!(error, Error::Descriptor { .. }), "{error:?}");
        let name = format!("bindonce-lease-{}", std::process::id());
        let name = SocketAddr::from_abstract_name(name).expect("a name");
        let unix = UnixListener::bind_addr(&name).expect("bind");
        let error = lease(unix).into_unix_acceptor().expect_err("it blocks");
        assert!(matches!(error, Error::Descriptor { .. }), "{error:?}");
        // A program that waits in accept(2) itself gets one.
        lease(tcp()).into_tcp_listener().expect("a listener");
        let tcp = tcp();
        tcp.set_nonblocking(true).expect("not shared");
        lease(tcp).into_tcp_acceptor().expect("it does not block");
    }
}
