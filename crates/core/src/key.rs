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
use crate::listener::Listener;
use crate::name::Name;

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
    pub fn of(listener: &Listener) -> Self {
        let options = &listener.options;
        let ip = listener.address.ip();
        // The kernel makes a socket on a specific IPv6 address IPv6 only anyway.
        let v6only = options.v6only && ip.is_some_and(|ip| ip.ip().is_unspecified());
        let any_port = ip.is_some_and(|ip| ip.port() == 0);
        let rest = Rest {
            netns: options.netns.as_deref().map(Box::from),
            interface: options.interface.as_deref().map(Box::from),
            name: if any_port { listener.name.clone() } else { None },
        };
        Self { address: listener.address.clone(), v6only, rest: rest.boxed() }
    }

    /// The key with the address that a socket really got, which says the port
    /// where port 0 was asked for.
    #[must_use]
    pub fn bound(&self, bound: &Address) -> Self {
        let rest = self.rest.as_deref().cloned();
        let rest = rest.and_then(|rest| Rest { name: None, ..rest }.boxed());
        Self { address: bound.clone(), v6only: self.v6only, rest }
    }

    /// Whether the kernel would refuse to bind one while the other is bound.
    /// Two equal keys overlap, except at port 0.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.slots().any(|mine| {
            other.slots().any(|theirs| {
                mine.place == theirs.place
                    && devices_meet(self.interface(), other.interface())
                    && (mine.ip == theirs.ip || mine.is_wildcard() || theirs.is_wildcard())
            })
        })
    }

    /// The network device it is bound to.
    pub(crate) fn interface(&self) -> Option<&str> {
        self.rest.as_ref()?.interface.as_deref()
    }

    fn netns(&self) -> Option<&str> {
        self.rest.as_ref()?.netns.as_deref()
    }

    /// What it occupies: nothing at port 0, two slots for a dual-stack wildcard.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        let (first, second) = match &self.address {
            Address::Tcp(at) | Address::Udp(at) if at.port() == 0 => (None, None),
            Address::Tcp(at) | Address::Udp(at) => {
                let udp = matches!(self.address, Address::Udp(_));
                let slot = |ip: IpAddr| Slot {
                    place: Place::Port {
                        netns: self.netns().map(Box::from),
                        udp,
                        v6: ip.is_ipv6(),
                        port: at.port(),
                    },
                    ip: Some(ip),
                };
                match at.ip() {
                    IpAddr::V6(ip) if ip.is_unspecified() && !self.v6only => (
                        Some(slot(Ipv6Addr::UNSPECIFIED.into())),
                        Some(slot(Ipv4Addr::UNSPECIFIED.into())),
                    ),
                    ip => (Some(slot(ip.to_canonical())), None),
                }
            }
            Address::Unix(path) => {
                (Some(Slot { place: Place::Path(path.as_str().into()), ip: None }), None)
            }
            Address::Abstract(name) => {
                let place = Place::Abstract {
                    netns: self.netns().map(Box::from),
                    name: name.as_str().into(),
                };
                (Some(Slot { place, ip: None }), None)
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
    /// Where wildcards reach.
    pub(crate) place: Place,
    /// The IP address there.
    pub(crate) ip: Option<IpAddr>,
}

impl Slot {
    pub(crate) fn is_wildcard(&self) -> bool {
        self.ip.is_some_and(|ip| ip.is_unspecified())
    }

    /// The slot of the wildcard that covers this address.
    pub(crate) fn wildcard(&self) -> Option<Self> {
        let ip = match self.ip? {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Some(Self { place: self.place.clone(), ip: Some(ip) })
    }
}

/// A port of one family, protocol and namespace; or a UNIX name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    // In the order in which they are compared: what differs most often comes first.
    Port { port: u16, v6: bool, udp: bool, netns: Option<Box<str>> },
    Path(Box<str>),
    Abstract { netns: Option<Box<str>>, name: Box<str> },
}

/// Two sockets meet unless each is bound to a device of its own.
pub(crate) fn devices_meet(one: Option<&str>, other: Option<&str>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
