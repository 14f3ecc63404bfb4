//! The listeners that a generation was given. The supervisor keeps a descriptor of each, to read
//! its accept queue and to give it back to the next broker; it never accepts.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use bindonce::Lease;
use bindonce_core::address::Address;
use bindonce_core::generation::GenerationId;
use bindonce_core::listener::{ListenSpec, Listener};
use bindonce_sys::hidden::{self, Hiding};
use bindonce_sys::remembered::Remembered;
use bindonce_sys::{diag, probe, queue};

use bindonce_haproxy::cli::Version;

use crate::disk::saved::SavedListener;

/// One listener that the broker gave us.
#[derive(Debug)]
pub(crate) struct HeldListener {
    /// Our descriptor, for looking at the queue, never for accepting. All generations that have the
    /// listener share it.
    pub(crate) fd: Arc<OwnedFd>,
    /// Its name on the wire.
    pub(crate) label: String,
    /// The listener as it was claimed.
    pub(crate) listener: Listener,
    pub(crate) bound: Address,
    /// Its inode, by which the kernel names it.
    pub(crate) inode: u64,
    /// Whether this claim made the broker bind it.
    pub(crate) created: bool,
    /// The options of its socket before the generation was started, until it serves.
    before: RefCell<Option<Remembered>>,
}

/// Parses the text that [`HeldListener::listener`] prints as.
pub(crate) fn read(text: &str) -> Option<Listener> {
    text.parse::<ListenSpec>().ok().map(|spec| Arc::unwrap_or_clone(spec.first))
}

/// The descriptors of the sockets that older generations have, by inode.
pub(crate) type Known = HashMap<u64, Arc<OwnedFd>>;

impl HeldListener {
    /// From the lease on `listener`. If the socket is `known`, its descriptor there is used and the
    /// new one closed.
    pub(crate) fn new(lease: Lease, listener: &Listener, known: &Known) -> Rc<Self> {
        let inode = lease.inode();
        let fd = |lease: Lease| Arc::new(lease.into_fd());
        Rc::new(Self {
            label: lease.name().to_owned(),
            listener: listener.clone(),
            bound: lease.bound().parse().unwrap_or_else(|_| listener.address.clone()),
            inode,
            created: lease.created(),
            before: RefCell::default(),
            fd: known.get(&inode).cloned().unwrap_or_else(|| fd(lease)),
        })
    }

    /// For the next image of this process, which may not get it from the broker.
    pub(crate) fn saved(&self) -> SavedListener {
        SavedListener {
            listener: self.listener.to_string(),
            label: self.label.clone(),
            bound: self.bound.to_string(),
            inode: self.inode,
        }
    }

    /// Restores a listener that an earlier image of this process had.
    pub(crate) fn resume(saved: &SavedListener, fd: Arc<OwnedFd>) -> Option<Rc<Self>> {
        Some(Rc::new(Self {
            fd,
            label: saved.label.clone(),
            listener: read(&saved.listener)?,
            bound: saved.bound.parse().ok()?,
            inode: saved.inode,
            created: false,
            before: RefCell::default(),
        }))
    }

    /// Remembers the options of a socket that others may use already: the process that is about to
    /// get it sets its own.
    pub(crate) fn remember_options(&self) {
        if !self.created {
            *self.before.borrow_mut() = Some(Remembered::of(self.fd.as_fd(), &self.bound));
        }
    }

    /// The generation serves: the options that it has set stay.
    pub(crate) fn keep_options(&self) {
        *self.before.borrow_mut() = None;
    }

    /// The generation has set its options: removes what haproxy leaves of an MSS that its line has
    /// no longer.
    pub(crate) fn lift_mss(&self) {
        if let Some(before) = &*self.before.borrow() {
            before.lift_mss(self.fd.as_fd());
        }
    }

    /// Whether a generation of this version can pause the listener and its accept queue shows the
    /// pause. A pause closes an abstract listener for good in the paused process, and nothing may
    /// be put into the queue of a UDP listener that is not for QUIC.
    pub(crate) fn can_pause(&self, version: Version) -> bool {
        match self.bound {
            Address::Tcp(_) | Address::Quic(_) => version.pauses(),
            Address::Unix(_) => version.pauses_unix(),
            Address::Udp(_) | Address::Abstract(_) | Address::Unpadded(_) => false,
        }
    }

    /// Whether a client of the address reaches this listener. A UNIX path may lead to another
    /// socket by now, or to none. True if the kernel does not say.
    pub(crate) fn leads_here(&self) -> bool {
        match &self.bound {
            Address::Unix(path) => diag::unix_is_at(self.inode, Path::new(path)).unwrap_or(true),
            _ => true,
        }
    }

    /// Whether the listener has a queue that shows whether a process takes from it: connections
    /// that wait, or datagrams of QUIC clients.
    pub(crate) fn has_queue(&self) -> bool {
        !matches!(self.bound, Address::Udp(_))
    }

    /// The length of that queue. It only grows while no process takes anything. A queue that cannot
    /// be read counts as empty.
    pub(crate) fn queue(&self) -> u32 {
        let fd = self.fd.as_fd();
        match self.bound {
            Address::Quic(_) => queue::receive_buffer(fd).unwrap_or_default().len,
            _ => queue::accept_queue(fd).map_or(0, |queue| queue.len),
        }
    }

    /// Whether [`Self::shut_down`] frees its address.
    pub(crate) fn can_be_shut_down(&self) -> bool {
        matches!(self.bound, Address::Tcp(_) | Address::Unix(_))
    }

    /// Refuses clients, although other processes still have the socket open. The address can then
    /// be bound again.
    pub(crate) fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }

    /// Hides the listener from new connections, which go to another that covers its address. False
    /// if that is impossible.
    pub(crate) fn hide(&self, hiding: &Hiding) -> bool {
        matches!(self.bound, Address::Tcp(_)) && hiding.hide(self.fd.as_fd(), self.interface())
    }

    /// Shows the listener to clients again, if it is hidden. False if that is not permitted.
    pub(crate) fn show(&self) -> bool {
        !matches!(self.bound, Address::Tcp(_)) || hidden::show(self.fd.as_fd(), self.interface())
    }

    fn interface(&self) -> Option<&str> {
        self.listener.options.interface.as_deref()
    }

    /// Where to connect to put something into the queue, best first. Only a connection that arrives
    /// proves an address right. `taken` are the addresses of all sockets of the service: the most
    /// specific socket that covers an address gets the connection.
    pub(crate) fn probe_targets(&self, taken: &[Address]) -> Vec<Address> {
        match &self.bound {
            // In another network namespace.
            _ if self.listener.options.netns.is_some() => Vec::new(),
            Address::Tcp(address) | Address::Quic(address) => {
                let v6only = self.listener.options.v6only;
                let of_kind = taken.iter().filter(|at| at.listens() == self.bound.listens());
                let taken: Vec<_> = of_kind.filter_map(Address::ip).collect();
                let best = reachable(*address, v6only, &taken, probe::local_ipv6);
                // For a host where a process outside the service has the first address.
                let far = SocketAddr::from(([127, 255, 255, 254], address.port()));
                let any = address.ip().is_unspecified() && (address.is_ipv4() || !v6only);
                let all = best.into_iter().chain(any.then_some(far));
                all.map(|at| self.bound.with_ip(at)).collect()
            }
            Address::Unix(_) => self.leads_here().then(|| self.bound.clone()).into_iter().collect(),
            Address::Abstract(_) | Address::Unpadded(_) => vec![self.bound.clone()],
            Address::Udp(_) => Vec::new(),
        }
    }
}

/// Puts back the options that a generation has set on sockets that it shared, since it has ended
/// without having served.
pub(crate) fn put_options_back(id: GenerationId, listeners: &[Rc<HeldListener>]) {
    let mut counts = BTreeMap::<_, usize>::new();
    for held in listeners {
        if let Some(before) = held.before.borrow_mut().take() {
            for changed in before.put_back(held.fd.as_fd()) {
                *counts.entry(changed).or_default() += 1;
            }
        }
    }
    for ((option, done), listeners) in counts {
        let generation = id.0;
        if done {
            let text = "put back an option of shared listeners that the failed start had changed";
            tracing::info!(generation, option, listeners, "{text}");
        } else {
            let text = "an option of shared listeners stays as the failed start has set it";
            tracing::warn!(generation, option, listeners, "{text}");
        }
    }
}

/// The address itself; for a wildcard, a local address that no other socket has.
fn reachable(
    address: SocketAddr,
    v6only: bool,
    taken: &[SocketAddr],
    local_ipv6: impl Fn() -> Vec<SocketAddrV6>,
) -> Option<SocketAddr> {
    if !address.ip().is_unspecified() {
        return Some(address);
    }
    let port = address.port();
    let is_taken = |ip: IpAddr| taken.iter().any(|at| at.ip() == ip && at.port() == port);
    // All of 127.0.0.0/8 is local (RFC 1122, 3.2.1.3).
    let ipv4 = || {
        let near = (1..=254).map(|last| IpAddr::from([127, 0, 0, last]));
        near.into_iter().find(|ip| !is_taken(*ip)).map(|ip| SocketAddr::new(ip, port))
    };
    if address.is_ipv4() {
        return ipv4();
    }
    let loopback = IpAddr::from(Ipv6Addr::LOCALHOST);
    if !is_taken(loopback) {
        return Some(SocketAddr::new(loopback, port));
    }
    if !v6only && !is_taken(Ipv4Addr::UNSPECIFIED.into()) {
        return ipv4();
    }
    let other = local_ipv6().into_iter().find(|at| !is_taken(IpAddr::from(*at.ip())))?;
    Some(SocketAddrV6::new(*other.ip(), port, 0, other.scope_id()).into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use rustix::net::sockopt::{set_socket_linger, socket_linger};

    use super::*;

    #[test]
    fn options_are_put_back_unless_the_generation_has_served() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
        let bound = socket.local_addr().expect("address").to_string();
        let saved = SavedListener { listener: bound.clone(), bound, ..SavedListener::default() };
        let fd = Arc::new(OwnedFd::from(socket));
        let held = HeldListener::resume(&saved, Arc::clone(&fd)).expect("a listener");
        let nolinger = Some(Duration::ZERO);
        for (serves, expected) in [(false, None), (true, nolinger)] {
            held.remember_options();
            set_socket_linger(&fd, nolinger).expect("SO_LINGER");
            if serves {
                held.keep_options();
            }
            put_options_back(GenerationId(1), &[Rc::clone(&held)]);
            assert_eq!(socket_linger(&fd).expect("SO_LINGER"), expected);
        }
    }

    #[test]
    fn a_probe_goes_where_no_more_specific_socket_has_it() {
        let all = || {
            vec!["[::1]:0", "[fe80::1%3]:0"].into_iter().map(|at| at.parse().expect(at)).collect()
        };
        let target = |address: &str, v6only, taken: &[&str]| {
            let taken: Vec<_> = taken.iter().map(|at| at.parse().expect(at)).collect();
            let found = reachable(address.parse().expect(address), v6only, &taken, all);
            found.map(|at| at.to_string())
        };
        for (address, v6only, taken, expected) in [
            ("10.0.0.1:80", false, &["0.0.0.0:80"][..], Some("10.0.0.1:80")),
            ("0.0.0.0:80", false, &["127.0.0.1:81"], Some("127.0.0.1:80")),
            ("0.0.0.0:80", false, &["127.0.0.1:80", "127.0.0.2:80"], Some("127.0.0.3:80")),
            ("[::]:80", false, &["0.0.0.0:80"], Some("[::1]:80")),
            ("[::]:80", false, &["[::1]:80", "127.0.0.1:80"], Some("127.0.0.2:80")),
            ("[::]:80", false, &["[::1]:80", "0.0.0.0:80"], Some("[fe80::1%3]:80")),
            ("[::]:80", true, &["[::1]:80"], Some("[fe80::1%3]:80")),
            ("[::]:80", true, &["[::1]:80", "[fe80::1%3]:80"], None),
        ] {
            assert_eq!(target(address, v6only, taken).as_deref(), expected, "{address} {taken:?}");
        }
    }
}
