//! [`Key`]: the identity of a listener, and which listeners conflict in the kernel.
//!
//! The rules are those of the kernel's own bind conflict check (`inet_rcv_saddr_equal` and
//! `inet_bind_conflict` in net/ipv4, `__inet6_bind` in net/ipv6) for sockets without SO_REUSEPORT:
//! a wildcard covers every address of its family, a dual-stack wildcard covers both families, an
//! IPv4-mapped address is the IPv4 address, a specific IPv6 address is always IPv6 only, and two
//! different network devices or namespaces never conflict.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::address::Address;
use crate::name::Name;
use crate::options::Options;

/// The identity of a listener: network namespace, protocol, address, network device, whether it is
/// multipath TCP and, for an IPv6 wildcard, whether it leaves IPv4 out. With port 0 (any free port)
/// the name belongs to the key too, so two services can each have a free port of their own.
///
/// Keys sort by protocol, port, family and IP address, the wildcard of a family first: keys that
/// can overlap are close together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Protocol, port and IP address in one number, as far as they fit; the address decides the
    /// rest. A claim of thousands compares each key many times.
    order: u64,
    address: Address,
    v6only: bool,
    /// Boxed, because thousands of keys are held and few have any of this. None if all of it is
    /// empty, so that equal keys compare equal.
    rest: Option<Box<Rest>>,
}

/// The parts that few keys have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Rest {
    netns: Option<Box<str>>,
    interface: Option<Box<str>>,
    name: Option<Name>,
    mptcp: bool,
}

impl Rest {
    fn boxed(self) -> Option<Box<Self>> {
        let any = self.netns.is_some() || self.interface.is_some() || self.name.is_some();
        (any || self.mptcp).then(|| Box::new(self))
    }
}

impl Ord for Key {
    /// Inlined for the number alone: each lookup in the index makes a dozen comparisons.
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.order.cmp(&other.order).then_with(|| self.cmp_rest(other))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The number of bits of [`order`] below the port.
const PORT: u32 = 33;

/// Protocol, port, family and the first 32 bits of the IP address, from the highest bit down. UNIX
/// names sort last.
fn order(address: &Address) -> u64 {
    let Some(at) = address.ip() else { return u64::MAX };
    let ip = match at.ip().to_canonical() {
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => 1 << 32 | u64::from((ip.to_bits() >> 96) as u32),
    };
    u64::from(!address.listens()) << 49 | u64::from(at.port()) << PORT | ip
}

impl Key {
    fn new(address: Address, v6only: bool, rest: Option<Box<Rest>>) -> Self {
        Self { order: order(&address), address, v6only, rest }
    }

    /// The key of a listener.
    pub(crate) fn of(name: Option<&Name>, address: &Address, options: &Options) -> Self {
        let ip = address.ip();
        // The kernel makes a socket on a specific IPv6 address IPv6 only anyway.
        let v6only = options.v6only && ip.is_some_and(|ip| ip.ip().is_unspecified());
        let any_port = ip.is_some_and(|ip| ip.port() == 0);
        let rest = Rest {
            netns: options.netns.as_deref().map(Box::from),
            interface: options.interface.as_deref().map(Box::from),
            name: name.filter(|_| any_port).cloned(),
            mptcp: options.mptcp,
        };
        Self::new(address.clone(), v6only, rest.boxed())
    }

    /// The key with the address that the socket got: its actual port if port 0 was asked for.
    #[must_use]
    pub fn bound(&self, bound: &Address) -> Self {
        let rest = self.rest.as_deref().cloned();
        let rest = rest.and_then(|rest| Rest { name: None, ..rest }.boxed());
        Self::new(bound.clone(), self.v6only, rest)
    }

    /// The key as the kernel reports the socket ([`Address::as_seen`]).
    pub(crate) fn as_seen(&self) -> Self {
        Self::new(self.address.as_seen(), self.v6only, self.rest.clone())
    }

    /// Whether the kernel refuses to bind one while the other is bound, unless both sockets were
    /// set up for that. Two equal keys overlap, except at port 0.
    pub fn overlaps(&self, other: &Self) -> bool {
        let devices = (self.interface(), other.interface());
        let apart = matches!(devices, (Some(one), Some(other)) if one != other);
        (self.covers(other) || other.covers(self)) && !apart && self.netns() == other.netns()
    }

    /// Whether this listener gets the connections to the other's address when no listener is more
    /// specific.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        if self.cmp_place(other).is_eq() {
            return self.address.port() != Some(0);
        }
        let (Some(at), Some(theirs)) = (self.ip(), other.ip()) else { return false };
        let ports = (self.is_udp(), at.port()) == (other.is_udp(), theirs.port());
        let family = at.is_ipv4() == theirs.is_ipv4() || self.is_dual();
        at.port() != 0 && ports && at.ip().is_unspecified() && family
    }

    /// Whether the same connections match both, so that the two can never coexist. Other
    /// overlapping listeners can: the kernel picks the more specific one (compute_score() in
    /// net/ipv4/inet_hashtables.c), and an IPv4 socket before an IPv6 socket at an IPv4-mapped
    /// address.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.cmp_place(other).is_eq()
            && self.address.port() != Some(0)
            && self.is_mapped() == other.is_mapped()
            && (self.interface(), self.netns()) == (other.interface(), other.netns())
    }

    /// Compares keys whose numbers are equal.
    #[inline(never)]
    fn cmp_rest(&self, other: &Self) -> Ordering {
        // The common case: a claim of a held listener finds an equal key.
        if self.is_plain() && other.is_plain() && self.address == other.address {
            return Ordering::Equal;
        }
        self.cmp_place(other)
            .then_with(|| self.address.cmp(&other.address))
            .then_with(|| (self.v6only, &self.rest).cmp(&(other.v6only, &other.rest)))
    }

    /// Compares protocol, port and IP address, or UNIX names.
    pub(crate) fn cmp_place(&self, other: &Self) -> Ordering {
        self.order.cmp(&other.order).then_with(|| match (self.ip(), other.ip()) {
            // Only the last bits of an IPv6 address can differ.
            (Some(at), Some(theirs)) => at.ip().cmp(&theirs.ip()),
            _ => self.address.cmp(&other.address),
        })
    }

    /// The IP address and port, as the kernel compares them.
    fn ip(&self) -> Option<SocketAddr> {
        let at = self.address.ip()?;
        Some(SocketAddr::new(at.ip().to_canonical(), at.port()))
    }

    fn is_udp(&self) -> bool {
        !self.address.listens()
    }

    /// The ranges of keys that can overlap this one: the first key of each range, and whether the
    /// range has all keys that the first one covers, or only those at its address. `wildcards`:
    /// whether any wildcard is held.
    pub(crate) fn near(&self, wildcards: bool) -> impl Iterator<Item = (Self, bool)> + use<> {
        let first = |address| Self::new(address, false, None);
        let near = |whole, at, other| [whole, at, other].into_iter().flatten();
        let Some(at) = self.ip() else {
            return near(None, Some((first(self.address.clone()), false)), None);
        };
        if at.port() == 0 {
            return near(None, None, None);
        }
        // The least key at an IP address.
        let at_ip = |ip: IpAddr| first(self.at(SocketAddr::new(ip, at.port())));
        let (v4, v6) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into());
        let is_wildcard = at.ip().is_unspecified();
        let whole = (is_wildcard || wildcards)
            .then(|| (at_ip(if at.is_ipv4() { v4 } else { v6 }), is_wildcard));
        let same = (!is_wildcard).then(|| (at_ip(at.ip()), false));
        let other = if at.is_ipv4() {
            wildcards.then(|| (at_ip(v6), false))
        } else {
            self.is_dual().then(|| (at_ip(v4), true))
        };
        near(whole, same, other)
    }

    /// Whether the key is an address and nothing else.
    pub(crate) fn is_plain(&self) -> bool {
        !self.v6only && self.rest.is_none()
    }

    /// Whether the address is the wildcard of a family.
    pub(crate) fn is_wildcard(&self) -> bool {
        self.address.ip().is_some_and(|at| at.ip().to_canonical().is_unspecified())
    }

    /// The first of all keys with this protocol and port; None for a UNIX name.
    pub(crate) fn port_begins(&self) -> Option<Self> {
        let at = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), self.address.port()?);
        Some(Self::new(self.at(at), false, None))
    }

    fn at(&self, at: SocketAddr) -> Address {
        if self.is_udp() { Address::Udp(at) } else { Address::Tcp(at) }
    }

    /// Whether both have the same protocol and port.
    pub(crate) fn is_at_port_of(&self, other: &Self) -> bool {
        self.order >> PORT == other.order >> PORT
    }

    /// For a dual-stack wildcard: the same key for IPv6 alone.
    pub fn narrowed(&self) -> Option<Self> {
        self.is_dual().then(|| Self { v6only: true, ..self.clone() })
    }

    /// For a dual-stack wildcard: the IPv4 wildcard at the same port.
    pub(crate) fn ipv4_wildcard(&self) -> Option<Self> {
        let port = self.address.port().filter(|_| self.is_dual())?;
        let at = (Ipv4Addr::UNSPECIFIED, port).into();
        Some(Self::new(self.address.with_ip(at), self.v6only, self.rest.clone()))
    }

    /// The order in which to bind overlapping listeners, lowest first: the kernel lets a more
    /// specific socket join others without a privilege, but not the dual-stack wildcard.
    pub fn specificity(&self) -> u8 {
        match (self.is_dual(), self.ip().is_some_and(|at| at.ip().is_unspecified())) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        }
    }

    /// Whether this listener takes connections that the other one would get without it.
    pub fn takes_from(&self, other: &Self) -> bool {
        let (here, there) = (self.interface(), other.interface());
        let on_its_devices = there.is_none_or(|device| here == Some(device));
        let more_specific =
            (self.specificity(), here.is_some()) > (other.specificity(), there.is_some());
        on_its_devices && more_specific && self.overlaps(other)
    }

    /// Whether this is a dual-stack wildcard.
    pub fn is_dual(&self) -> bool {
        let dual = |at: SocketAddr| at.is_ipv6() && at.ip().is_unspecified();
        !self.v6only && self.address.ip().is_some_and(dual)
    }

    /// Whether this is an IPv6 socket for IPv4 connections.
    fn is_mapped(&self) -> bool {
        self.address.ip().is_some_and(|at| at.is_ipv6() && at.ip().to_canonical().is_ipv4())
    }

    /// The network device it is bound to.
    fn interface(&self) -> Option<&str> {
        self.rest.as_ref()?.interface.as_deref()
    }

    fn netns(&self) -> Option<&str> {
        self.rest.as_ref()?.netns.as_deref()
    }
}

impl fmt::Display for Key {
    /// The address and the options that belong to the key: text that parses
    /// back to a listener with this key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)?;
        if self.v6only {
            f.write_str(",v6only")?;
        }
        if self.rest.as_ref().is_some_and(|rest| rest.mptcp) {
            f.write_str(",mptcp")?;
        }
        if let Some(interface) = self.interface() {
            write!(f, ",interface={interface}")?;
        }
        if let Some(netns) = self.netns() {
            write!(f, ",netns={netns}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::Listener;

    fn key(text: &str) -> Key {
        text.parse::<Listener>().expect(text).key()
    }

    #[test]
    fn a_more_specific_one_takes_connections_from_the_one_that_has_them_all() {
        for (general, special, takes) in [
            (":80", "10.0.0.1:80", true),
            ("10.0.0.1:80", ":80", false),
            ("[::]:80", ":80", true),
            ("[::]:80", "10.0.0.1:80", true),
            ("[::]:80,v6only", "10.0.0.1:80", false),
            ("[::]:80,v6only", "[::1]:80", true),
            (":80", ":80,interface=lo", true),
            (":80,interface=lo", ":80", false),
            (":80,interface=lo", "10.0.0.1:80", false),
            (":80,interface=lo", "10.0.0.1:80,interface=lo", true),
            ("10.0.0.1:80", ":80,interface=lo", false),
            (":80", "10.0.0.1:81", false),
        ] {
            assert_eq!(key(special).takes_from(&key(general)), takes, "{general} {special}");
        }
    }

    #[test]
    fn overlaps_as_the_kernel_has_them() {
        for (one, other, overlap) in [
            (":80", "10.0.0.1:80", true),
            (":80", "10.0.0.1:81", false),
            (":80", "udp@:80", false),
            ("udp@:53", "udp@10.0.0.1:53", true),
            ("quic4@:443", "udp@:443", true),
            ("quic4@:443", "udp@10.0.0.1:443", true),
            ("quic6@:443", "udp@10.0.0.1:443", true),
            ("quic4@:443", ":443", false),
            ("10.0.0.1:80", "10.0.0.2:80", false),
            ("[::]:80", ":80", true),
            ("[::]:80", "10.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("[::]:80,v6only", ":80", false),
            ("[::]:80,v6only", "[::]:80", true),
            ("[::]:80,v6only", "[::ffff:10.0.0.1]:80", false),
            ("[::1]:80", ":80", false),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80", true),
            ("[::ffff:10.0.0.1]:80", ":80", true),
            ("[::ffff:0.0.0.0]:80", "10.0.0.1:80", true),
            (":80,interface=eth0", ":80,interface=eth1", false),
            (":80,interface=eth0", "10.0.0.1:80", true),
            (":80,netns=blue", ":80", false),
            (":80,netns=blue", "10.0.0.1:80,netns=blue", true),
            (":0", ":0", false),
            ("/run/a", "/run/a", true),
            ("/run/a", "/run/b", false),
            (":80,mptcp", "10.0.0.1:80", true),
            ("abns@a", "abns@a", true),
            ("abns@a", "abnsz@a", false),
            ("abns@a", "abns@a,netns=blue", false),
        ] {
            assert_eq!(key(one).overlaps(&key(other)), overlap, "{one} and {other}");
            assert_eq!(key(other).overlaps(&key(one)), overlap, "{other} and {one}");
        }
    }

    #[test]
    fn two_that_the_same_connections_ask_for_are_one_place() {
        for (one, other, same) in [
            (":80", "10.0.0.1:80", false),
            ("[::]:80", ":80", false),
            ("[::]:80", "[::1]:80", false),
            ("[::]:80", "[::]:80,v6only", true),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80", false),
            ("[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.1]:80,mptcp", true),
            ("[::ffff:0.0.0.0]:80", ":80", false),
            (":80,interface=eth0", ":80", false),
            (":80", ":80", true),
            ("quic4@:443", "udp@:443", true),
            (":80,mptcp", ":80", true),
            (":0", ":0", false),
            ("/run/a", "/run/a", true),
        ] {
            assert_eq!(key(one).is_same_place(&key(other)), same, "{one} and {other}");
            assert_eq!(key(other).is_same_place(&key(one)), same, "{other} and {one}");
        }
        let ipv4 = key("udp@[::]:53,interface=a").ipv4_wildcard();
        assert_eq!(ipv4, Some(key("udp@:53,interface=a")));
        assert_eq!(key("quic6@:443").ipv4_wildcard(), Some(key("quic4@:443")));
        assert_eq!(key("[::]:80").narrowed(), Some(key("[::]:80,v6only")));
        assert_eq!(key("[::1]:80").narrowed(), None);
    }

    #[test]
    fn keys_sort_by_protocol_port_and_address() {
        let sorted = [
            ":80",
            "[::ffff:10.0.0.1]:80",
            "10.0.0.2:80",
            "255.0.0.1:80",
            "[::]:80",
            "[::1]:80",
            "[fe80::1]:80",
            "[fe80::2]:80",
            "[fe81::]:80",
            "10.0.0.1:81",
            "quic4@:80",
            "udp@10.0.0.1:80",
            "udp@[::1]:80",
            "udp@:443",
            "/run/a",
            "/run/b",
            "abns@a",
            "abnsz@a",
        ];
        for (at, one) in sorted.iter().enumerate() {
            for (other_at, other) in sorted.iter().enumerate() {
                let order = key(one).cmp_place(&key(other));
                assert_eq!(order, at.cmp(&other_at), "{one} and {other}");
                assert_eq!(key(one).cmp(&key(other)), order, "{one} and {other}");
            }
        }
    }

    #[test]
    fn the_key_leaves_out_what_does_not_tell_listeners_apart() {
        assert_eq!(key("web=:80,backlog=5"), key("*:80,transparent"));
        assert_eq!(key("[::1]:80,v6only"), key("[::1]:80"));
        assert_ne!(key("[::]:80,v6only"), key("[::]:80"));
        assert_ne!(key("mptcp4@:80"), key(":80"));
        assert_ne!(key("a=:0"), key("b=:0"));
        assert_eq!(
            key(":80,backlog=1,netns=n,interface=i").to_string(),
            "0.0.0.0:80,interface=i,netns=n"
        );
    }
}
