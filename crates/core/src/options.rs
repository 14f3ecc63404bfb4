//! The options of a listener's socket, as written after its address.
//!
//! socket(7), ip(7), ipv6(7) and unix(7) describe their effect. The words are those of haproxy's
//! `bind` line, except `freebind` (haproxy's `transparent` sets it too), `blocking`, `mptcp`
//! (haproxy's `mptcp@`), and `interface=` and `netns=` (haproxy's `namespace`), which take a value
//! after `=` here.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::address::Address;
use crate::error::Invalid;
use crate::text::shown;

/// The socket options after an address. `None` and `false` mean "not given": the broker's default
/// applies to a new listener, and any value matches a held listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Options {
    /// Length of the accept queue; the default is the system's somaxconn.
    pub backlog: Option<u32>,
    /// IPv6 only (`v6only`), or both families (`v4v6`, the default) on an IPv6 wildcard.
    pub v6only: bool,
    /// Bind to this network device (SO_BINDTODEVICE).
    pub interface: Option<String>,
    /// Accept for addresses that are not local (IP_TRANSPARENT).
    pub transparent: bool,
    /// Bind an address that does not exist yet (IP_FREEBIND).
    pub freebind: bool,
    /// accept(2) waits for a connection (no O_NONBLOCK), for programs that block in it.
    pub blocking: bool,
    /// Multipath TCP (IPPROTO_MPTCP), which accepts plain TCP clients too. `mptcp@`, `mptcp4@` and
    /// `mptcp6@` before the address set it too.
    pub mptcp: bool,
    /// Network namespace by its name under /run/netns.
    pub netns: Option<String>,
    /// Permission bits of a UNIX path, as in `mode=0660`.
    pub mode: Option<u32>,
    /// Owner of a UNIX path, a name or a number.
    pub user: Option<String>,
    /// Group of a UNIX path, a name or a number.
    pub group: Option<String>,
}

impl Options {
    /// Whether no option was given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks every value, and that every option applies to `address`.
    pub fn check(&self, address: &Address) -> Result<(), Invalid> {
        let refuse =
            |option, why| Err(Invalid::OptionHere { option, address: address.to_string(), why });
        self.check_values()?;
        let ip = address.ip();
        if self.v6only {
            match ip {
                Some(SocketAddr::V6(ip)) if ip.ip().to_ipv4_mapped().is_some() => {
                    return refuse("v6only", "an IPv4-mapped address is IPv4 by nature");
                }
                Some(SocketAddr::V6(_)) => {}
                _ => return refuse("v6only", "it is for IPv6 addresses"),
            }
        }
        if self.mptcp && !matches!(address, Address::Tcp(_)) {
            return refuse("mptcp", "it is for TCP");
        }
        if self.backlog.is_some() && !address.listens() {
            return refuse("backlog", "a UDP socket has no accept queue");
        }
        if ip.is_none() {
            for (option, present) in [
                ("interface", self.interface.is_some()),
                ("transparent", self.transparent),
                ("freebind", self.freebind),
            ] {
                if present {
                    return refuse(option, "it is for IP addresses");
                }
            }
        }
        if self.netns.is_some() && matches!(address, Address::Unix(_)) {
            return refuse("netns", "a path belongs to the file system, not to a network");
        }
        if !matches!(address, Address::Unix(_)) {
            for (option, present) in [
                ("mode", self.mode.is_some()),
                ("user", self.user.is_some()),
                ("group", self.group.is_some()),
            ] {
                if present {
                    return refuse(option, "it is for UNIX paths");
                }
            }
        }
        Ok(())
    }

    fn check_values(&self) -> Result<(), Invalid> {
        let refuse = |option, value: &str, why| {
            Err(Invalid::OptionValue { option, value: shown(value), why })
        };
        match self.backlog {
            // listen(2) takes an int.
            Some(backlog) if backlog == 0 || backlog > i32::MAX as u32 => {
                return refuse("backlog", &backlog.to_string(), "a number from 1 to 2147483647");
            }
            _ => {}
        }
        if let Some(mode) = self.mode {
            if mode > 0o7777 {
                return refuse("mode", &format!("{mode:o}"), "octal permission bits, at most 7777");
            }
        }
        // IFNAMSIZ is 16 with its NUL; the kernel's dev_valid_name gives the rest.
        if let Some(device) = &self.interface {
            if !word(device) || device.len() > 15 || device.contains(':') {
                return refuse(
                    "interface",
                    device,
                    "a network device has 1 to 15 bytes, none special",
                );
            }
        }
        if let Some(netns) = &self.netns {
            if !word(netns) || netns.len() > 255 {
                return refuse("netns", netns, "a name as `ip netns list` shows it");
            }
        }
        for (option, value) in [("user", &self.user), ("group", &self.group)] {
            if let Some(value) = value {
                if !account(value) || value.len() > 255 {
                    return refuse(option, value, "a name or a number");
                }
            }
        }
        Ok(())
    }

    /// Reads one option. `present` collects the names seen, to refuse a second one.
    fn read(&mut self, option: &str, present: &mut Vec<&'static str>) -> Result<(), Invalid> {
        let (word, value) = match option.split_once('=') {
            Some((word, value)) => (word, Some(value)),
            None => (option, None),
        };
        let Some(&name) = NAMES.iter().find(|name| **name == word) else {
            return Err(Invalid::UnknownOption(shown(option)));
        };
        let shape = |problem| Err(Invalid::OptionShape { option: name, problem });
        if present.contains(&name) {
            return shape("is given twice");
        }
        if matches!(name, "v6only" | "v4v6")
            && present.iter().any(|present| present.starts_with('v'))
        {
            return shape("contradicts the other: v6only is IPv6 alone, v4v6 both");
        }
        present.push(name);
        let flags = ["v6only", "v4v6", "transparent", "freebind", "blocking", "mptcp"];
        let flag = flags.contains(&name);
        let value = match value {
            None if !flag => return shape("needs a value, as in backlog=4096"),
            Some(_) if flag => return shape("takes no value"),
            value => value.unwrap_or_default(),
        };
        let number = |digits: &str, radix, why| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = if plain { u32::from_str_radix(digits, radix).ok() } else { None };
            number.ok_or_else(|| Invalid::OptionValue { option: name, value: shown(digits), why })
        };
        match name {
            "backlog" => self.backlog = Some(number(value, 10, "a number from 1 to 2147483647")?),
            "v6only" => self.v6only = true,
            "transparent" => self.transparent = true,
            "freebind" => self.freebind = true,
            "blocking" => self.blocking = true,
            "mptcp" => self.mptcp = true,
            "interface" => self.interface = Some(value.to_owned()),
            "netns" => self.netns = Some(value.to_owned()),
            "mode" => {
                self.mode = Some(number(value, 8, "octal permission bits, at most 7777")?);
            }
            "user" => self.user = Some(value.to_owned()),
            "group" => self.group = Some(value.to_owned()),
            // v4v6, the default.
            _ => {}
        }
        Ok(())
    }
}

const NAMES: [&str; 12] = [
    "backlog",
    "v6only",
    "v4v6",
    "interface",
    "transparent",
    "freebind",
    "blocking",
    "mptcp",
    "netns",
    "mode",
    "user",
    "group",
];

/// A value that is one component of a path and fits in a list of options.
fn word(text: &str) -> bool {
    let plain = |c: char| !c.is_control() && !c.is_whitespace() && c != ',' && c != '/';
    !text.is_empty() && text != "." && text != ".." && text.chars().all(plain)
}

/// A name of a user or group, which a directory service may give blanks (`domain users`).
fn account(text: &str) -> bool {
    let plain = |c: char| !c.is_control() && c != ',' && c != '/';
    !text.is_empty() && text.trim() == text && text.chars().all(plain)
}

impl FromStr for Options {
    type Err = Invalid;

    /// Reads options separated by commas; an empty text has none. [`Options::check`] tells whether
    /// they fit an address.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut options = Self::default();
        let mut present = Vec::new();
        if !text.is_empty() {
            for option in text.split(',') {
                options.read(option, &mut present)?;
            }
        }
        options.check_values()?;
        Ok(options)
    }
}

impl fmt::Display for Options {
    /// The options that are set, separated by commas, in one fixed order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        let mut put = |present: bool, text: fmt::Arguments<'_>| {
            if present {
                write!(f, "{comma}{text}")?;
                comma = ",";
            }
            Ok(())
        };
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        put(self.v6only, format_args!("v6only"))?;
        put(self.mptcp, format_args!("mptcp"))?;
        put(self.interface.is_some(), format_args!("interface={}", text(&self.interface)))?;
        put(self.netns.is_some(), format_args!("netns={}", text(&self.netns)))?;
        put(self.backlog.is_some(), format_args!("backlog={}", self.backlog.unwrap_or(0)))?;
        put(self.transparent, format_args!("transparent"))?;
        put(self.freebind, format_args!("freebind"))?;
        put(self.blocking, format_args!("blocking"))?;
        put(self.mode.is_some(), format_args!("mode={:04o}", self.mode.unwrap_or(0)))?;
        put(self.user.is_some(), format_args!("user={}", text(&self.user)))?;
        put(self.group.is_some(), format_args!("group={}", text(&self.group)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_means_nothing_here_is_an_error_that_says_so() {
        for (address, option, part) in [
            ("10.0.0.1:80", "v6only", "IPv6 addresses"),
            ("[::ffff:10.0.0.1]:80", "v6only", "IPv4-mapped"),
            ("udp@:53", "backlog=10", "no accept queue"),
            ("udp@:53", "mptcp", "for TCP"),
            ("/run/a", "interface=eth0", "IP addresses"),
            ("abns@a", "transparent", "IP addresses"),
            ("/run/a", "freebind", "IP addresses"),
            ("/run/a", "netns=blue", "file system"),
            (":80", "mode=0660", "UNIX paths"),
            ("abns@a", "user=root", "UNIX paths"),
        ] {
            let options: Options = option.parse().expect(option);
            let address: Address = address.parse().expect(address);
            let error = options.check(&address).expect_err(option).to_string();
            assert!(error.contains(part) && error.contains(&address.to_string()), "{error}");
        }
    }

    #[test]
    fn a_group_of_a_directory_service_may_have_a_blank_in_its_name() {
        let text = "mode=0660,user=DOMAIN\\joe,group=domain users";
        let options: Options = text.parse().expect(text);
        assert_eq!(
            (options.group.as_deref(), options.to_string()),
            (Some("domain users"), text.to_owned())
        );
    }

    #[test]
    fn refuses_malformed_options() {
        for (text, part) in [
            ("nodelay", "not an option"),
            (",", "not an option"),
            ("backlog", "needs a value"),
            ("backlog=", "not a value"),
            ("backlog=0", "1 to"),
            ("backlog=+1", "not a value"),
            ("backlog=4294967296", "not a value"),
            ("v6only=1", "takes no value"),
            ("blocking=1", "takes no value"),
            ("v6only,v4v6", "contradicts"),
            ("backlog=1,backlog=1", "twice"),
            ("mode=0999", "octal"),
            ("mode=17777", "octal"),
            ("interface=abcdefghijklmnop", "15 bytes"),
            ("netns=..", "ip netns"),
            ("user=a/b", "a name or"),
            ("group= a", "a name or"),
            ("group=", "a name or"),
        ] {
            let error = text.parse::<Options>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
