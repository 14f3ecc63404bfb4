//! Creates the one kernel socket of a listener.
//!
//! Every socket is close-on-exec, exclusive, and non-blocking unless the listener says otherwise.
//! TCP sockets get SO_REUSEADDR, so that connections in TIME_WAIT do not block a restart. UDP
//! sockets do not: for UDP the option would let others share the port. A QUIC socket gets
//! SO_REUSEADDR after bind: it joins no other socket, and its users (like any other process) can
//! bind a socket for each connection beside it. No socket keeps SO_REUSEPORT (overlapping sockets
//! have it only during bind, see `beside`): a process that tries to bind an address held here fails
//! with EADDRINUSE, which is the point of the product. IPV6_V6ONLY is always set explicitly, so the
//! system's default has no effect.

mod accounts;
mod astray;
mod beside;
mod change;
mod confined;
mod netns;
mod node;
mod transparent;
mod unix;

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use bindonce_core::address::Address;
use bindonce_core::listener::{Listener, Options};
use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::diag;
use crate::error::{Error, errno_of};
use crate::hidden::Hiding;

pub use accounts::Accounts;
pub use astray::{Astray, astray, can_go_astray, device_of_holder, without_interface};
pub use beside::{open_beside, repair_beside};
pub use change::{Before, change};
pub use netns::{name_of as name_of_netns, within as within_netns, within_path as within_netns_at};
pub use node::{FileOwner, UnixPath, restore, unlink_if_ours};
pub use transparent::is_transparent;
pub(crate) use unix::named;

/// The kernel clamps a backlog to the somaxconn of the socket's network namespace (listen(2)), so
/// the largest value means somaxconn.
const BACKLOG_SOMAXCONN: i32 = i32::MAX;

/// A listener that was just created.
#[derive(Debug)]
pub struct Opened {
    /// The socket.
    pub fd: OwnedFd,
    /// The bound address: as requested, with the real port if port 0 was requested.
    pub bound: Address,
    /// The socket's inode, as in /proc/PID/fd and `ss -e`.
    pub inode: u64,
    /// The socket's cookie (SO_COOKIE), which is never used twice.
    pub cookie: u64,
    /// The file of a UNIX path; pass it to [`unlink_if_ours`].
    pub path: Option<UnixPath>,
    /// Whether the socket gets no new connections until it is [shown](crate::hidden::show).
    pub hidden: bool,
}

/// Creates and binds the socket, and (except for UDP) listens. It is created in the namespace of
/// `options.netns`; the calling thread stays in its own, and waits for as long as a name service
/// takes to look up the names of `user=` and `group=`.
///
/// # Errors
/// On failure nothing stays bound and no file stays behind. The error names the call, the address
/// and the kernel's answer.
pub fn open(listener: &Listener) -> Result<Opened, Error> {
    open_with(listener, &Accounts::of(&listener.options))
}

/// As [`open`], for a thread that must not wait for a name service: `accounts` has the numbers of
/// the names of `user=` and `group=`.
///
/// # Errors
/// As [`open`].
pub fn open_with(listener: &Listener, accounts: &Accounts) -> Result<Opened, Error> {
    match &listener.options.netns {
        None => open_here(listener, accounts, false, false),
        Some(name) => within_netns(name, || open_here(listener, accounts, false, false))?,
    }
}

/// Opens a UNIX listener at `path` with this file mode.
///
/// # Errors
/// As [`open`]; [`Error::Path`] if the path is not valid for a socket.
pub fn open_path(path: &Path, mode: u32) -> Result<Opened, Error> {
    open(&of_path(path, mode)?)
}

/// As [`open_path`], for a path that clients may try before the listener exists. The file appears
/// only once the socket listens, so no client is refused by a socket that is bound but does not
/// listen yet. A dead socket at the path is replaced in one step. The socket's own name, as `ss`
/// shows it, differs from the path: it is the path with `.new` appended, or a path in /proc if that
/// is too long. The caller must hold a lock: no other process creates this path.
///
/// # Errors
/// As [`open_path`].
pub fn open_control(path: &Path, mode: u32) -> Result<Opened, Error> {
    let listener = of_path(path, mode)?;
    let fail = |operation| Error::listen(operation, &listener.address);
    let (socket, file) = unix::ready_path(&listener, path, backlog(&listener))?;
    let inode = rustix::fs::fstat(&socket).map_err(|e| fail("fstat")(e.into()))?.st_ino;
    let cookie = socket.cookie().map_err(fail("getsockopt(SO_COOKIE)"))?;
    Ok(Opened {
        fd: socket.into(),
        bound: listener.address.clone(),
        inode,
        cookie,
        path: Some(file),
        hidden: false,
    })
}

fn of_path(path: &Path, mode: u32) -> Result<Listener, Error> {
    let unfit = |source| Error::Path { path: path.to_owned(), source };
    // A path that is not UTF-8 fails like one with a NUL: no message and no option list can contain
    // it.
    let address = Address::unix(path.to_str().unwrap_or("\0")).map_err(unfit)?;
    let options = Options { mode: Some(mode), ..Options::default() };
    Listener::new(None, address, options).map_err(unfit)
}

/// `shared`: an IP socket gets SO_REUSEPORT, which the caller removes again. `hide`: a TCP socket
/// is hidden before it listens, if possible.
fn open_here(
    listener: &Listener,
    accounts: &Accounts,
    shared: bool,
    hide: bool,
) -> Result<Opened, Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    let mut hidden = false;
    let (socket, bound, path) = match &listener.address {
        Address::Tcp(at) => {
            let mptcp = listener.options.mptcp;
            let protocol = if mptcp { Protocol::MPTCP } else { Protocol::TCP };
            let socket = inet(listener, *at, Type::STREAM, protocol, shared)?;
            if hide && let Some(hiding) = Hiding::here() {
                hidden = hiding.hide(socket.as_fd(), listener.options.interface.as_deref());
            }
            socket.listen(backlog(listener)).map_err(fail("listen"))?;
            let real = real_address(&socket, *at).map_err(fail("getsockname"))?;
            (socket, Address::Tcp(real), None)
        }
        Address::Udp(at) => {
            let socket = inet(listener, *at, Type::DGRAM, Protocol::UDP, shared)?;
            let real = real_address(&socket, *at).map_err(fail("getsockname"))?;
            (socket, Address::Udp(real), None)
        }
        Address::Quic(at) => {
            let socket = quic(listener, *at, shared)?;
            let real = real_address(&socket, *at).map_err(fail("getsockname"))?;
            (socket, Address::Quic(real), None)
        }
        Address::Unix(path) => {
            let (socket, path) = unix::path(listener, path.as_ref(), accounts, backlog(listener))?;
            (socket, listener.address.clone(), Some(path))
        }
        Address::Abstract(_) | Address::Unpadded(_) => {
            let socket = unix::abstract_name(listener, backlog(listener))?;
            (socket, listener.address.clone(), None)
        }
    };
    if listener.options.blocking {
        socket.set_nonblocking(false).map_err(fail("fcntl(O_NONBLOCK)"))?;
    }
    let inode = rustix::fs::fstat(&socket).map_err(|e| fail("fstat")(e.into()))?.st_ino;
    let cookie = socket.cookie().map_err(fail("getsockopt(SO_COOKIE)"))?;
    Ok(Opened { fd: socket.into(), bound, inode, cookie, path, hidden })
}

fn backlog(listener: &Listener) -> i32 {
    listener
        .options
        .backlog
        .map_or(BACKLOG_SOMAXCONN, |backlog| i32::try_from(backlog).unwrap_or(BACKLOG_SOMAXCONN))
}

/// A bound TCP or UDP socket. The options are set before bind, because bind evaluates them.
fn inet(
    listener: &Listener,
    at: SocketAddr,
    kind: Type,
    protocol: Protocol,
    shared: bool,
) -> Result<Socket, Error> {
    let socket = unbound(listener, at, kind, protocol, shared)?;
    socket.bind(&at.into()).map_err(Error::listen("bind", &listener.address))?;
    Ok(socket)
}

/// A UDP socket with SO_REUSEADDR that has not joined another socket. It is bound without the
/// option, so the kernel refuses an address that another socket has. A draining program may still
/// have sockets connected to its clients: those receive only from these clients, and the new socket
/// is bound beside them.
fn quic(listener: &Listener, at: SocketAddr, shared: bool) -> Result<Socket, Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    let socket = unbound(listener, at, Type::DGRAM, Protocol::UDP, shared)?;
    let reuse = || socket.set_reuse_address(true).map_err(fail("setsockopt(SO_REUSEADDR)"));
    match socket.bind(&at.into()) {
        Err(error)
            if errno_of(&error) == Errno::EADDRINUSE && !shared && !has_receiver(listener)? =>
        {
            reuse()?;
            socket.bind(&at.into()).map_err(fail("bind"))?;
        }
        bound => {
            bound.map_err(fail("bind"))?;
            reuse()?;
        }
    }
    Ok(socket)
}

/// Whether an unconnected UDP socket (it receives from anyone) overlaps this address.
fn has_receiver(listener: &Listener) -> Result<bool, Error> {
    let key = Listener {
        name: None,
        options: Options { netns: None, ..listener.options.clone() },
        address: listener.address.clone(),
    }
    .key();
    Ok(diag::udp()?.into_iter().any(|socket| {
        let v6only = socket.v6only.unwrap_or(false);
        let options = Options { v6only, interface: socket.interface, ..Options::default() };
        Listener { name: None, address: socket.address, options }.key().overlaps(&key)
    }))
}

/// A socket with the options that bind evaluates.
fn unbound(
    listener: &Listener,
    at: SocketAddr,
    kind: Type,
    protocol: Protocol,
    shared: bool,
) -> Result<Socket, Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    let options = &listener.options;
    let socket =
        Socket::new_raw(Domain::for_address(at), kind.nonblocking().cloexec(), Some(protocol))
            .map_err(fail("socket"))?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true).map_err(fail("setsockopt(SO_REUSEADDR)"))?;
    }
    if shared {
        socket.set_reuse_port(true).map_err(fail("setsockopt(SO_REUSEPORT)"))?;
    }
    if at.is_ipv6() {
        socket.set_only_v6(options.v6only).map_err(fail("setsockopt(IPV6_V6ONLY)"))?;
    }
    if let Some(interface) = &options.interface {
        socket
            .bind_device(Some(interface.as_bytes()))
            .map_err(fail("setsockopt(SO_BINDTODEVICE)"))?;
    }
    if options.transparent {
        transparent::set(&SockRef::from(&socket), at.is_ipv6())
            .map_err(fail("setsockopt(IP_TRANSPARENT)"))?;
    }
    if options.freebind {
        transparent::set_freebind(&SockRef::from(&socket), at.is_ipv6(), true)
            .map_err(fail("setsockopt(IP_FREEBIND)"))?;
    }
    Ok(socket)
}

/// The address with the port that the kernel chose; queried only if `asked` has port 0.
fn real_address(socket: &Socket, asked: SocketAddr) -> std::io::Result<SocketAddr> {
    if asked.port() != 0 {
        return Ok(asked);
    }
    let mut real = asked;
    let bound = socket.local_addr()?;
    real.set_port(bound.as_socket().map_or(0, |at| at.port()));
    Ok(real)
}

#[cfg(test)]
mod tests;
