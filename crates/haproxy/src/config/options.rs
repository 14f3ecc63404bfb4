//! The options of a `bind` line that belong to the socket, and so to the broker.
//!
//! The words stay on the line. On a line with `fd@` haproxy parses and checks them and otherwise
//! ignores them (seen with 2.6.12 for `interface`, `transparent`, `v6only`, `v4v6`, `namespace`,
//! `backlog`, `mode`, `user`, `group`, `uid` and `gid`), since each concerns the creation of a
//! socket that already exists. Everything else on the line (ssl, alpn, maxconn, thread,
//! accept-proxy, tcp-ut, defer-accept ...) haproxy applies to the inherited socket.

use std::net::SocketAddr;

use bindonce_core::address::Address;
use bindonce_core::listener::Options;

/// Options as set on one line, or for many lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BindOptions {
    pub(super) backlog: Option<u32>,
    pub(super) v6only: bool,
    pub(super) v4v6: bool,
    pub(super) interface: Option<String>,
    pub(super) transparent: bool,
    pub(super) namespace: Option<String>,
    pub(super) mode: Option<u32>,
    pub(super) user: Option<String>,
    pub(super) group: Option<String>,
    /// Whether the line is for some of haproxy's threads or processes only.
    pub(super) threads: bool,
}

/// The bind options with one value (section 5.1 of the manual, 2.6 to 3.3). All of them are needed
/// to tell an option from a value that looks like one.
const WITH_VALUE: &[&[u8]] = &[
    b"accept-netscaler-cip",
    b"alpn",
    b"backlog",
    b"ca-file",
    b"ca-ignore-err",
    b"ca-sign-file",
    b"ca-sign-pass",
    b"ca-verify-file",
    b"cc",
    b"ciphers",
    b"ciphersuites",
    b"client-sigalgs",
    b"crl-file",
    b"crt",
    b"crt-ignore-err",
    b"crt-list",
    b"curves",
    b"default-crt",
    b"ecdhe",
    b"ech",
    b"expose-fd",
    b"gid",
    b"group",
    b"guid-prefix",
    b"id",
    b"idle-ping",
    b"interface",
    b"ktls",
    b"label",
    b"level",
    b"maxconn",
    b"mode",
    b"mss",
    b"name",
    b"namespace",
    b"nbconn",
    b"nice",
    b"npn",
    b"ocsp-update",
    b"process",
    b"proto",
    b"quic-cc-algo",
    b"quic-socket",
    b"severity-output",
    b"shards",
    b"sigalgs",
    b"ssl-max-ver",
    b"ssl-min-ver",
    b"tcp-md5sig",
    b"tcp-ss",
    b"tcp-ut",
    b"thread",
    b"tls-ticket-keys",
    b"uid",
    b"user",
    b"verify",
];

impl BindOptions {
    /// Reads the words after the address. Values that haproxy refuses are left for haproxy to
    /// report.
    pub(super) fn read<'a>(words: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut read = Self::default();
        // haproxy ignores every word after an empty one.
        let mut words = words.into_iter().take_while(|word| !word.is_empty());
        while let Some(word) = words.next() {
            let value =
                if WITH_VALUE.contains(&word) { words.next().unwrap_or_default() } else { b"" };
            read.take(word, value);
        }
        read
    }

    /// Takes one option. False for a word that does not concern the socket.
    pub(super) fn take(&mut self, word: &[u8], value: &[u8]) -> bool {
        let text =
            || std::str::from_utf8(value).ok().filter(|text| !text.is_empty()).map(str::to_owned);
        match word {
            // 0 means haproxy's default.
            b"backlog" => self.backlog = number(value, 10).filter(|&n| n > 0),
            // chmod(2) ignores higher bits. 0 means the umask, also where unix-bind gives a mode.
            b"mode" => self.mode = number(value, 8).map(|n| n & 0o7777),
            b"v6only" => self.v6only = true,
            b"v4v6" => self.v4v6 = true,
            b"transparent" => self.transparent = true,
            b"interface" => self.interface = text().map(as_the_kernel_reads_it),
            b"namespace" => self.namespace = text(),
            b"user" => self.user = text(),
            b"group" => self.group = text(),
            b"uid" => self.user = id(value),
            b"gid" => self.group = id(value),
            b"thread" | b"process" => self.threads = true,
            _ => return false,
        }
        true
    }

    /// These options, with those of `other` where an option is not set. As in haproxy, `v6only` is
    /// stronger than `v4v6`, wherever each is.
    pub(super) fn or(&self, other: &Self) -> Self {
        let text = |mine: &Option<String>, theirs: &Option<String>| mine.clone().or(theirs.clone());
        Self {
            backlog: self.backlog.or(other.backlog),
            v6only: self.v6only || other.v6only,
            v4v6: self.v4v6 || other.v4v6,
            interface: text(&self.interface, &other.interface),
            transparent: self.transparent || other.transparent,
            namespace: text(&self.namespace, &other.namespace),
            mode: self.mode.or(other.mode),
            user: text(&self.user, &other.user),
            group: text(&self.group, &other.group),
            threads: self.threads || other.threads,
        }
    }

    /// The options of a listener on `address`. As in haproxy, an option without meaning for that
    /// kind of address is ignored.
    pub(super) fn on(&self, address: &Address) -> Options {
        let ip = address.ip();
        let dual = matches!(ip, Some(SocketAddr::V6(ip)) if ip.ip().to_ipv4_mapped().is_none());
        let is_path = matches!(address, Address::Unix(_));
        let path = |value: &Option<String>| value.clone().filter(|_| is_path);
        Options {
            backlog: self.backlog.filter(|_| address.listens()),
            v6only: self.v6only && dual,
            interface: self.interface.clone().filter(|_| ip.is_some()),
            transparent: self.transparent && ip.is_some(),
            freebind: false,
            blocking: false,
            mptcp: false,
            netns: self.namespace.clone().filter(|_| !is_path),
            mode: self.mode.filter(|&mode| is_path && mode > 0),
            user: path(&self.user),
            group: path(&self.group),
        }
    }
}

/// The name of a network device, cut off as the kernel does: setsockopt(2) ignores everything after
/// the first 15 bytes (sock_setbindtodevice() in net/core/sock.c).
fn as_the_kernel_reads_it(mut name: String) -> String {
    if name.len() > 15 {
        let end = (0..=15).rev().find(|end| name.is_char_boundary(*end));
        name.truncate(end.unwrap_or_default());
    }
    name
}

/// The number at the beginning of a text, as C's strtol() reads it.
fn number(text: &[u8], radix: u32) -> Option<u32> {
    let digits = std::str::from_utf8(text).ok()?.trim_start();
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    u32::from_str_radix(&digits[..end], radix).ok()
}

/// The id of a user or group as C's atol() reads it: 0 without digits. None for -1, which changes
/// nothing.
fn id(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).unwrap_or_default().trim_start();
    let digits = text.trim_start_matches(['-', '+']);
    let is_sign = text.len() - digits.len() <= 1;
    let id = number(digits.as_bytes(), 10).filter(|_| is_sign).unwrap_or_default();
    let id = if text.starts_with('-') { id.wrapping_neg() } else { id };
    (id != u32::MAX).then(|| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_a_number_whatever_it_looks_like() {
        let uid = |text: &str| read(&format!("uid {text}")).user;
        for (text, expected) in
            [("33", "33"), ("haproxy", "0"), ("33x", "33"), ("+7", "7"), ("-2", "4294967294")]
        {
            assert_eq!(uid(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(uid("-1"), None);
        assert_eq!(read("gid www").group.as_deref(), Some("0"));
        assert_eq!(read("group www").group.as_deref(), Some("www"));
    }

    fn read(line: &str) -> BindOptions {
        BindOptions::read(line.split(' ').map(str::as_bytes))
    }

    #[test]
    fn options_of_the_socket_are_found_among_the_others() {
        let read = read(
            "ssl crt interface name backlog v6only interface eth1 backlog 100 mode 0660 uid 33 group www namespace blue",
        );
        assert_eq!(
            read,
            BindOptions {
                backlog: Some(100),
                v6only: true,
                interface: Some("eth1".into()),
                namespace: Some("blue".into()),
                mode: Some(0o660),
                user: Some("33".into()),
                group: Some("www".into()),
                ..BindOptions::default()
            }
        );
    }

    #[test]
    fn each_kind_of_address_takes_its_own() {
        let read =
            read("backlog 5 v6only interface eth1 transparent mode 600 user www namespace blue");
        let on = |text: &str| read.on(&text.parse().expect(text)).to_string();
        assert_eq!(on("10.0.0.1:80"), "interface=eth1,netns=blue,backlog=5,transparent");
        assert_eq!(on("[::]:80"), "v6only,interface=eth1,netns=blue,backlog=5,transparent");
        assert_eq!(on("udp@:80"), "interface=eth1,netns=blue,transparent");
        assert_eq!(on("/run/a"), "backlog=5,mode=0600,user=www");
        assert_eq!(on("abns@a"), "netns=blue,backlog=5");
    }

    #[test]
    fn a_line_adds_to_the_defaults_of_its_section() {
        let defaults = read("backlog 5 v6only interface eth0");
        assert_eq!(read("backlog 7 v4v6").or(&defaults).backlog, Some(7));
        assert!(read("v4v6").or(&defaults).v6only);
        assert!(!read("v4v6").or(&read("backlog 5")).v6only);
        assert_eq!(read("ssl").or(&defaults).interface.as_deref(), Some("eth0"));
        let path = "/run/a".parse().expect("a path");
        let unix_bind = read("mode 666");
        assert_eq!(read("ssl").or(&unix_bind).on(&path).mode, Some(0o666));
        assert_eq!(read("mode 0").or(&unix_bind).on(&path).mode, None);
    }
}
