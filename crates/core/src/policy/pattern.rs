//! The addresses that a rule covers.
//!
//! One syntax, close to that of addresses: `*` is every address. `HOST:PORT` is TCP; after `udp@`
//! it is UDP and QUIC (both get the same packets), after `quic@` QUIC alone. HOST is `*` (any
//! address of any family), an IP address, or a prefix such as `10.0.0.0/8` or `[fd00::]/8`; PORT is
//! `*`, a number, or a range `8000-8010`. A UNIX path or an abstract name (`unix@/run/app.sock`,
//! `/run/app/*`, `abns@app-*`, `abnsz@app-*`) may end in `*`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use crate::address::Address;
use crate::listener::ListenSpec;

/// A set of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    set: Set,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Set {
    All,
    Ip {
        protocol: Protocol,
        net: Option<(IpAddr, u8)>,
        ports: (u16, u16),
    },
    Path {
        start: String,
        open: bool,
    },
    /// An abstract name, padded or not.
    Abstract {
        start: String,
        open: bool,
        padded: bool,
    },
}

/// The prefix before `@`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    Quic,
}

impl Protocol {
    fn has(self, address: &Address) -> bool {
        match self {
            Self::Tcp => matches!(address, Address::Tcp(_)),
            Self::Udp => matches!(address, Address::Udp(_) | Address::Quic(_)),
            Self::Quic => matches!(address, Address::Quic(_)),
        }
    }
}

/// A text that is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a set of addresses: write *, HOST:PORT (HOST may be * or 10.0.0.0/8 or [fd00::]/8, \
     PORT * or 8000-8010), udp@HOST:PORT, quic@HOST:PORT, unix@/run/app/* or abns@app-*"
)]
pub struct InvalidPattern(pub String);

impl Pattern {
    /// Whether the set contains all that `spec` asks for: every port of a range, and both families
    /// of a dual-stack wildcard.
    pub fn contains(&self, spec: &ListenSpec) -> bool {
        let address = &spec.first.address;
        match (&self.set, address) {
            (Set::All, _) => true,
            (
                Set::Ip { protocol, net, ports },
                Address::Tcp(at) | Address::Udp(at) | Address::Quic(at),
            ) => {
                let last = spec.last_port.max(at.port());
                let ip = at.ip().to_canonical();
                let dual =
                    at.ip().is_ipv6() && at.ip().is_unspecified() && !spec.first.options.v6only;
                protocol.has(address)
                    && (ports.0..=ports.1).contains(&at.port())
                    && (ports.0..=ports.1).contains(&last)
                    && net.is_none_or(|net| {
                        within(net, ip) && (!dual || within(net, Ipv4Addr::UNSPECIFIED.into()))
                    })
            }
            (Set::Path { start, open }, Address::Unix(path)) => {
                // `..` would lead out of the directory that a prefix names.
                let plain = !path.split('/').any(|part| part == ".." || part == ".");
                if *open { plain && path.starts_with(start.as_str()) } else { path == start }
            }
            (
                Set::Abstract { start, open, padded },
                Address::Abstract(name) | Address::Unpadded(name),
            ) if *padded == matches!(address, Address::Abstract(_)) => {
                if *open {
                    name.starts_with(start.as_str())
                } else {
                    name == start
                }
            }
            _ => false,
        }
    }
}

fn within((net, length): (IpAddr, u8), ip: IpAddr) -> bool {
    let same = |net: u128, ip: u128, bits: u32| {
        let length = u32::from(length);
        length == 0 || (net ^ ip) >> (bits - length) == 0
    };
    match (net, ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => same(net.to_bits().into(), ip.to_bits().into(), 32),
        (IpAddr::V6(net), IpAddr::V6(ip)) => same(net.to_bits(), ip.to_bits(), 128),
        _ => false,
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let set = read(text).ok_or_else(|| InvalidPattern(text.chars().take(120).collect()))?;
        Ok(Self { text: text.to_owned(), set })
    }
}

fn read(text: &str) -> Option<Set> {
    if text == "*" {
        return Some(Set::All);
    }
    let open = |text: &str| match text.strip_suffix('*') {
        Some(start) => (start.to_owned(), true),
        None => (text.to_owned(), false),
    };
    let padded = text.strip_prefix("abns@").map(|name| (name, true));
    let name = padded.or_else(|| text.strip_prefix("abnsz@").map(|name| (name, false)));
    if let Some((name, padded)) = name {
        let (start, open) = open(name);
        return (!name.is_empty()).then_some(Set::Abstract { start, open, padded });
    }
    let path = text.strip_prefix("unix@").unwrap_or(text);
    if path.starts_with('/') {
        let (start, open) = open(path);
        let plain = !start.split('/').any(|part| part == "..");
        return plain.then_some(Set::Path { start, open });
    }
    let (protocol, rest) = match text.split_once('@') {
        Some(("udp", rest)) => (Protocol::Udp, rest),
        Some(("quic", rest)) => (Protocol::Quic, rest),
        Some(("tcp", rest)) => (Protocol::Tcp, rest),
        _ => (Protocol::Tcp, text),
    };
    let (host, port) = rest.rsplit_once(':')?;
    let digits = |text: &str| -> Option<u16> {
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
    };
    let ports = match port.split_once('-') {
        _ if port == "*" => (0, u16::MAX),
        Some((first, last)) => (digits(first)?, digits(last)?),
        None => (digits(port)?, digits(port)?),
    };
    if ports.0 > ports.1 {
        return None;
    }
    if host == "*" || host.is_empty() {
        return Some(Set::Ip { protocol, net: None, ports });
    }
    let (host, length) = match host.rsplit_once('/') {
        Some((host, length)) => (host, Some(length.parse::<u8>().ok()?)),
        None => (host, None),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let ip: IpAddr = match bare {
        Some(host) => IpAddr::V6(host.parse().ok()?),
        None => IpAddr::V4(host.parse().ok()?),
    };
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let length = length.unwrap_or(bits);
    (length <= bits).then_some(Set::Ip { protocol, net: Some((ip, length)), ports })
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_contains_what_it_says_and_nothing_else() {
        for (pattern, inside, outside) in [
            ("*", &[":80", "udp@:53", "/run/a", "abns@a", "[::]:1"][..], &[][..]),
            (
                "*:80",
                &[":80", "10.0.0.1:80", "[::]:80", "mptcp4@:80"],
                &[":81", "udp@:80", "/run/a", ":80-81"],
            ),
            ("*:*", &[":0", "[::1]:65535", ":1-65535"], &["udp@:1", "abns@a"]),
            ("udp@*:53", &["udp@:53", "quic4@:53"], &[":53"]),
            ("quic@*:443", &["quic4@:443", "quic6@:443"], &["udp@:443", ":443"]),
            (
                "10.0.0.0/8:8000-8010",
                &["10.9.9.9:8000", "10.1.1.1:8000-8010", "[::ffff:10.0.0.1]:8001"],
                &["11.0.0.1:8000", "0.0.0.0:8000", "10.1.1.1:8000-8011", "10.1.1.1:7999"],
            ),
            ("127.0.0.1:80", &["127.0.0.1:80"], &["127.0.0.2:80", ":80"]),
            ("0.0.0.0/0:80", &[":80", "1.2.3.4:80"], &["[::]:80", "[::1]:80", "[::]:80,v6only"]),
            // A dual-stack wildcard takes IPv4 too, so IPv6 alone does not contain it.
            ("[::]/0:80", &["[::1]:80", "[::]:80,v6only"], &["[::]:80", ":80"]),
            ("[fd00::]/8:*", &["[fd12::1]:5"], &["[fe80::1]:5", "[::]:5"]),
            (
                "unix@/run/app/*",
                &["/run/app/a", "unix@/run/app/b/c"],
                &["/run/app", "/run/apple", "/run/app/../b", "abns@/run/app/a"],
            ),
            ("/run/a.sock", &["/run/a.sock"], &["/run/a.sock2"]),
            ("abns@app-*", &["abns@app-1"], &["abns@ap", "/app-1", "abnsz@app-1"]),
            ("abnsz@app-*", &["abnsz@app-1"], &["abns@app-1"]),
        ] {
            let read: Pattern = pattern.parse().expect(pattern);
            for (texts, expected) in [(inside, true), (outside, false)] {
                for text in texts {
                    // The parser may refuse a path with `..`.
                    let Ok(spec) = text.parse::<ListenSpec>() else { continue };
                    assert_eq!(read.contains(&spec), expected, "{pattern} and {text}");
                }
            }
        }
    }

    #[test]
    fn refuses_what_it_cannot_mean() {
        for text in [
            "",
            "80",
            "host:80",
            "10.0.0.0/33:80",
            "[::]/129:1",
            "*:90-80",
            "*:+1",
            "*:65536",
            "/run/../etc/*",
            "abns@",
            "::1:80",
            "10.0.0.1:",
            "[10.0.0.1]:80",
        ] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }
}
