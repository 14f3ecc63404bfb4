//! Decides about a bind(2) call of a program that the supervisor intercepts: the kernel performs
//! it, the program gets the broker's socket instead, or the call fails.
//!
//! At bind(2) nobody knows what the socket is for. So an address that is not named is claimed only
//! where it is almost certainly a listener, and where the program could have bound it itself.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use crate::address::{Address, MAX_PATH};
use crate::error::Invalid;
use crate::listener::{Listener, Options};

/// The listeners to intercept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// The listeners, with the options that the user wants; a wildcard stands for its port at every
    /// address. Empty means every listener that the program binds.
    pub named: Vec<Listener>,
}

/// The host's settings for ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    /// A port below this one needs a privilege (`net.ipv4.ip_unprivileged_port_start`).
    pub unprivileged: u16,
    /// Ports that the kernel gives to clients (`net.ipv4.ip_local_port_range`).
    pub ephemeral: RangeInclusive<u16>,
}

/// The address that the program passed to bind(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An IPv4 or IPv6 address.
    Ip(SocketAddr),
    /// A UNIX path, absolute.
    Path(String),
    /// An abstract UNIX name, including any NULs that pad it.
    Abstract(String),
    /// Anything else: another family, a name that is not text, or no address.
    Other,
}

/// The kind of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP, including multipath TCP.
    Tcp,
    /// UDP.
    Udp,
    /// A UNIX stream socket.
    UnixStream,
    /// Any other UNIX socket.
    UnixOther,
    /// Any other socket.
    Other,
}

/// The program's own socket, as it is when bind(2) is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Its kind.
    pub kind: Kind,
    /// Whether it is an IPv6 socket.
    pub ipv6: bool,
    /// Whether it is already bound.
    pub bound: bool,
    /// Whether it belongs to another network namespace than ours; for a path, whether the program
    /// sees other files than we do.
    pub elsewhere: bool,
    /// Whether the kernel chooses its port at connect(2) (IP_BIND_ADDRESS_NO_PORT).
    pub late_port: bool,
    /// Whether its process may bind privileged ports (CAP_NET_BIND_SERVICE).
    pub privileged: bool,
    /// The options that a claim can express.
    pub options: Options,
}

/// What to do with the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The kernel performs it, for this reason.
    Continue(&'static str),
    /// The program gets the socket that the broker holds or opens for this listener.
    Claim(Listener),
    /// The call fails, for this reason.
    Refuse(Failure, String),
}

/// The address of a socket that a program has bound itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Own {
    /// This address.
    At(Address),
    /// An address that the call does not show.
    Unknown,
    /// None: the socket cannot listen.
    Nothing,
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// EACCES.
    Denied,
    /// EADDRINUSE.
    InUse,
    /// EADDRNOTAVAIL.
    Unavailable,
    /// This errno, as the kernel has given it to the broker.
    Kernels(i32),
}

impl Socket {
    /// The address of the listener that this socket would be, or why the broker has no such
    /// listener.
    fn address(&self, target: &Target) -> Result<Result<Address, Invalid>, &'static str> {
        if self.bound {
            return Err("the socket is bound already");
        }
        Ok(match (target, self.kind) {
            (Target::Ip(at), Kind::Tcp | Kind::Udp) if at.is_ipv6() == self.ipv6 => {
                if at.port() == 0 {
                    return Err("the kernel chooses the port");
                }
                if is_for_many(at.ip()) {
                    return Err("it is a multicast or broadcast address");
                }
                Ok(if self.kind == Kind::Tcp { Address::Tcp(*at) } else { Address::Udp(*at) })
            }
            (Target::Path(path), Kind::UnixStream) => Address::unix(path),
            (Target::Abstract(name), Kind::UnixStream) if name.len() == MAX_PATH => {
                Address::abstract_name(name.trim_end_matches('\0'))
            }
            (Target::Abstract(name), Kind::UnixStream) => Address::unpadded_name(name),
            _ => return Err("the broker does not support this kind of socket"),
        })
    }

    /// The address of the socket once it is bound, if it may listen there. [`Own::Unknown`] where
    /// only the kernel knows it.
    pub fn own(&self, target: &Target) -> Own {
        match (self.address(target), target) {
            (Ok(Ok(address)), _) => Own::At(address),
            // A datagram socket.
            (Err(_), Target::Path(path)) if !self.bound => {
                Address::unix(path).map_or(Own::Unknown, Own::At)
            }
            (Err(_), Target::Abstract(name)) if !self.bound => {
                let padded = name.len() == MAX_PATH;
                let make = if padded { Address::abstract_name } else { Address::unpadded_name };
                make(name.trim_end_matches('\0')).map_or(Own::Unknown, Own::At)
            }
            (Err(_), Target::Ip(at)) if self.kind == Kind::Tcp && at.port() == 0 => Own::Unknown,
            (Ok(Err(_)), _) => Own::Unknown,
            (Err(_), _) => Own::Nothing,
        }
    }
}

impl Scope {
    /// Decides about one call.
    pub fn decide(&self, ports: &Ports, target: &Target, socket: &Socket) -> Decision {
        use Decision::{Claim, Continue, Refuse};
        let address = match socket.address(target) {
            Ok(address) => address,
            Err(why) => {
                // The user named it, and the program's own socket would be a second one.
                let is_named = socket.kind == Kind::UnixOther
                    && matches!(socket.own(target), Own::At(address) if self.name(&address).is_some());
                return match is_named {
                    true => Refuse(
                        Failure::Unavailable,
                        "the broker supports only stream UNIX sockets".to_owned(),
                    ),
                    false => Continue(why),
                };
            }
        };
        let named = address.as_ref().ok().and_then(|address| self.name(address));
        if named.is_none() && !self.named.is_empty() {
            return Continue("it is not named");
        }
        let claim = address.map_err(|invalid| invalid.to_string()).and_then(|address| {
            if socket.elsewhere {
                return Err("the program is in another namespace than bindonce".to_owned());
            }
            if matches!(address.ip(), Some(SocketAddr::V6(at)) if at.scope_id() != 0) {
                return Err("it is a link-local address with a scope".to_owned());
            }
            let (name, wanted) = match named {
                Some(named) if named.address.as_seen() == address => {
                    (named.name.clone(), Some(&named.options))
                }
                Some(named) => (None, Some(&named.options)),
                None => (None, None),
            };
            let address = match named {
                Some(named) if named.address.as_seen() == address => named.address.clone(),
                _ => address,
            };
            let options = merged(wanted, &socket.options, &address);
            Listener::new(name, address, options).map_err(|invalid| invalid.to_string())
        });
        match (claim, named) {
            (Ok(listener), Some(_)) => Claim(listener),
            // The user named it, and the program's own socket would be a second one.
            (Err(why), Some(_)) => Refuse(Failure::Unavailable, why),
            (Err(_), None) => Continue("the broker cannot hold it"),
            (Ok(listener), None) => match kept_apart(ports, &listener, socket) {
                Some(why) => Continue(why),
                None => Claim(listener),
            },
        }
    }

    /// Whether the file of a UNIX socket stays although the program removes it: the path is
    /// intercepted, and the broker's socket would lose its file. The next bind(2) of the path
    /// replaces a file that no broker holds.
    pub fn keeps(&self, target: &Target) -> bool {
        match target {
            Target::Path(path) => Address::unix(path).is_ok_and(|path| self.name(&path).is_some()),
            _ => false,
        }
    }

    /// Whether any named listener is a UNIX path.
    pub fn has_paths(&self) -> bool {
        self.named.iter().any(|listener| matches!(listener.address, Address::Unix(_)))
    }

    /// The named listener for this address; an exact match comes first.
    fn name(&self, address: &Address) -> Option<&Listener> {
        let same = |listener: &&Listener| listener.address.as_seen() == *address;
        let everywhere = |listener: &&Listener| {
            let (named, at) = (listener.address.as_seen(), address);
            let is_wildcard = named.ip().is_some_and(|named| named.ip().is_unspecified());
            is_wildcard && named.listens() == at.listens() && named.port() == at.port()
        };
        self.named.iter().find(same).or_else(|| self.named.iter().find(everywhere))
    }
}

/// Why an address that is not named is left to the kernel, if it is.
fn kept_apart(ports: &Ports, listener: &Listener, socket: &Socket) -> Option<&'static str> {
    let Some(at) = listener.address.ip() else {
        return Some(
            "a UNIX socket often belongs to one process: it is claimed only where it is named",
        );
    };
    if socket.late_port {
        return Some("a client: its port is chosen when it connects");
    }
    if listener.options.transparent && !at.ip().is_unspecified() {
        return Some("a client, with the address of another host");
    }
    if !listener.address.listens() && ports.ephemeral.contains(&at.port()) {
        return Some("a UDP port from the range of clients");
    }
    if at.port() < ports.unprivileged && !socket.privileged {
        return Some("the process may not bind a privileged port");
    }
    None
}

/// Whether several hosts share the address.
fn is_for_many(ip: IpAddr) -> bool {
    ip.is_multicast() || matches!(ip, IpAddr::V4(ip) if ip.is_broadcast())
}

/// The options that the user gave; for the rest, those that the program set on its own socket.
fn merged(wanted: Option<&Options>, own: &Options, address: &Address) -> Options {
    let wanted = wanted.cloned().unwrap_or_default();
    let wildcard = address.ip().is_some_and(|at| at.is_ipv6() && at.ip().is_unspecified());
    let ip = address.ip().is_some();
    let path = matches!(address, Address::Unix(_));
    Options {
        // It has no effect at an IPv6 address that is not a wildcard.
        v6only: wildcard && (wanted.v6only || own.v6only),
        interface: wanted.interface.or_else(|| own.interface.clone()).filter(|_| ip),
        mptcp: matches!(address, Address::Tcp(_)) && (wanted.mptcp || own.mptcp),
        transparent: ip && (wanted.transparent || own.transparent),
        freebind: ip && (wanted.freebind || own.freebind),
        blocking: wanted.blocking || own.blocking,
        backlog: wanted.backlog.filter(|_| address.listens()),
        netns: wanted.netns,
        mode: wanted.mode.or(own.mode).filter(|_| path),
        user: wanted.user.or_else(|| own.user.clone()).filter(|_| path),
        group: wanted.group.or_else(|| own.group.clone()).filter(|_| path),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PORTS: Ports = Ports { unprivileged: 1024, ephemeral: 32768..=60999 };

    fn socket(kind: Kind, ipv6: bool) -> Socket {
        Socket {
            kind,
            ipv6,
            bound: false,
            elsewhere: false,
            late_port: false,
            privileged: true,
            options: Options::default(),
        }
    }

    fn scope(named: &[&str]) -> Scope {
        Scope { named: named.iter().map(|text| text.parse().expect(text)).collect() }
    }

    fn of(text: &str) -> (Target, Socket) {
        let listener: Listener = text.parse().expect(text);
        let (target, kind) = match &listener.address {
            Address::Unix(path) => (Target::Path(path.clone()), Kind::UnixStream),
            Address::Abstract(name) => {
                (Target::Abstract(format!("{name:\0<107}")), Kind::UnixStream)
            }
            Address::Unpadded(name) => (Target::Abstract(name.clone()), Kind::UnixStream),
            Address::Tcp(at) => (Target::Ip(*at), Kind::Tcp),
            Address::Udp(at) | Address::Quic(at) => (Target::Ip(*at), Kind::Udp),
        };
        let ipv6 = matches!(target, Target::Ip(at) if at.is_ipv6());
        (target, Socket { options: listener.options, ..socket(kind, ipv6) })
    }

    #[test]
    fn what_a_person_expects() {
        for (named, bound, expected) in [
            (&[][..], "127.0.0.1:8080", Some("127.0.0.1:8080")),
            (&[], "[::]:80,v6only", Some("[::]:80,v6only")),
            (&[], "[::1]:80,freebind", Some("[::1]:80,freebind")),
            (&[], "127.0.0.1:0", None),
            (&[], "udp@:53", Some("udp4@0.0.0.0:53")),
            (&[], "udp@127.0.0.1:40000", None),
            (&[], "udp@224.0.0.251:5353", None),
            (&[], "10.0.0.1:80,transparent", None),
            (&[], ":80,transparent", Some("0.0.0.0:80,transparent")),
            (&[], "/run/a", None),
            (&[], "abns@a", None),
            (&["web=:80,backlog=7"], "0.0.0.0:80", Some("web=0.0.0.0:80,backlog=7")),
            (&["web=:80,backlog=7"], "[::]:80", Some("[::]:80,backlog=7")),
            (&["web=:80"], "10.0.0.1:80", Some("10.0.0.1:80")),
            (&["web=:80"], "10.0.0.1:81", None),
            (&["web=:80"], "udp@:80", None),
            (&["10.0.0.1:80"], ":80", None),
            (&["udp@127.0.0.1:40000"], "udp@127.0.0.1:40000", Some("udp4@127.0.0.1:40000")),
            (&["quic4@:443"], "udp@:443", Some("quic4@0.0.0.0:443")),
            (&["10.0.0.1:80"], "10.0.0.1:80,transparent", Some("10.0.0.1:80,transparent")),
            (&["app=/run/a"], "/run/a,mode=0600", Some("app=unix@/run/a,mode=0600")),
            (&["abns@a"], "abns@a,blocking", Some("abns@a,blocking")),
            (&["abnsz@a"], "abnsz@a", Some("abnsz@a")),
            (&["abns@a"], "abnsz@a", None),
            (&[":80"], ":80,mptcp", Some("0.0.0.0:80,mptcp")),
        ] {
            let (target, socket) = of(bound);
            let claimed = match scope(named).decide(&PORTS, &target, &socket) {
                Decision::Claim(listener) => Some(listener.to_string()),
                Decision::Continue(_) => None,
                refused @ Decision::Refuse(..) => panic!("{named:?} {bound}: {refused:?}"),
            };
            assert_eq!(claimed.as_deref(), expected, "{named:?} {bound}");
        }
    }

    #[test]
    fn what_is_for_datagrams_is_told_too() {
        let socket = socket(Kind::UnixOther, false);
        for (target, expected) in [
            (Target::Path("/run/log".to_owned()), "unix@/run/log"),
            (Target::Abstract(format!("{:\0<107}", "log")), "abns@log"),
            (Target::Abstract("log".to_owned()), "abnsz@log"),
        ] {
            assert_eq!(socket.own(&target), Own::At(expected.parse().expect(expected)));
            assert!(matches!(
                Scope::default().decide(&PORTS, &target, &socket),
                Decision::Continue(_)
            ));
        }
        let bound = Socket { bound: true, ..socket };
        assert_eq!(bound.own(&Target::Abstract("log".to_owned())), Own::Nothing);
    }

    #[test]
    fn the_file_of_a_path_that_is_named_stays() {
        let keeps = |named: &[&str], path: &str| scope(named).keeps(&Target::Path(path.to_owned()));
        assert!(keeps(&["app=/run/a"], "/run/a"));
        assert!(!keeps(&["app=/run/a", ":80"], "/run/b") && !keeps(&[], "/run/a"));
        assert!(scope(&[":80", "/run/a"]).has_paths() && !scope(&[":80", "abns@a"]).has_paths());
    }

    #[test]
    fn a_unix_socket_for_datagrams_that_is_named_is_refused() {
        let (target, socket) = (Target::Path("/run/a".to_owned()), socket(Kind::UnixOther, false));
        let decide = |named: &[&str]| scope(named).decide(&PORTS, &target, &socket);
        assert!(matches!(decide(&["/run/a"]), Decision::Refuse(Failure::Unavailable, _)));
        assert!(matches!(decide(&["/run/b"]), Decision::Continue(_)));
    }

    #[test]
    fn what_the_process_may_not_bind_is_claimed_only_where_it_is_named() {
        let (target, socket) = of(":80");
        let socket = Socket { privileged: false, ..socket };
        let decide = |named: &[&str]| scope(named).decide(&PORTS, &target, &socket);
        assert!(matches!(decide(&[]), Decision::Continue(_)));
        assert!(matches!(decide(&[":80"]), Decision::Claim(_)));
    }

    #[test]
    fn what_is_named_and_cannot_be_had_is_refused_and_nothing_else() {
        let (target, socket) = of(":80");
        let socket = Socket { elsewhere: true, ..socket };
        let decide = |named: &[&str]| scope(named).decide(&PORTS, &target, &socket);
        assert!(matches!(decide(&[":80"]), Decision::Refuse(Failure::Unavailable, _)));
        assert!(matches!(decide(&[]), Decision::Continue(_)));
    }

    prop_compose! {
        fn any_socket()(
            (kind, ipv6, bound, elsewhere) in (0..5_usize, any::<bool>(), any::<bool>(), any::<bool>()),
            (late_port, privileged, v6only, transparent) in any::<(bool, bool, bool, bool)>(),
            (freebind, blocking) in any::<(bool, bool)>(),
            interface in prop::option::of("[a-z/, ]{1,17}"),
            mode in prop::option::of(0..0o7777_u32),
        ) -> Socket {
            let kind = [Kind::Tcp, Kind::Udp, Kind::UnixStream, Kind::UnixOther, Kind::Other][kind];
            let options =
                Options { v6only, transparent, freebind, blocking, interface, mode, ..Options::default() };
            Socket { kind, ipv6, bound, elsewhere, late_port, privileged, options }
        }
    }

    fn any_target() -> impl Strategy<Value = Target> {
        let port = prop_oneof![Just(0_u16), Just(80), Just(443), any::<u16>()];
        let ip = prop_oneof![
            Just("0.0.0.0"),
            Just("127.0.0.1"),
            Just("255.255.255.255"),
            Just("224.0.0.1"),
            Just("::"),
            Just("::1"),
            Just("ff02::1"),
            Just("::ffff:10.0.0.1"),
        ];
        prop_oneof![
            8 => (ip, port).prop_map(|(ip, port)| {
                Target::Ip(SocketAddr::new(ip.parse().expect("an address"), port))
            }),
            2 => "/?[a-z./,]{0,120}".prop_map(Target::Path),
            1 => "\\PC{0,120}".prop_map(Target::Abstract),
            1 => Just(Target::Other),
        ]
    }

    proptest! {
        #[test]
        fn no_port_0_and_nothing_that_is_bound_is_touched(
            target in any_target(), socket in any_socket(), named: bool,
        ) {
            let scope = scope(if named { &[":80", "[::1]:443", "udp@:53", "/a"] } else { &[] });
            let decision = scope.decide(&PORTS, &target, &socket);
            if socket.bound || matches!(target, Target::Ip(at) if at.port() == 0) {
                prop_assert!(matches!(decision, Decision::Continue(_)));
            }
        }

        #[test]
        fn a_claim_is_of_the_address_that_was_given_and_can_be_written(
            target in any_target(), socket in any_socket(), named: bool,
        ) {
            let scope = scope(if named { &["web=:80", "[::1]:443", "udp@:53", "/a"] } else { &[] });
            let Decision::Claim(listener) = scope.decide(&PORTS, &target, &socket) else { return Ok(()) };
            if let Target::Ip(at) = target {
                prop_assert_eq!(listener.address.ip(), Some(at));
            }
            let (said, own) = (&listener.options, &socket.options);
            prop_assert_eq!(said.blocking, own.blocking);
            prop_assert!(listener.address.ip().is_none() || said.interface == own.interface);
            prop_assert_eq!(listener.to_string().parse::<Listener>().expect("a listener"), listener);
        }

        #[test]
        fn what_is_not_named_is_never_refused(target in any_target(), socket in any_socket()) {
            let all = Scope::default().decide(&PORTS, &target, &socket);
            prop_assert!(!matches!(all, Decision::Refuse(..)));
            let other = scope(&["10.9.9.9:9"]).decide(&PORTS, &target, &socket);
            prop_assert!(matches!(other, Decision::Continue(_)));
        }
    }
}
