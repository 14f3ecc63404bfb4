//! The listeners that a generation was given, as the supervisor keeps them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bindonce::Lease;
use bindonce_core::address::Address;
use bindonce_core::listener::{ListenSpec, Listener};

use super::version::Version;

/// One listener that the broker gave us.
#[derive(Debug)]
pub(super) struct Held {
    /// Our descriptor of it: for looking at its queue, never for accepting.
    pub(super) fd: OwnedFd,
    /// Its name on the wire.
    pub(super) label: String,
    /// What was claimed.
    pub(super) listener: Listener,
    /// Where it is bound.
    pub(super) bound: Address,
    /// Its inode, by which the kernel names it.
    pub(super) inode: u64,
    /// Our claim made the broker bind it.
    pub(super) created: bool,
}

/// Reads what [`Held::listener`] prints as.
pub(super) fn read(text: &str) -> Option<Listener> {
    text.parse::<ListenSpec>().ok().map(|spec| spec.first)
}

impl Held {
    /// What a lease gave for `listener`.
    pub(super) fn new(lease: Lease, listener: &Listener) -> Rc<Self> {
        Rc::new(Self {
            label: lease.name().to_owned(),
            listener: listener.clone(),
            bound: lease.bound().parse().unwrap_or_else(|_| listener.address.clone()),
            inode: lease.inode(),
            created: lease.created(),
            fd: lease.into_fd(),
        })
    }

    /// Whether a generation of this version can pause it, so that its accept queue shows it. A pause
    /// closes an abstract listener for good in the paused process, and UDP has no queue of
    /// connections.
    pub(super) fn can_pause(&self, version: Version) -> bool {
        match self.bound {
            Address::Tcp(_) => version.pauses(),
            Address::Unix(_) => version.pauses_unix(),
            Address::Udp(_) | Address::Abstract(_) => false,
        }
    }

    /// Whether connections to it wait in a queue that we can look at.
    pub(super) fn has_queue(&self) -> bool {
        !matches!(self.bound, Address::Udp(_))
    }

    /// Where to connect in order to put something into its queue; none where a connection from
    /// here would not arrive.
    pub(super) fn probe_target(&self) -> Option<Address> {
        let options = &self.listener.options;
        if options.netns.is_some() || options.interface.is_some() || options.transparent {
            return None;
        }
        match &self.bound {
            Address::Tcp(address) => Some(Address::Tcp(reachable(*address))),
            Address::Unix(path) => Some(Address::Unix(path.clone())),
            Address::Udp(_) | Address::Abstract(_) => None,
        }
    }
}

/// The loopback address in place of a wildcard.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
