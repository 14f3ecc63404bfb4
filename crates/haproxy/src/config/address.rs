//! One address of a `bind` line, read as haproxy reads it.
//!
//! haproxy's own reading differs from `bindonce_core`'s in what it lets pass
//! (host names, relative UNIX paths, the prefix of `unix-bind`) and in what only
//! it can bind, so it is read here and comes out as core's typed address. The
//! source is section 11 of haproxy's configuration manual, "Address formats",
//! and the description of `bind`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use bindonce_core::address::Address;
use bindonce_core::error::Invalid;

use super::world::Family;

/// What an address comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// Sockets for the broker.
    Listen(Wanted),
    /// `fd@` and what follows it.
    Descriptor(Vec<u8>),
    /// Something that haproxy has to bind by itself.
    Alone(&'static str),
}

/// Sockets of one kind at one address, or at a range of ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The first address.
    pub(super) first: Address,
    /// Its last port: the same port when there is no range, 0 for UNIX sockets.
    pub(super) last: u16,
    /// By multipath TCP.
    pub(super) mptcp: bool,
}

impl Wanted {
    /// Each address.
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

/// Why haproxy would not take an address.
#[derive(Debug)]
pub(super) enum Problem {
    /// The text is wrong.
    Bad(String),
    /// The host name has no address.
    Unresolved {
        /// The name.
        host: String,
        /// The resolver's answer.
        source: io::Error,
    },
}

/// What the meaning of an address depends on.
pub(super) struct Context<'a> {
    /// The line is a `dgram-bind`.
    pub(super) datagram: bool,
    /// `unix-bind prefix`.
    pub(super) prefix: &'a [u8],
    /// Where haproxy runs: relative UNIX paths begin here.
    pub(super) directory: &'a Path,
    /// Where a directory really is.
    pub(super) resolved: &'a dyn Fn(&Path) -> io::Result<PathBuf>,
    /// The resolver.
    pub(super) resolve: &'a dyn Fn(&str, Option<Family>) -> io::Result<IpAddr>,
}

/// What haproxy takes of a UNIX path: `sun_path` less the NUL and the room for `.PID.tmp` (2.6 to 3.5).
const LONGEST_PATH: usize = 97;

/// Why a path that is not UTF-8 is haproxy's own.
const NOT_TEXT: &str = "its name is not UTF-8, and the broker's protocol carries no other";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    Datagram,
}

enum Net {
    Ip(Option<Family>),
    Path,
    /// A name, and how it becomes an address.
    Abstract(fn(&str) -> Result<Address, Invalid>),
}

/// Reads one address: no comma, variables already expanded.
pub(super) fn read(text: &[u8], context: &Context<'_>) -> Result<Target, Problem> {
    let bad = |reason: &str| Err(Problem::Bad(reason.to_owned()));
    let Ok(text) = std::str::from_utf8(text) else {
        // The protocol of the broker is text, and a path in it must be the path that is meant.
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

/// Why haproxy itself has to say what it makes of an address.
const NOT_FOR_QUIC: &str = "haproxy does not take this for QUIC";

/// What follows `quic+` (2.8 and later): a descriptor, or an IP address in any way that says nothing of a protocol.
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

/// An address behind `mptcp@`, `mptcp4@` or `mptcp6@` (3.1 and later).
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

/// Prefixes that name something only haproxy can set up.
fn other_family(prefix: &str, text: &str, context: &Context<'_>) -> Result<Target, Problem> {
    Ok(Target::Alone(match prefix {
        "rhttp" | "rev" => {
            "reverse HTTP takes connections from a server, there is no address to bind"
        }
        // An address with a path of its own may contain an @ too.
        _ if text.starts_with('/') => return path(text, context),
        _ => "bindonce does not know this family of addresses",
    }))
}

fn path(rest: &str, context: &Context<'_>) -> Result<Target, Problem> {
    // haproxy puts the prefix in front as it is, with no slash between.
    if context.prefix.len() + rest.len() > LONGEST_PATH {
        return Err(Problem::Bad(format!(
            "haproxy takes a path of at most {LONGEST_PATH} bytes, with the prefix of unix-bind"
        )));
    }
    let Ok(prefix) = std::str::from_utf8(context.prefix) else {
        return Ok(Target::Alone(NOT_TEXT));
    };
    let mut absolute = context.directory.join(format!("{prefix}{rest}"));
    if absolute.components().any(|part| part == Component::ParentDir) {
        absolute = without_parents(&absolute, context)?;
    }
    let Some(absolute) = absolute.to_str() else {
        return Ok(Target::Alone(NOT_TEXT));
    };
    match Address::unix(absolute) {
        Ok(address) => Ok(address.into()),
        Err(why) => Err(Problem::Bad(why.to_string())),
    }
}

/// The same path without `..`, which means what the file system makes of it: behind a symbolic link
/// it is not the directory above in the text.
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
    "something follows the digits of its port: haproxy 2.6 passes over that, later ones refuse it";

/// `80` or `8000-8010`. None where only a haproxy before 3.0 takes it.
fn ports_of(ports: &str) -> Result<Option<(u16, u16)>, Problem> {
    let number = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Problem::Bad(format!("{text:?} is not a port from 1 to 65535"))),
    };
    if ports.starts_with('+') {
        return Err(Problem::Bad(format!("{ports:?} does not begin with a digit")));
    }
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    // strtol() takes spaces and a sign in front of the second.
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

/// The first and the last port of a text, each up to what is no digit, as a haproxy before 3.0 reads them.
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
    // The characters that haproxy lets a host name have.
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

/// Whether an address is the number of a descriptor.
pub(super) fn is_descriptor(address: &[u8]) -> bool {
    let heads: [&[u8]; 3] = [b"stream+", b"dgram+", b"quic+"];
    let bare = heads.iter().find_map(|head| address.strip_prefix(*head)).unwrap_or(address);
    bare.starts_with(b"fd@") || bare.starts_with(b"sockpair@")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(text: &str, datagram: bool) -> Result<Target, Problem> {
        let resolve = |host: &str, _| match host {
            "localhost" => Ok("127.0.0.1".parse().expect("ip")),
            _ => Err(io::Error::other("no such host")),
        };
        let resolved = |_: &Path| Err(io::ErrorKind::NotFound.into());
        let context = Context {
            datagram,
            prefix: b"",
            directory: Path::new("/srv"),
            resolved: &resolved,
            resolve: &resolve,
        };
        read(text.as_bytes(), &context)
    }

    fn printed(text: &str, datagram: bool) -> String {
        match target(text, datagram) {
            Ok(Target::Listen(Wanted { first, last, mptcp })) => {
                let range = first.port().filter(|port| *port != last).map(|_| format!("-{last}"));
                let option = if mptcp { ",mptcp" } else { "" };
                format!("{first}{}{option}", range.unwrap_or_default())
            }
            Ok(Target::Descriptor(rest)) => format!("fd {}", String::from_utf8_lossy(&rest)),
            Ok(Target::Alone(reason)) => format!("alone: {reason}"),
            Err(Problem::Bad(reason)) => format!("bad: {reason}"),
            Err(Problem::Unresolved { host, .. }) => format!("unresolved: {host}"),
        }
    }

    #[test]
    fn every_prefix_comes_out_as_haproxy_takes_it() {
        for (text, expected) in [
            (":80", "0.0.0.0:80"),
            ("*:80", "0.0.0.0:80"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            (":::80", "[::]:80"),
            ("::1:80", "[::1]:80"),
            ("[::1]:80", "[::1]:80"),
            ("ipv6@:80", "[::]:80"),
            ("ipv6@*:80", "[::]:80"),
            ("ipv4@*:80", "0.0.0.0:80"),
            ("ip@:80", "0.0.0.0:80"),
            ("tcp6@::1:80", "[::1]:80"),
            ("stream+ipv4@:80", "0.0.0.0:80"),
            ("localhost:80", "127.0.0.1:80"),
            (":8000-8003", "0.0.0.0:8000-8003"),
            ("/run/a.sock", "unix@/run/a.sock"),
            ("/run/a@b", "unix@/run/a@b"),
            ("unix@/run/a.sock", "unix@/run/a.sock"),
            ("unix@a.sock", "unix@/srv/a.sock"),
            ("uxst@/run/a", "unix@/run/a"),
            ("abns@web", "abns@web"),
            ("abns@", "abns@"),
            ("abnsz@web", "abnsz@web"),
            ("mptcp@:80", "0.0.0.0:80,mptcp"),
            ("mptcp4@10.0.0.1:80-81", "10.0.0.1:80-81,mptcp"),
            ("mptcp6@:80", "[::]:80,mptcp"),
            ("fd@3", "fd 3"),
            ("stream+fd@3", "fd 3"),
            ("quic+fd@3", "fd 3"),
            ("quic4@:443", "quic4@0.0.0.0:443"),
            ("quic6@:443-445", "quic6@[::]:443-445"),
            ("quic+127.0.0.1:443", "quic4@127.0.0.1:443"),
            ("quic+ipv6@:443", "quic6@[::]:443"),
            ("quic+[::1]:443", "quic6@[::1]:443"),
            ("sockpair@3", "fd 3"),
            (":8080-+8082", "0.0.0.0:8080-8082"),
            (":8080-\t 8082", "0.0.0.0:8080-8082"),
            ("[localhost]:80", "127.0.0.1:80"),
            ("[10.0.0.1]:80", "10.0.0.1:80"),
        ] {
            assert_eq!(printed(text, false), expected, "{text}");
        }
        for (text, expected) in [
            (":514", "udp4@0.0.0.0:514"),
            ("udp@10.0.0.1:514", "udp4@10.0.0.1:514"),
            ("udp6@:514", "udp6@[::]:514"),
            ("dgram+:514", "udp4@0.0.0.0:514"),
        ] {
            assert_eq!(printed(text, true), expected, "{text}");
        }
    }

    #[test]
    fn what_only_haproxy_can_bind_is_left_to_it() {
        for text in [
            "quic@:443",
            "quic+/run/a",
            "quic+udp4@:443",
            "rhttp@s",
            "x@:80",
            // haproxy 2.6 takes these, 3.0 does not.
            ":80x",
            ":80.5",
            ":80 ",
            ":80-81-82",
        ] {
            assert!(printed(text, false).starts_with("alone: "), "{text}");
        }
        for text in ["/dev/log", "uxdg@/dev/log", "dgram+abns@x", "abnsz@x"] {
            assert!(printed(text, true).starts_with("alone: "), "{text}");
        }
    }

    #[test]
    fn what_haproxy_refuses_is_refused() {
        for text in ["[*]:80", "[]:80", "[:]:80", "ipv6@[*]:80"] {
            // In 2.6, 3.0 and 3.2 too: "invalid address: '[*]'".
            let said = format!("{:?}", target(text, false));
            assert!(said.contains("stands for no address"), "{text}: {said}");
        }
        for text in [
            "",
            "80",
            "10.0.0.1",
            "[::1]",
            ":",
            ":0",
            ":65536",
            ":http",
            ":-80",
            ":90-80",
            ":80-",
            ":+80",
            ":90-80x",
            ":0x",
            ":80-++81",
            ": 80",
            "[*]:80",
            "[a/b]:80",
            "[::1:80",
            "[]:80",
            "10.0.0.1]:80",
            "ipv4@[::]:80",
            "ipv6@10.0.0.1:80",
            "a b:80",
            "udp4@:80",
            "dgram+:80",
            "unix@",
            "ipv4@::1:80",
            "fe80::1%eth0:80",
        ] {
            assert!(printed(text, false).starts_with("bad: "), "{text}: {}", printed(text, false));
        }
        assert!(printed("tcp4@:80", true).starts_with("bad: "));
        assert_eq!(printed("nowhere.example:80", false), "unresolved: nowhere.example");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z@:\\[\\]0-9.*/%+-]{0,30}|.{0,20}", datagram: bool) {
            let _ = target(&text, datagram);
        }
    }
}
