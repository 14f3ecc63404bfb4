//! What tells one listener from every other, and which of them the kernel
//! would not let stand beside each other.
//!
//! The rules are those of the kernel's own bind conflict check
//! (`inet_rcv_saddr_equal` and `inet_bind_conflict` in net/ipv4, `__inet6_bind`
//! in net/ipv6) for sockets without SO_REUSEPORT: a wildcard covers every
//! address of its family, a dual-stack wildcard covers both families, an
//! IPv4-mapped address is the IPv4 address, a specific IPv6 address is always
//! IPv6 only, and two different network devices or namespaces never meet.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::Address;
use crate::name::Name;
use crate::options::Options;

/// What tells one listener from every other: network namespace, protocol,
/// address, network device and, for an IPv6 wildcard, whether IPv4 is left out.
/// With port 0 (any free port) the name belongs to it too, so that two
/// services can each have a free port of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    address: Address,
    v6only: bool,
    /// Apart, because thousands of keys are held and few have any of it. None if
    /// there is none, so that equal keys look equal.
    rest: Option<Box<Rest>>,
}

impl Hash for Key {
    /// Of the address only what tells thousands of keys apart, in one piece: every piece costs time.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.address {
            Address::Tcp(at) | Address::Udp(at) => match at.ip() {
                IpAddr::V4(ip) => {
                    state.write_u64(u64::from(ip.to_bits()) << 16 | u64::from(at.port()));
                }
                IpAddr::V6(ip) => {
                    state.write_u128(ip.to_bits());
                    state.write_u16(at.port());
                }
            },
            Address::Unix(name) | Address::Abstract(name) => name.hash(state),
        }
        if let Some(rest) = &self.rest {
            rest.hash(state);
        }
    }
}

/// What belongs to few keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Rest {
    netns: Option<Box<str>>,
    interface: Option<Box<str>>,
    name: Option<Name>,
}

impl Rest {
    fn boxed(self) -> Option<Box<Self>> {
        let said = self.netns.is_some() || self.interface.is_some() || self.name.is_some();
        said.then(|| Box::new(self))
    }
}

impl Key {
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
        };
        Self { address: address.clone(), v6only, rest: rest.boxed() }
    }

    /// The key with the address that a socket really got, which says the port
    /// where port 0 was asked for.
    #[must_use]
    pub fn bound(&self, bound: &Address) -> Self {
        let rest = self.rest.as_deref().cloned();
        let rest = rest.and_then(|rest| Rest { name: None, ..rest }.boxed());
        Self { address: bound.clone(), v6only: self.v6only, rest }
    }

    /// Whether the kernel would refuse to bind one while the other is bound, unless both are
    /// bound for that. Two equal keys overlap, except at port 0.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.slots().any(|mine| other.slots().any(|theirs| mine.meets(&theirs)))
    }

    /// Whether both would be asked for by the same connections, so that they can never stand
    /// beside each other. Two that overlap otherwise can: the kernel takes the more specific one
    /// (compute_score() in net/ipv4/inet_hashtables.c).
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.place().is_some_and(|mine| other.place() == Some(mine))
    }

    /// What it is asked for by first: for a dual-stack wildcard IPv6, since an IPv4 socket goes
    /// before it.
    pub(crate) fn place(&self) -> Option<Slot> {
        self.slots().next()
    }

    /// Of a wildcard for both families, the same for IPv6 alone.
    pub fn narrowed(&self) -> Option<Self> {
        self.is_dual().then(|| Self { v6only: true, ..self.clone() })
    }

    /// Of a wildcard for both families, that of IPv4 at the same port.
    pub(crate) fn ipv4_wildcard(&self) -> Option<Self> {
        let port = self.address.port().filter(|_| self.is_dual())?;
        let at = (Ipv4Addr::UNSPECIFIED, port).into();
        let address = match self.address {
            Address::Udp(_) => Address::Udp(at),
            _ => Address::Tcp(at),
        };
        Some(Self { address, ..self.clone() })
    }

    /// The order in which those that overlap are best bound: the kernel lets a more specific one
    /// join others without a privilege, and the wildcard of both families not.
    pub fn specificity(&self) -> u8 {
        let wildcard = self.address.ip().is_some_and(|at| at.ip().to_canonical().is_unspecified());
        match (self.is_dual(), wildcard) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        }
    }

    /// Whether it is a wildcard for both families.
    pub fn is_dual(&self) -> bool {
        let dual = |at: std::net::SocketAddr| at.is_ipv6() && at.ip().is_unspecified();
        !self.v6only && self.address.ip().is_some_and(dual)
    }

    /// The network device it is bound to.
    fn interface(&self) -> Option<&str> {
        self.rest.as_ref()?.interface.as_deref()
    }

    fn netns(&self) -> Option<&str> {
        self.rest.as_ref()?.netns.as_deref()
    }

    /// What it occupies: nothing at port 0, two slots for a dual-stack wildcard.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> {
        let (first, second) = match &self.address {
            Address::Tcp(at) | Address::Udp(at) if at.port() == 0 => (None, None),
            Address::Tcp(at) | Address::Udp(at) => {
                let udp = matches!(self.address, Address::Udp(_));
                let slot = |ip: IpAddr, through_v6: bool| {
                    let scope = Scope {
                        netns: self.netns().map(Box::from),
                        device: self.interface().map(Box::from),
                        name: None,
                    };
                    let (v6, ip) = match ip {
                        IpAddr::V4(ip) => (false, ip.to_bits().into()),
                        IpAddr::V6(ip) => (true, ip.to_bits()),
                    };
                    let place = Place::port(at.port(), v6, udp);
                    let place = if through_v6 { place.through_v6() } else { place };
                    Slot { at: At { place, ip }, scope: scope.boxed() }
                };
                match at.ip() {
                    IpAddr::V6(ip) if ip.is_unspecified() && !self.v6only => (
                        Some(slot(Ipv6Addr::UNSPECIFIED.into(), false)),
                        Some(slot(Ipv4Addr::UNSPECIFIED.into(), true)),
                    ),
                    ip => (Some(slot(ip.to_canonical(), false)), None),
                }
            }
            // A path is the same in every network namespace.
            Address::Unix(path) => (Some(Slot::unix(Place::PATH, None, path)), None),
            Address::Abstract(name) => {
                (Some(Slot::unix(Place::ABSTRACT, self.netns(), name)), None)
            }
        };
        first.into_iter().chain(second)
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
        if let Some(interface) = self.interface() {
            write!(f, ",interface={interface}")?;
        }
        if let Some(netns) = self.netns() {
            write!(f, ",netns={netns}")?;
        }
        Ok(())
    }
}

/// One thing in the kernel that only one socket can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    pub(crate) at: At,
    scope: Option<Box<Scope>>,
}

/// An IP address at a place. They sort by place, the wildcard first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) place: Place,
    /// The bits of the address; 0 is the wildcard, and what a UNIX name has.
    ip: u128,
}

impl Hash for At {
    /// An IPv4 address in one piece: every piece costs time, and thousands are held.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match u32::try_from(self.ip) {
            Ok(ip) => state.write_u64(u64::from(self.place.0) << 32 | u64::from(ip)),
            Err(_) => {
                state.write_u128(self.ip);
                state.write_u32(self.place.0);
            }
        }
    }
}

/// As far as a wildcard reaches: a port of one family and protocol. Or all paths, or all abstract
/// names, which have no wildcard. What an IPv6 wildcard has of IPv4 stands apart: it is the last
/// that IPv4 connections come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place(u32);

impl Place {
    const PATH: Self = Self(0);
    const ABSTRACT: Self = Self(1);
    const THROUGH_V6: u32 = 1 << 19;

    fn port(port: u16, v6: bool, udp: bool) -> Self {
        Self(1 << 18 | u32::from(v6) << 17 | u32::from(udp) << 16 | u32::from(port))
    }

    /// IPv4 of a socket for both families.
    fn through_v6(self) -> Self {
        Self(self.0 | Self::THROUGH_V6)
    }

    /// The other place that IPv4 connections to this one come to; None for those of IPv6.
    pub(crate) fn other_ipv4(self) -> Option<Self> {
        let ipv4 = self > Self::ABSTRACT && self.0 & 1 << 17 == 0;
        ipv4.then_some(Self(self.0 ^ Self::THROUGH_V6))
    }

    /// What both places of IPv4 have in common.
    fn family(self) -> u32 {
        self.0 & !Self::THROUGH_V6
    }
}

/// What few slots have.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Scope {
    netns: Option<Box<str>>,
    device: Option<Box<str>>,
    /// A path or an abstract name.
    name: Option<Box<str>>,
}

impl Scope {
    fn boxed(self) -> Option<Box<Self>> {
        let said = self.netns.is_some() || self.device.is_some() || self.name.is_some();
        said.then(|| Box::new(self))
    }
}

impl Slot {
    fn unix(place: Place, netns: Option<&str>, name: &str) -> Self {
        let scope = Scope { netns: netns.map(Box::from), device: None, name: Some(name.into()) };
        Self { at: At { place, ip: 0 }, scope: scope.boxed() }
    }

    /// Whether it is nothing but an address: of no device, and in the broker's own namespace.
    pub(crate) fn is_plain(&self) -> bool {
        self.scope.is_none()
    }

    /// Whether it meets those that are plain, where the addresses do.
    pub(crate) fn meets_plain(&self) -> bool {
        self.scope_meets(&None)
    }

    /// Whether it is an IP address, and not a UNIX name.
    pub(crate) fn is_ip(&self) -> bool {
        self.at.place > Place::ABSTRACT
    }

    /// Whether it is an IP address that covers all others of its family.
    pub(crate) fn is_wildcard(&self) -> bool {
        self.is_ip() && self.at.ip == 0
    }

    /// The wildcards that cover it: that of its place, and the one of both families.
    pub(crate) fn wildcards(&self) -> impl Iterator<Item = At> + use<> {
        self.places().map(At::first)
    }

    /// Where all that it can meet stand: its place, and the other one of IPv4.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let place = self.at.place;
        std::iter::once(place).chain(place.other_ipv4())
    }

    /// Whether the kernel lets only one of them be bound.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.at.place.family() == other.at.place.family()
            && (self.at.ip == other.at.ip || self.is_wildcard() || other.is_wildcard())
            && self.scope_meets(&other.scope)
    }

    /// Two sockets meet in the same namespace, under the same name, and unless each is bound to
    /// a device of its own.
    fn scope_meets(&self, other: &Option<Box<Scope>>) -> bool {
        if self.scope.is_none() && other.is_none() {
            return true;
        }
        let nothing = Scope::default();
        let mine = self.scope.as_deref().unwrap_or(&nothing);
        let theirs = other.as_deref().unwrap_or(&nothing);
        mine.netns == theirs.netns
            && mine.name == theirs.name
            && (mine.device.is_none() || theirs.device.is_none() || mine.device == theirs.device)
    }
}

impl At {
    /// The wildcard of a place, the first of those there.
    pub(crate) fn first(place: Place) -> Self {
        Self { place, ip: 0 }
    }
}

/// Where those at an address begin, in their order.
impl From<At> for Slot {
    fn from(at: At) -> Self {
        Self { at, scope: None }
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
    fn overlaps_as_the_kernel_has_them() {
        for (one, other, overlap) in [
            (":80", "10.0.0.1:80", true),
            (":80", "10.0.0.1:81", false),
            (":80", "udp@:80", false),
            ("udp@:53", "udp@10.0.0.1:53", true),
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
            ("abns@a", "abns@a", true),
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
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80", true),
            ("[::ffff:0.0.0.0]:80", ":80", true),
            (":80,interface=eth0", ":80", false),
            (":80", ":80", true),
            (":0", ":0", false),
            ("/run/a", "/run/a", true),
        ] {
            assert_eq!(key(one).is_same_place(&key(other)), same, "{one} and {other}");
            assert_eq!(key(other).is_same_place(&key(one)), same, "{other} and {one}");
        }
        let ipv4 = key("udp@[::]:53,interface=a").ipv4_wildcard();
        assert_eq!(ipv4, Some(key("udp@:53,interface=a")));
        assert_eq!(key("[::]:80").narrowed(), Some(key("[::]:80,v6only")));
        assert_eq!(key("[::1]:80").narrowed(), None);
    }

    #[test]
    fn the_key_leaves_out_what_does_not_tell_listeners_apart() {
        assert_eq!(key("web=:80,backlog=5"), key("*:80,transparent"));
        assert_eq!(key("[::1]:80,v6only"), key("[::1]:80"));
        assert_ne!(key("[::]:80,v6only"), key("[::]:80"));
        assert_ne!(key("a=:0"), key("b=:0"));
        assert_eq!(
            key(":80,backlog=1,netns=n,interface=i").to_string(),
            "0.0.0.0:80,interface=i,netns=n"
        );
    }
}
