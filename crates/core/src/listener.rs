//! Listeners: a name, an address and the options of a socket; and the text that asks for one
//! listener or for a range.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::address::Address;
use crate::error::Invalid;
use crate::name::{MAX_LEN, Name};
use crate::text::shown;

pub use crate::key::Key;
pub use crate::options::Options;

/// One listener as asked for: exactly one address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listener {
    /// The name that was given, if any.
    pub name: Option<Name>,
    /// The address it listens on.
    pub address: Address,
    /// How its socket is set up.
    pub options: Options,
}

impl Listener {
    /// A listener whose options fit its address.
    pub fn new(name: Option<Name>, address: Address, options: Options) -> Result<Self, Invalid> {
        options.check(&address)?;
        Ok(Self { name, address, options })
    }

    /// The key that identifies this listener among all others.
    pub fn key(&self) -> Key {
        Key::of(self.name.as_ref(), &self.address, &self.options)
    }

    /// The name on the wire: the given name, else the canonical text of the address with the
    /// options that belong to its key.
    pub fn label(&self) -> String {
        match &self.name {
            Some(name) => name.as_str().to_owned(),
            None if self.is_named_by_address() => self.address.to_string(),
            None => self.key().to_string(),
        }
    }

    /// Whether the name on the wire is the address alone when no name was given.
    pub fn is_named_by_address(&self) -> bool {
        let Options { v6only, interface, netns, .. } = &self.options;
        !v6only && interface.is_none() && netns.is_none()
    }

    /// Writes `[NAME=]ADDR[-PORT][,OPT]...`, with the last port of a range.
    fn write(&self, f: &mut fmt::Formatter<'_>, last_port: Option<u16>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}=")?;
        }
        write!(f, "{}", self.address)?;
        if let Some(last) = last_port {
            write!(f, "-{last}")?;
        }
        if !self.options.is_empty() {
            write!(f, ",{}", self.options)?;
        }
        Ok(())
    }
}

impl FromStr for Listener {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let spec: ListenSpec = text.parse()?;
        if spec.is_range() {
            return Err(Invalid::RangeHere(shown(text)));
        }
        Ok(Arc::unwrap_or_clone(spec.first))
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, None)
    }
}

/// A parsed `[NAME=]ADDR[,OPT]...`. ADDR may be a range of ports, which stands for many listeners.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenSpec {
    /// The listener at the first port of the range. Shared, so that a claim of thousands copies
    /// none.
    pub first: Arc<Listener>,
    /// The last port of a range; without a range the first port, or 0 if there is no port.
    pub last_port: u16,
}

impl ListenSpec {
    /// Whether this is a range of more than one listener.
    pub fn is_range(&self) -> bool {
        self.first.address.port().is_some_and(|first| self.last_port > first)
    }

    /// The number of listeners, at least 1.
    pub fn count(&self) -> usize {
        let first = self.first.address.port().unwrap_or(0);
        usize::from(self.last_port.saturating_sub(first)) + 1
    }

    /// Checks that the name of a range leaves room for the port.
    fn checked(self) -> Result<Self, Invalid> {
        match &self.first.name {
            Some(name) if self.is_range() && name.as_str().len() + 6 > MAX_LEN => {
                Err(Invalid::RangeName(name.as_str().to_owned()))
            }
            _ => Ok(self),
        }
    }

    /// The listeners in the order of their ports. A range named `web` gives `web-8000`, `web-8001`
    /// and so on.
    pub fn expand(&self) -> impl Iterator<Item = Listener> + '_ {
        self.expand_from(0).map(Arc::unwrap_or_clone)
    }

    /// The same without the first ones. Copies nothing for a single listener, the most common case.
    pub fn expand_from(&self, without: usize) -> impl Iterator<Item = Arc<Listener>> + '_ {
        let first = self.first.address.port().unwrap_or(0);
        let range = self.is_range();
        (first..=self.last_port.max(first)).skip(without).map(move |port| {
            if !range {
                return Arc::clone(&self.first);
            }
            // Never fails: parsing has checked that the name leaves room for the port.
            let name =
                self.first.name.as_ref().and_then(|name| format!("{name}-{port}").parse().ok());
            Arc::new(Listener {
                name,
                address: self.first.address.with_port(port),
                options: self.first.options.clone(),
            })
        })
    }
}

impl From<Listener> for ListenSpec {
    fn from(first: Listener) -> Self {
        Arc::new(first).into()
    }
}

impl From<Arc<Listener>> for ListenSpec {
    fn from(first: Arc<Listener>) -> Self {
        let last_port = first.address.port().unwrap_or(0);
        Self { first, last_port }
    }
}

impl FromStr for ListenSpec {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (place, options) = text.split_once(',').unwrap_or((text, ""));
        if place.len() < text.len() && options.is_empty() {
            return Err(Invalid::UnknownOption(String::new()));
        }
        let (name, place) = match place.split_once('=') {
            // A `=` after one of these is part of a path or an abstract name.
            Some((name, _)) if name.contains(['@', '/', ':']) => (None, place),
            Some((name, place)) => (Some(name.parse::<Name>()?), place),
            None => (None, place),
        };
        // `mptcp4@` is `tcp4@` with an option.
        let plain = place.strip_prefix("mp").filter(|plain| plain.starts_with("tcp"));
        let (address, last_port) = Address::parse_range(plain.unwrap_or(place))?;
        if options.is_empty() {
            let options = Options { mptcp: plain.is_some(), ..Options::default() };
            let first = Arc::new(Listener { name, address, options });
            return Self { first, last_port }.checked();
        }
        let mut said: Options = options.parse()?;
        said.mptcp |= plain.is_some();
        let first = Listener::new(name, address, said)?;
        // `v4v6` sets no field of the options, so check the text.
        if options.split(',').any(|option| option == "v4v6")
            && !first.address.ip().is_some_and(|ip| ip.is_ipv6())
        {
            return Err(Invalid::OptionHere {
                option: "v4v6",
                address: first.address.to_string(),
                why: "it is for IPv6 addresses",
            });
        }
        Self { first: Arc::new(first), last_port }.checked()
    }
}

impl fmt::Display for ListenSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.write(f, self.is_range().then_some(self.last_port))
    }
}

/// How a request names listeners: by address, to be bound if needed, or by the bare name of a held
/// listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The held listener with this name.
    Named(Name),
    /// Listeners by address; a claim binds those that are not held.
    Listen(ListenSpec),
}

impl FromStr for Wanted {
    type Err = Invalid;

    /// A text that is a valid [`Name`] is a name; every other text is `[NAME=]ADDR[,OPT]...`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        // Most texts are addresses: do not build an error from each of them first.
        let is_address = |byte: u8| matches!(byte, b'=' | b':' | b'@' | b'/');
        if !text.bytes().any(is_address) {
            if let Ok(name) = text.parse::<Name>() {
                return Ok(Self::Named(name));
            }
        }
        text.parse().map(Self::Listen)
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(f),
            Self::Listen(spec) => spec.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_ranges_and_options() {
        let spec: ListenSpec = "web=:8000-8002,backlog=16".parse().expect("spec");
        assert_eq!(spec.count(), 3);
        let all: Vec<String> = spec.expand().map(|listener| listener.to_string()).collect();
        assert_eq!(
            all,
            [
                "web-8000=0.0.0.0:8000,backlog=16",
                "web-8001=0.0.0.0:8001,backlog=16",
                "web-8002=0.0.0.0:8002,backlog=16",
            ]
        );
    }

    #[test]
    fn multipath_tcp_is_an_option_of_tcp() {
        for (text, canonical) in [
            ("web=mptcp4@:80", "web=0.0.0.0:80,mptcp"),
            ("mptcp@[::1]:80,v6only", "[::1]:80,v6only,mptcp"),
            ("mptcp6@:80-81", "[::]:80-81,mptcp"),
            (":80,mptcp", "0.0.0.0:80,mptcp"),
        ] {
            let spec: ListenSpec = text.parse().expect(text);
            assert_eq!(spec.to_string(), canonical);
            assert_eq!(canonical.parse(), Ok(spec));
        }
        for text in ["mptcp4@[::1]:80", "mtcp4@:80", "mptcp@/run/a", "mptcp5@:80"] {
            assert!(text.parse::<ListenSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_equals_sign_in_a_path_is_no_name() {
        for text in ["unix@/run/a=b", "web=unix@/run/a=b,mode=0600,user=root,group=0", "abns@a=b"] {
            assert_eq!(text.parse::<ListenSpec>().expect(text).to_string(), text);
        }
        assert_eq!("/a=b".parse::<ListenSpec>().expect("path").to_string(), "unix@/a=b");
    }

    #[test]
    fn refuses_what_it_cannot_mean() {
        for (text, part) in [
            ("9=:80", "not a name"),
            ("=:80", "not a name"),
            ("web=", "missing"),
            (":80,", "not an option"),
            (":80,v4v6", "IPv6"),
            ("web", "no port"),
        ] {
            let error = text.parse::<ListenSpec>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let long = "a".repeat(60);
        assert!(format!("{long}=:80").parse::<ListenSpec>().is_ok());
        assert!(format!("{long}=:80-81").parse::<ListenSpec>().is_err());
        assert!("web=:80-81".parse::<Listener>().is_err());
    }

    #[test]
    fn a_bare_name_is_a_held_listener() {
        let name = |text: &str| matches!(text.parse::<Wanted>(), Ok(Wanted::Named(_)));
        assert!(name("web") && name("web-8000") && !name("80") && !name("web=:80"));
        assert_eq!("web".parse::<Wanted>().expect("name").to_string(), "web");
    }
}
