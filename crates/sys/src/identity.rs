//! Asks the kernel what a socket from elsewhere really is.
//!
//! A descriptor that comes from a store, another process or a client is trusted only after this
//! check.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use bindonce_core::address::{Address, MAX_PATH};
use bindonce_core::listener::{Listener, Options};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::net::{AddressFamily, SocketType, sockopt as get};
use socket2::{Protocol, SockRef};

use crate::hidden::is_hidden;
use crate::options;
use crate::queue::{accept_queue, is_listening};

/// Why a socket whose device has been deleted is of no use to anybody.
pub const NO_DEVICE: &str = "the device that it was bound to has been deleted";

/// A socket as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The bound address; QUIC if it is UDP with SO_REUSEADDR. A UNIX path is the one that was
    /// given to bind(2); the file may have been renamed since.
    pub bound: Address,
    /// The socket's inode.
    pub inode: u64,
    /// The socket's cookie (SO_COOKIE).
    pub cookie: u64,
    /// The socket's network namespace (SO_NETNS_COOKIE); None if the kernel does not report it
    /// (before Linux 5.14).
    pub network: Option<u64>,
    /// Whether the socket listens (for a datagram socket: is bound).
    pub listening: bool,
    /// Whether no other socket can bind the address beside it.
    pub exclusive: bool,
    /// Whether new connections go elsewhere. A hidden socket has lost its device, if it had one.
    pub hidden: bool,
    /// Whether the device that it is bound to has been deleted, so that no client reaches it.
    pub device_gone: bool,
    /// The options that a socket reveals.
    pub options: Options,
}

/// Describes a TCP, UDP or UNIX stream socket that is bound.
///
/// # Errors
/// Errors from the system calls; `InvalidInput` for any other kind of file or socket.
pub fn of(socket: BorrowedFd<'_>) -> io::Result<Identity> {
    let kind = get::socket_type(socket)?;
    let name = SockRef::from(&socket).local_addr()?;
    let odd = || io::Error::from(io::ErrorKind::InvalidInput);
    let protocol = SockRef::from(&socket).protocol()?;
    // A stream socket may be SCTP, a datagram socket ICMP.
    let known = match kind {
        SocketType::STREAM => [Protocol::TCP, Protocol::MPTCP],
        _ => [Protocol::UDP; 2],
    };
    if name.as_socket().is_some() && !protocol.is_some_and(|it| known.contains(&it)) {
        return Err(odd());
    }
    let bound = match (name.as_socket(), kind) {
        (Some(at), SocketType::STREAM) => Address::Tcp(at),
        (Some(at), SocketType::DGRAM) if get::socket_reuseaddr(socket)? => Address::Quic(at),
        (Some(at), SocketType::DGRAM) => Address::Udp(at),
        (None, SocketType::STREAM) => {
            if let Some(path) = name.as_pathname() {
                Address::Unix(path.to_str().ok_or_else(odd)?.to_owned())
            } else {
                let name = name.as_abstract_namespace().ok_or_else(odd)?;
                let padded = name.len() == MAX_PATH;
                let end = name.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                let end = if padded { end } else { name.len() };
                let name = std::str::from_utf8(&name[..end]).map_err(|_| odd())?;
                let make = if padded { Address::abstract_name } else { Address::unpadded_name };
                make(name).map_err(|_| odd())?
            }
        }
        _ => return Err(odd()),
    };
    let unbound =
        bound.port() == Some(0) || matches!(&bound, Address::Unix(path) if path.is_empty());
    if unbound {
        return Err(odd());
    }
    let (options, device_gone) = seen(socket, &bound)?;
    Ok(Identity {
        inode: rustix::fs::fstat(socket)?.st_ino,
        cookie: get::socket_cookie(socket)?,
        network: network_of(socket),
        listening: !bound.listens() || is_listening(socket),
        exclusive: options::is_exclusive(socket, &bound),
        hidden: matches!(bound, Address::Tcp(_)) && is_hidden(socket),
        device_gone,
        options: Options { mptcp: protocol == Some(Protocol::MPTCP), ..options },
        bound,
    })
}

/// The listener for a descriptor from another process.
///
/// # Errors
/// Why the descriptor is not a listener, in the kernel's words if possible.
pub fn listener(fd: BorrowedFd<'_>) -> Result<Listener, String> {
    let found = of(fd).map_err(|error| match error.raw_os_error() {
        Some(errno) => rustix::io::Errno::from_raw_os_error(errno).to_string(),
        None => "it is not bound, or of a kind that the broker does not hold".to_owned(),
    })?;
    if !found.listening {
        return Err(format!("it is bound to {}, and does not listen", found.bound));
    }
    if found.device_gone {
        return Err(NO_DEVICE.to_owned());
    }
    let mut listener = found.listener();
    listener.options.backlog = accept_queue(fd).ok().map(|queue| queue.limit);
    Ok(listener)
}

impl Identity {
    /// The listener as far as the socket reveals it: without a name, and without options that leave
    /// no trace in a socket.
    pub fn listener(&self) -> Listener {
        Listener { name: None, address: self.bound.clone(), options: self.options.clone() }
    }

    /// Why this is not a socket that was bound to `bound`; None if it is.
    pub fn is_elsewhere(&self, bound: &Address) -> Option<String> {
        // The path given to bind(2) is not the listener's path; its file is the proof (UnixPath).
        let both_paths = matches!((&self.bound, bound), (Address::Unix(_), Address::Unix(_)));
        // A holder of a UDP socket can set and clear SO_REUSEADDR: it is still the same socket.
        let same = self.bound.as_seen() == bound.as_seen() || both_paths;
        (!same).then(|| format!("it is bound to {}", self.bound))
    }

    /// Why this is not the socket of `listener` that was bound to `bound`; None if it is. For a
    /// socket whose cookie is not known: a holder of the right one may have changed its options.
    pub fn differs_from(&self, listener: &Listener, bound: &Address) -> Option<String> {
        let wanted = &listener.options;
        if let Some(elsewhere) = self.is_elsewhere(bound) {
            return Some(elsewhere);
        }
        let wildcard = bound.ip().is_some_and(|at| at.ip().is_unspecified());
        if wildcard && self.options.v6only != wanted.v6only {
            return Some("its IPV6_V6ONLY differs".to_owned());
        }
        if self.options.mptcp != wanted.mptcp {
            return Some(format!("it is {}multipath TCP", if wanted.mptcp { "not " } else { "" }));
        }
        if self.options.interface != wanted.interface && !self.hidden {
            return Some(match &self.options.interface {
                Some(device) => format!("it is bound to the device {device}"),
                None if self.device_gone => NO_DEVICE.to_owned(),
                None => "it is bound to no device".to_owned(),
            });
        }
        // Without the right to IP_TRANSPARENT a socket gets only freebind; a socket that becomes
        // `transparent` later keeps freebind.
        let free = wanted.transparent && self.options.freebind;
        if self.options.transparent != wanted.transparent && !free {
            return Some("its IP_TRANSPARENT differs".to_owned());
        }
        None
    }
}

/// The options that getsockopt(2) reports, and whether the socket's device has been deleted.
/// `v6only` has no meaning for an IPv6 address that is not the wildcard.
fn seen(socket: BorrowedFd<'_>, bound: &Address) -> io::Result<(Options, bool)> {
    let Some(at) = bound.ip() else { return Ok((Options::default(), false)) };
    let options = all_but_device(socket)?;
    let v6only = options.v6only && at.ip().is_unspecified();
    let (interface, device_gone) = match device(socket) {
        Err(Errno::ENODEV) => (None, true),
        device => (device?, false),
    };
    Ok((Options { v6only, interface, ..options }, device_gone))
}

/// The options of an IPv4 or IPv6 socket, whatever it is bound to.
pub(crate) fn ip_options(socket: BorrowedFd<'_>) -> io::Result<Options> {
    Ok(Options { interface: device(socket)?, ..all_but_device(socket)? })
}

/// The device that a socket is bound to. A hidden socket has none.
fn device(socket: BorrowedFd<'_>) -> nix::Result<Option<String>> {
    let device = match getsockopt(&socket, sockopt::BindToDevice) {
        Err(Errno::ENODEV) if is_hidden(socket) => OsString::new(),
        device => device?,
    };
    let device = device.into_string().unwrap_or_default();
    Ok(Some(device).filter(|device| !device.is_empty()))
}

fn all_but_device(socket: BorrowedFd<'_>) -> io::Result<Options> {
    let mut options = Options::default();
    let reference = SockRef::from(&socket);
    if get::socket_domain(socket)? == AddressFamily::INET6 {
        options.v6only = get::ipv6_v6only(socket)?;
        options.transparent = reference.ip_transparent_v6()?;
        options.freebind = reference.freebind_v6()?;
    } else {
        options.transparent = reference.ip_transparent_v4()?;
        options.freebind = reference.freebind_v4()?;
    }
    Ok(options)
}

/// The network namespace of sockets that this thread creates, as in [`Identity::network`].
pub fn network() -> Option<u64> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).ok()?;
    network_of(socket.as_fd())
}

/// The network namespace of a socket, as in [`Identity::network`]. For an accepted UNIX connection
/// it is the namespace of the socket that connected.
pub fn network_of(socket: BorrowedFd<'_>) -> Option<u64> {
    options::netns_cookie(socket)
}

/// The file now at `path`, if it is a socket, of any owner. The path that a UNIX socket was bound
/// to is no proof of its file, whichever process bound it.
pub fn file(path: &str) -> Option<crate::listen::UnixPath> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let path = PathBuf::from(path);
    let found = path.symlink_metadata().ok()?;
    found.file_type().is_socket().then(|| crate::listen::UnixPath {
        dev: found.dev(),
        ino: found.ino(),
        owner: crate::listen::FileOwner::default(),
        path,
    })
}

/// The id of this boot, which scopes inodes and cookies; empty if the kernel does not report it.
pub fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen;
    use crate::testing::Directory;

    #[test]
    fn every_kind_of_listener_is_recognised() {
        let directory = Directory::new("identity");
        let path = directory.path().join("a");
        for text in [
            "127.0.0.1:0",
            "[::1]:0,freebind",
            "127.0.0.1:0,freebind",
            "[::]:0,v6only",
            "[::]:0",
            "0.0.0.0:0,interface=lo",
            "udp@127.0.0.1:0",
            "quic4@127.0.0.1:0",
            "quic6@[::1]:0",
            &format!("unix@{},mode=0600", path.display()),
            "abns@bindonce identity test",
            "abnsz@bindonce identity test",
        ] {
            let listener: Listener = text.parse().expect(text);
            let opened = listen::open(&listener).expect(text);
            let found = of(opened.fd.as_fd()).expect(text);
            assert_eq!((found.inode, found.cookie), (opened.inode, opened.cookie), "{text}");
            assert!(found.listening, "{text}");
            assert_eq!(found.exclusive, listener.address.is_exclusive(), "{text}");
            assert_eq!(found.differs_from(&listener, &opened.bound), None, "{text}");
            if !matches!(listener.address, Address::Unix(_)) {
                assert_eq!(found.bound, opened.bound);
                assert_eq!(found.listener().options, listener.options, "{text}");
            }
            let other: Listener = "10.0.0.1:80".parse().expect("other");
            assert!(found.differs_from(&other, &other.address).is_some());
        }
        assert_eq!(file(path.to_str().expect("path")).expect("socket").path, path);
        assert!(!boot().is_empty());
    }

    #[test]
    fn what_is_no_bound_socket_is_refused() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("pair");
        assert!(of(one.as_fd()).is_err());
        let file = std::fs::File::open("/dev/null").expect("file");
        assert!(of(file.as_fd()).is_err());
        let unbound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        assert!(of(unbound.expect("socket").as_fd()).is_err());
    }
}
