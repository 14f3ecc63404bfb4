//! Reads one address of a `bind` line as haproxy does.
//!
//! haproxy accepts more than `bindonce_core` (host names, relative UNIX paths, the prefix of
//! `unix-bind`), and some addresses only haproxy can bind. So this module reads the text and gives
//! core's typed address. Source: section 11 of haproxy's configuration manual, "Address formats",
//! and the description of `bind`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use bindonce_core::address::{Address, MAX_PATH};
use bindonce_core::error::Invalid;

use super::world::Family;

/// The meaning of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// Sockets for the broker.
    Listen(Wanted),
    /// `fd@`, with the text that follows.
    Descriptor(Vec<u8>),
    /// An address that haproxy has to bind itself, with the reason.
    Alone(&'static str),
}

/// Sockets of one kind at one address, or at a range of ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The first address.
    pub(super) first: Address,
    /// The last port: the first one's port where there is no range, 0 for UNIX sockets.
    pub(super) last: u16,
    /// Whether the socket uses multipath TCP.
    pub(super) mptcp: bool,
}

impl Wanted {
    /// Every address of the range.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Address> + use<'_> {
        let ports = self.first.port().map_or(0..=0, |port| port..=self.last);
        ports.map(|port| self.first.with_port(port))
    }
}

impl From<Address> for Target {
    fn from(first: Address) -> Self {
        Self::Listen(Wanted { first, last: 0, mptcp: false })
    }
}

/// Why haproxy would refuse an address.
#[derive(Debug)]
pub(super) enum Problem {
    /// The text is not an address, with the reason.
    Bad(String),
    /// The host name has no address.
    Unresolved {
        /// The name.
        host: String,
        /// The resolver's answer.
        source: io::Error,
    },
}

/// The context that an address depends on.
pub(super) struct Context<'a> {
    /// Whether the line is a `dgram-bind`.
    pub(super) datagram: bool,
    /// `unix-bind prefix`.
    pub(super) prefix: &'a [u8],
    /// haproxy's working directory: relative UNIX paths begin here.
    pub(super) directory: &'a Path,
    /// Resolves the symbolic links of a directory.
    pub(super) resolved: &'a dyn Fn(&Path) -> io::Result<PathBuf>,
    /// Resolves a host name.
    pub(super) resolve: &'a dyn Fn(&str, Option<Family>) -> io::Result<IpAddr>,
}

/// The longest UNIX path that haproxy takes, in bytes: `sun_path` less the NUL and the room for
/// `.PID.tmp` (2.6 to 3.5).
const LONGEST_PATH: usize = 97;

/// Why a path that is not UTF-8 is left to haproxy.
const NOT_TEXT: &str = "its name is not UTF-8, and the broker's protocol carries no other";

/// Why a relative path is left to haproxy, which binds it as it is written.
const TOO_DEEP: &str = "its absolute path has more than the 107 bytes that the broker can bind";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    Datagram,
}

enum Net {
    Ip(Option<Family>),
    Path,
    /// An abstract name, with the function that makes its address.
    Abstract(fn(&str) -> Result<Address, Invalid>),
}

/// Reads one address, without commas and with variables already expanded.
pub(super) fn read(text: &[u8], context: &Context<'_>) -> Result<Target, Problem> {
    let bad = |reason: &str| Err(Problem::Bad(reason.to_owned()));
    let Ok(text) = std::str::from_utf8(text) else {
        // The broker's protocol is UTF-8 text, and a path in it must be exactly the user's path.
        let name = String::from_utf8_lossy(text);
        return match read(name.as_bytes(), context)? {
            Target::Listen(Wanted { first: Address::Unix(_), .. }) => Ok(Target::Alone(NOT_TEXT)),
            Target::Listen(wanted) if wanted.first.is_abstract() => bad(
                "its name is not UTF-8, and the broker's protocol carries no other: choose another name",
            ),
            Target::Listen(..) => bad("it is not UTF-8"),
            other => Ok(other),
        };
    };
    if text.is_empty() {
        return bad("it is empty (is a variable of the environment missing?)");
    }
    if let Some(rest) = text.strip_prefix("quic+") {
        return quic(rest, context);
    }
    let by_line = if context.datagram { Kind::Datagram } else { Kind::Stream };
    let (mut kind, text) = if let Some(rest) = text.strip_prefix("stream+") {
        (Kind::Stream, rest)
    } else if let Some(rest) = text.strip_prefix("dgram+") {
        (Kind::Datagram, rest)
    } else {
        (by_line, text)
    };
    let (net, rest) = match text.split_once('@') {
        None if text.starts_with('/') => (Net::Path, text),
        None => (Net::Ip(None), text),
        Some((prefix, rest)) => {
            let (net, forced) = match prefix {
                "ip" => (Net::Ip(None), None),
                "ipv4" => (Net::Ip(Some(Family::V4)), None),
                "ipv6" => (Net::Ip(Some(Family::V6)), None),
                "tcp" => (Net::Ip(None), Some(Kind::Stream)),
                "tcp4" => (Net::Ip(Some(Family::V4)), Some(Kind::Stream)),
                "tcp6" => (Net::Ip(Some(Family::V6)), Some(Kind::Stream)),
                "mptcp" | "mptcp4" | "mptcp6" if !context.datagram => {
                    return mptcp(prefix, rest, context);
                }
                "udp" => (Net::Ip(None), Some(Kind::Datagram)),
                "udp4" => (Net::Ip(Some(Family::V4)), Some(Kind::Datagram)),
                "udp6" => (Net::Ip(Some(Family::V6)), Some(Kind::Datagram)),
                "unix" => (Net::Path, None),
                "uxst" => (Net::Path, Some(Kind::Stream)),
                "uxdg" => (Net::Path, Some(Kind::Datagram)),
                "abns" => (Net::Abstract(Address::abstract_name), None),
                "abnsz" => (Net::Abstract(Address::unpadded_name), None),
                "fd" | "sockpair" => return Ok(Target::Descriptor(rest.as_bytes().to_vec())),
                "quic4" => return quic(&format!("ipv4@{rest}"), context),
                "quic6" => return quic(&format!("ipv6@{rest}"), context),
                _ => return other_family(prefix, text, context),
            };
            kind = forced.unwrap_or(kind);
            (net, rest)
        }
    };
    match (by_line, kind) {
        (Kind::Stream, Kind::Datagram) => {
            return bad(
                "a bind line takes stream sockets; haproxy takes datagrams by dgram-bind in log-forward",
            );
        }
        (Kind::Datagram, Kind::Stream) => {
            return bad("a dgram-bind line takes datagram sockets only");
        }
        _ => {}
    }
    match net {
        Net::Path | Net::Abstract(_) if kind == Kind::Datagram => {
            Ok(Target::Alone("a UNIX datagram socket, which the broker does not hold"))
        }
        Net::Path => path(rest, context),
        Net::Abstract(make) => match make(rest) {
            Ok(address) => Ok(address.into()),
            Err(why) => Err(Problem::Bad(why.to_string())),
        },
        Net::Ip(family) => match kind {
            Kind::Stream => ip(rest, family, Address::Tcp, context),
            Kind::Datagram => ip(rest, family, Address::Udp, context),
        },
    }
}

/// Why an address after `quic+` is left to haproxy.
const NOT_FOR_QUIC: &str = "haproxy does not take this for QUIC";

/// Reads the text after `quic+` (2.8 and later): a descriptor, or an IP address without a prefix
/// that names a protocol.
fn quic(rest: &str, context: &Context<'_>) -> Result<Target, Problem> {
    if context.datagram {
        return Err(Problem::Bad("a dgram-bind line takes datagram sockets only".to_owned()));
    }
    let (family, rest) = match rest.split_once('@') {
        Some(("fd", number)) => return Ok(Target::Descriptor(number.as_bytes().to_vec())),
        Some(("ip", rest)) => (None, rest),
        Some(("ipv4" | "quic4", rest)) => (Some(Family::V4), rest),
        Some(("ipv6" | "quic6", rest)) => (Some(Family::V6), rest),
        None if !rest.starts_with('/') => (None, rest),
        _ => return Ok(Target::Alone(NOT_FOR_QUIC)),
    };
    ip(rest, family, Address::Quic, context)
}

/// Reads an address behind `mptcp@`, `mptcp4@` or `mptcp6@` (3.1 and later).
fn mptcp(prefix: &str, rest: &str, context: &Context<'_>) -> Result<Target, Problem> {
    let family = match prefix {
        "mptcp4" => Some(Family::V4),
        "mptcp6" => Some(Family::V6),
        _ => None,
    };
    Ok(match ip(rest, family, Address::Tcp, context)? {
        Target::Listen(wanted) => Target::Listen(Wanted { mptcp: true, ..wanted }),
        other => other,
    })
}

/// Reads an address whose prefix names something that only haproxy can set up.
fn other_family(prefix: &str, text: &str, context: &Context<'_>) -> Result<Target, Problem> {
    Ok(Target::Alone(match prefix {
        "rhttp" | "rev" => {
            "reverse HTTP takes connections from a server, there is no address to bind"
        }
        // A path without a prefix may contain an @ too.
        _ if text.starts_with('/') => return path(text, context),
        _ => "bindonce does not know this family of addresses",
    }))
}

fn path(rest: &str, context: &Context<'_>) -> Result<Target, Problem> {
    // haproxy puts the prefix directly in front, with no slash between.
    if context.prefix.len() + rest.len() > LONGEST_PATH {
        return Err(Problem::Bad(format!(
            "haproxy takes a path of at most {LONGEST_PATH} bytes, with the prefix of unix-bind"
        )));
    }
    let Ok(prefix) = std::str::from_utf8(context.prefix) else {
        return Ok(Target::Alone(NOT_TEXT));
    };
    let written = format!("{prefix}{rest}");
    let mut absolute = context.directory.join(&written);
    if absolute.components().any(|part| part == Component::ParentDir) {
        absolute = without_parents(&absolute, context)?;
    }
    let Some(absolute) = absolute.to_str() else {
        return Ok(Target::Alone(NOT_TEXT));
    };
    match Address::unix(absolute) {
        Ok(address) => Ok(address.into()),
        Err(_) if absolute.len() > MAX_PATH && !written.starts_with('/') => {
            Ok(Target::Alone(TOO_DEEP))
        }
        Err(why) => Err(Problem::Bad(why.to_string())),
    }
}

/// The same path without `..`, resolved as the file system does: behind a symbolic link `..` is not
/// the directory above in the text.
fn without_parents(path: &Path, context: &Context<'_>) -> Result<PathBuf, Problem> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Problem::Bad("it names a directory".to_owned()));
    };
    let found = (context.resolved)(directory);
    let found = found
        .map_err(|error| Problem::Bad(format!("its directory {}: {error}", directory.display())))?;
    Ok(found.join(name))
}

fn ip(
    rest: &str,
    family: Option<Family>,
    kind: fn(SocketAddr) -> Address,
    context: &Context<'_>,
) -> Result<Target, Problem> {
    let bad = |reason: String| Err(Problem::Bad(reason));
    // The last colon separates the port, unless it is inside brackets.
    let split = rest.rfind([':', ']']).filter(|&at| rest.as_bytes()[at] == b':');
    let Some(colon) = split else {
        return bad("it has no port: write one after a colon, as in :80".to_owned());
    };
    let (host, ports) = (&rest[..colon], &rest[colon + 1..]);
    let Some((low, high)) = ports_of(ports)? else { return Ok(Target::Alone(LOOSE_PORT)) };
    let ip = host_of(host, family, context)?;
    let first = kind(SocketAddr::new(ip, low));
    Ok(Target::Listen(Wanted { first, last: high, mptcp: false }))
}

const LOOSE_PORT: &str =
    "text follows the digits of its port: haproxy 2.6 ignores it, later versions refuse it";

/// Reads `80` or `8000-8010`. None where only a haproxy before 3.0 takes the text.
fn ports_of(ports: &str) -> Result<Option<(u16, u16)>, Problem> {
    let number = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Problem::Bad(format!("{text:?} is not a port from 1 to 65535"))),
    };
    if ports.starts_with('+') {
        return Err(Problem::Bad(format!("{ports:?} does not begin with a digit")));
    }
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    // strtol() takes spaces and a sign before the second port.
    let (low, high) = match (number(first), number(last.trim_ascii_start())) {
        (Ok(low), Ok(high)) => (low, high),
        (low, high) => match loose_ports(ports).filter(|(low, high)| *low > 0 && low <= high) {
            Some(_) => return Ok(None),
            None => (low?, high?),
        },
    };
    if low > high {
        return Err(Problem::Bad(format!(
            "{ports:?} is not a range of ports: write the lower one first"
        )));
    }
    Ok(Some((low, high)))
}

/// The first and the last port of a text, each up to the first byte that is not a digit, as haproxy
/// before 3.0 reads them.
pub fn loose_ports(ports: &str) -> Option<(u16, u16)> {
    let number = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse::<u16>().ok()
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let last = last.trim_ascii_start();
    number(first).zip(number(last.strip_prefix('+').unwrap_or(last)))
}

fn host_of(host: &str, family: Option<Family>, context: &Context<'_>) -> Result<IpAddr, Problem> {
    let wrong = |family: &str| Problem::Bad(format!("{host:?} is not an {family} address"));
    let any = match family {
        Some(Family::V6) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let (inner, bracketed) = match host.strip_prefix('[') {
        None => (host, false),
        Some(inner) => match inner.strip_suffix(']') {
            Some(inner) if inner.len() >= 2 => (inner, true),
            Some(_) => {
                let what = "stands for no address: write * or [::] for all addresses";
                return Err(Problem::Bad(format!("{host:?} {what}")));
            }
            None => return Err(Problem::Bad("its brackets do not match".to_owned())),
        },
    };
    if inner == "::" {
        return match family {
            Some(Family::V4) => Err(wrong("IPv4")),
            _ => Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
    }
    if inner.is_empty() || inner == "*" {
        return Ok(any);
    }
    match (inner.parse::<IpAddr>(), family) {
        (Ok(IpAddr::V6(_)), Some(Family::V4)) => return Err(wrong("IPv4")),
        (Ok(IpAddr::V4(_)), Some(Family::V6)) => return Err(wrong("IPv6")),
        (Ok(ip), _) => return Ok(ip),
        (Err(_), _) => {}
    }
    // The characters that haproxy allows in a host name.
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let too_long = inner.len() > if bracketed { 45 } else { 255 };
    if too_long || !inner.chars().all(valid) || inner.split('.').any(|label| label.len() > 63) {
        return Err(Problem::Bad(format!("{host:?} is neither an address nor a host name")));
    }
    match (context.resolve)(inner, family) {
        Ok(ip) if matches!((ip, family), (IpAddr::V6(_), Some(Family::V4))) => Err(wrong("IPv4")),
        Ok(ip) if matches!((ip, family), (IpAddr::V4(_), Some(Family::V6))) => Err(wrong("IPv6")),
        Ok(ip) => Ok(ip),
        Err(source) => Err(Problem::Unresolved { host: inner.to_owned(), source }),
    }
}

/// Whether an address is a descriptor.
pub(super) fn is_descriptor(address: &[u8]) -> bool {
    let heads: [&[u8]; 3] = [b"stream+", b"dgram+", b"quic+"];
    let bare = heads.iter().find_map(|head| address.strip_prefix(*head)).unwrap_or(address);
    bare.starts_with(b"fd@") || bare.starts_with(b"sockpair@")
}

#[cfg(test)]
mod tests;
