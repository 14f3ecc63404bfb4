//! Addresses in haproxy's own bind syntax, parsed to a typed value.
//!
//! The forms are those of "bind" in haproxy's configuration manual (section
//! 4.2) and of "Address formats" (section 11): `80`, `:80`, `*:80`,
//! `10.0.0.1:80`, `[::1]:80`, `::1:80` (the last colon separates the port), a
//! family in front (`ipv4@`, `ipv6@`, `tcp@`, `udp@`, `quic4@`, `unix@`, `abns@` ...) and
//! ranges of ports. Printing gives one canonical text for each value, which
//! parses back to the same value.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;

use crate::error::Invalid;
use crate::text::shown;

/// The longest UNIX path or abstract name, in bytes. `sun_path` has 108, one of which is the NUL
/// before an abstract name or after a path; see unix(7).
pub const MAX_PATH: usize = 107;

/// The address of one listener. Printing it gives the canonical text, which parses back to the same
/// value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// TCP, printed as `10.0.0.1:80` or `[::1]:80`.
    Tcp(SocketAddr),
    /// UDP, printed as `udp4@10.0.0.1:53` or `udp6@[::1]:53`.
    Udp(SocketAddr),
    /// UDP for QUIC, printed as `quic4@10.0.0.1:443` or `quic6@[::1]:443`. It occupies the same
    /// address as `udp@`, but with SO_REUSEADDR: its users can bind a connected socket beside it
    /// for each connection.
    Quic(SocketAddr),
    /// A UNIX stream socket on a path, printed as `unix@/run/app.sock`. Absolute,
    /// without NUL, at most 107 bytes.
    Unix(String),
    /// A UNIX stream socket in the abstract name space, printed as `abns@name`. The name is padded
    /// with NULs to 107 bytes, as haproxy does.
    Abstract(String),
    /// The same without padding, printed as `abnsz@name`: a different socket from `abns@name`. At
    /// most 106 bytes, because a name of 107 bytes needs no padding.
    Unpadded(String),
}

impl Address {
    /// The IP address and port, for TCP, UDP and QUIC.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(ip) | Self::Udp(ip) | Self::Quic(ip) => Some(*ip),
            Self::Unix(_) | Self::Abstract(_) | Self::Unpadded(_) => None,
        }
    }

    /// The port, for TCP, UDP and QUIC.
    pub fn port(&self) -> Option<u16> {
        self.ip().map(|ip| ip.port())
    }

    /// The same address with another port. UNIX addresses stay as they are.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Self {
        match self.ip() {
            Some(ip) => self.with_ip(SocketAddr::new(ip.ip(), port)),
            None => self.clone(),
        }
    }

    /// The same kind of address with another IP address and port. UNIX addresses stay as they are.
    #[must_use]
    pub fn with_ip(&self, at: SocketAddr) -> Self {
        match self {
            Self::Tcp(_) => Self::Tcp(at),
            Self::Udp(_) => Self::Udp(at),
            Self::Quic(_) => Self::Quic(at),
            Self::Unix(_) | Self::Abstract(_) | Self::Unpadded(_) => self.clone(),
        }
    }

    /// Whether sockets of this kind listen (UDP sockets do not).
    pub fn listens(&self) -> bool {
        !matches!(self, Self::Udp(_) | Self::Quic(_))
    }

    /// Whether this is a name in the abstract name space.
    pub fn is_abstract(&self) -> bool {
        matches!(self, Self::Abstract(_) | Self::Unpadded(_))
    }

    /// Whether no other process can bind beside the broker's socket. For QUIC others can, because
    /// its users must.
    pub fn is_exclusive(&self) -> bool {
        !matches!(self, Self::Quic(_))
    }

    /// The address as the kernel reports it: it does not know that a UDP socket is for QUIC.
    #[must_use]
    pub fn as_seen(&self) -> Self {
        match self {
            Self::Quic(at) => Self::Udp(*at),
            other => other.clone(),
        }
    }

    /// A UNIX path in canonical form: absolute, one `/` between parts, no `.`.
    ///
    /// Refuses `..`, because its meaning depends on the file system, and bytes that cannot be
    /// written in a list of options or in a log line.
    pub fn unix(path: &str) -> Result<Self, Invalid> {
        let refuse = |why| Err(Invalid::Path { path: shown(path), why });
        if !path.starts_with('/') {
            return refuse("a path begins with /");
        }
        if path.ends_with('/') {
            return refuse("it ends in /, so it names a directory");
        }
        if let Some(why) = unwritable(path) {
            return refuse(why);
        }
        let mut canonical = String::with_capacity(path.len());
        for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part == ".." {
                return refuse("write the path without ..");
            }
            canonical.push('/');
            canonical.push_str(part);
        }
        if canonical.is_empty() || path.ends_with("/.") {
            return refuse("it names a directory");
        }
        if canonical.len() > MAX_PATH {
            return refuse("the kernel takes at most 107 bytes");
        }
        Ok(Self::Unix(canonical))
    }

    /// An abstract UNIX name: at most 107 bytes, without a comma or control characters. May be
    /// empty.
    pub fn abstract_name(name: &str) -> Result<Self, Invalid> {
        let why = match unwritable(name) {
            Some(why) => why,
            None if name.len() > MAX_PATH => "the kernel takes at most 107 bytes",
            None => return Ok(Self::Abstract(name.to_owned())),
        };
        Err(Invalid::Path { path: shown(name), why })
    }

    /// The same without padding. A name of 107 bytes has none, so it becomes [`Self::Abstract`].
    pub fn unpadded_name(name: &str) -> Result<Self, Invalid> {
        Ok(match Self::abstract_name(name)? {
            Self::Abstract(name) if name.len() < MAX_PATH => Self::Unpadded(name),
            full => full,
        })
    }

    /// Reads an address that may carry a range of ports. Returns the address with the first port,
    /// and the last port: equal to the first without a range, 0 for an address without a port.
    pub(crate) fn parse_range(text: &str) -> Result<(Self, u16), Invalid> {
        if text.is_empty() {
            return Err(Invalid::Empty);
        }
        if text.starts_with('/') {
            return Ok((Self::unix(text)?, 0));
        }
        // The fast path for claims of thousands: std reads plain IPv4 as the code below would.
        if let Ok(at) = text.parse::<SocketAddrV4>() {
            return Ok((Self::Tcp(at.into()), at.port()));
        }
        let Some((family, rest)) = text.split_once('@') else {
            let (ip, last) = parse_ip(text, text, None)?;
            return Ok((Self::Tcp(ip), last));
        };
        let (of_family, make): (_, fn(SocketAddr) -> Self) = match family {
            "unix" | "uxst" => return Ok((Self::unix(rest)?, 0)),
            "abns" => return Ok((Self::abstract_name(rest)?, 0)),
            "abnsz" => return Ok((Self::unpadded_name(rest)?, 0)),
            "ipv4" | "tcp4" => (Some(Family::V4), Self::Tcp),
            "ipv6" | "tcp6" => (Some(Family::V6), Self::Tcp),
            "tcp" => (None, Self::Tcp),
            "udp" => (None, Self::Udp),
            "udp4" => (Some(Family::V4), Self::Udp),
            "udp6" => (Some(Family::V6), Self::Udp),
            "quic" => (None, Self::Quic),
            "quic4" => (Some(Family::V4), Self::Quic),
            "quic6" => (Some(Family::V6), Self::Quic),
            _ => {
                return Err(Invalid::UnknownFamily { text: shown(text), family: shown(family) });
            }
        };
        let (ip, last) = parse_ip(text, rest, of_family)?;
        Ok((make(ip), last))
    }
}

impl FromStr for Address {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (address, last) = Self::parse_range(text)?;
        if address.port().is_some_and(|first| first != last) {
            return Err(Invalid::RangeHere(shown(text)));
        }
        Ok(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(SocketAddr::V4(at)) => f.write_str(Ipv4Text::of(at).as_str()),
            Self::Tcp(ip) => ip.fmt(f),
            Self::Udp(ip) if ip.is_ipv4() => write!(f, "udp4@{ip}"),
            Self::Udp(ip) => write!(f, "udp6@{ip}"),
            Self::Quic(ip) if ip.is_ipv4() => write!(f, "quic4@{ip}"),
            Self::Quic(ip) => write!(f, "quic6@{ip}"),
            Self::Unix(path) => write!(f, "unix@{path}"),
            Self::Abstract(name) => write!(f, "abns@{name}"),
            Self::Unpadded(name) => write!(f, "abnsz@{name}"),
        }
    }
}

const LONGEST_IPV4: usize = "255.255.255.255:65535".len();

/// An IPv4 address and port as text. One request names thousands, and std's formatting takes seven
/// times as long because of padding support that is not needed here.
struct Ipv4Text {
    text: [u8; LONGEST_IPV4],
    len: usize,
}

impl Ipv4Text {
    fn of(at: &SocketAddrV4) -> Self {
        let mut text = Self { text: [0; LONGEST_IPV4], len: 0 };
        for (index, octet) in at.ip().octets().into_iter().enumerate() {
            if index > 0 {
                text.push(b'.');
            }
            text.number(octet.into());
        }
        text.push(b':');
        text.number(at.port());
        text
    }

    fn number(&mut self, number: u16) {
        for unit in [10_000, 1000, 100, 10] {
            if number >= unit {
                self.digit(number / unit);
            }
        }
        self.digit(number);
    }

    /// Pushes the last decimal digit of a number.
    fn digit(&mut self, number: u16) {
        self.push(b'0' + u8::try_from(number % 10).unwrap_or(0));
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.text.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    fn as_str(&self) -> &str {
        // Only ASCII was pushed.
        std::str::from_utf8(&self.text[..self.len]).unwrap_or_default()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    V4,
    V6,
}

/// `HOST:PORT[-PORT]` or a bare port; `text` is the whole address, for messages.
fn parse_ip(text: &str, rest: &str, family: Option<Family>) -> Result<(SocketAddr, u16), Invalid> {
    let bare = |c: char| c.is_ascii_digit() || c == '-';
    let (host, ports) = match rest.rsplit_once(':') {
        // In `[::1]` the last colon is inside the brackets: there is no port.
        Some((_, ports)) if ports.ends_with(']') => return Err(Invalid::MissingPort(shown(text))),
        Some(split) => split,
        None if !rest.is_empty() && rest.chars().all(bare) => ("", rest),
        None => return Err(Invalid::MissingPort(shown(text))),
    };
    let ip = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inside) => inside.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None if host.is_empty() || host == "*" => Some(match family {
            Some(Family::V6) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        }),
        None => host.parse().ok(),
    };
    let ip = ip.ok_or_else(|| Invalid::Host { text: shown(text), host: shown(host) })?;
    match family {
        Some(Family::V4) if !ip.is_ipv4() => {
            return Err(Invalid::WrongFamily { text: shown(text), family: "IPv4" });
        }
        Some(Family::V6) if !ip.is_ipv6() => {
            return Err(Invalid::WrongFamily { text: shown(text), family: "IPv6" });
        }
        _ => {}
    }
    let (first, last) = match ports.split_once('-') {
        None => {
            let port = parse_port(text, ports)?;
            (port, port)
        }
        Some((first, last)) => {
            let (first, last) = (parse_port(text, first)?, parse_port(text, last)?);
            if first == 0 || first > last {
                return Err(Invalid::Range(shown(text)));
            }
            (first, last)
        }
    };
    Ok((SocketAddr::new(ip, first), last))
}

fn parse_port(text: &str, port: &str) -> Result<u16, Invalid> {
    let invalid = || Invalid::Port { text: shown(text), port: shown(port) };
    if port.is_empty() {
        return Err(Invalid::MissingPort(shown(text)));
    }
    // u16's own parser takes a leading `+`.
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    port.parse().map_err(|_| invalid())
}

/// Why a path or name cannot be written in a list of options, if it cannot.
fn unwritable(text: &str) -> Option<&'static str> {
    if text.contains(',') {
        Some("a comma would begin an option")
    } else if text.chars().any(char::is_control) {
        Some("it has a control character in it")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_the_canonical_text() {
        for (text, canonical) in [
            ("80", "0.0.0.0:80"),
            (":80", "0.0.0.0:80"),
            ("*:80", "0.0.0.0:80"),
            ("ipv4@:80", "0.0.0.0:80"),
            ("ipv4@*:80", "0.0.0.0:80"),
            ("ipv4@80", "0.0.0.0:80"),
            ("tcp@10.0.0.1:0", "10.0.0.1:0"),
            (":::80", "[::]:80"),
            ("[::]:80", "[::]:80"),
            ("ipv6@:80", "[::]:80"),
            ("ipv6@*:80", "[::]:80"),
            ("tcp6@:::80", "[::]:80"),
            ("::1:80", "[::1]:80"),
            ("2001:DB8::0:1:80", "[2001:db8::1]:80"),
            ("::ffff:10.0.0.1:80", "[::ffff:10.0.0.1]:80"),
            ("udp@:53", "udp4@0.0.0.0:53"),
            ("udp@[::1]:53", "udp6@[::1]:53"),
            ("udp6@:53", "udp6@[::]:53"),
            ("quic4@:443", "quic4@0.0.0.0:443"),
            ("quic6@*:443", "quic6@[::]:443"),
            ("quic@[::1]:443", "quic6@[::1]:443"),
            ("/run/a.sock", "unix@/run/a.sock"),
            ("unix@//run/./a=b.sock", "unix@/run/a=b.sock"),
            ("uxst@/run/a b", "unix@/run/a b"),
            ("abns@haproxy/master@1", "abns@haproxy/master@1"),
            ("abns@", "abns@"),
            ("abnsz@web", "abnsz@web"),
            ("abnsz@", "abnsz@"),
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), canonical, "{text}");
            assert_eq!(canonical.parse::<Address>().expect(canonical), address);
        }
    }

    #[test]
    fn refuses_with_a_reason() {
        for (text, part) in [
            ("", "missing"),
            ("localhost:80", "not looked up"),
            ("10.0.0.1", "no port"),
            ("10.0.0.1:", "no port"),
            ("[::1]", "no port"),
            ("::1", "not an IP address"),
            (":65536", "not a port"),
            (":+80", "not a port"),
            (":-80", "no port"),
            (":80-90", "range of ports where one"),
            (":90-80", "lower port first"),
            (":0-5", "lower port first"),
            ("ipv4@[::1]:80", "IPv4"),
            ("udp6@10.0.0.1:53", "IPv6"),
            ("fd@3", "not a family"),
            ("quic4@[::1]:443", "IPv4"),
            ("quic6@10.0.0.1:443", "IPv6"),
            ("unix@run/a.sock", "begins with /"),
            ("/run/", "directory"),
            ("/run/.", "directory"),
            ("/run/../x", "without .."),
            ("unix@/a,b", "comma"),
            ("abns@a\0b", "control"),
            ("[fe80::1%2]:80", "not an IP address"),
        ] {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(format!("/{}", "a".repeat(107)).parse::<Address>().is_err());
        let full = format!("abnsz@{}", "a".repeat(107)).parse::<Address>().expect("a name");
        assert!(full.to_string().starts_with("abns@"), "padding changes nothing");
    }
}
