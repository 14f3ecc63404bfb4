//! One rule: who may do what, on which addresses.

use std::str::FromStr;

use super::pattern::Pattern;
use super::peer::Peer;
use super::verb::Verb;
use crate::address::Address;
use crate::listener::ListenSpec;
use crate::name::Name;

/// Conditions on the peer. All that are given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Who {
    /// The effective user.
    pub uid: Option<u32>,
    /// The effective group, or a supplementary one.
    pub gid: Option<u32>,
}

impl Who {
    fn is(&self, peer: Peer, groups: &[u32]) -> bool {
        let by_user = self.uid.is_some() || self.gid.is_some();
        let known = |id: u32| id != Peer::UNKNOWN;
        by_user
            && self.uid.is_none_or(|uid| known(uid) && uid == peer.uid)
            && self.gid.is_none_or(|gid| known(gid) && (gid == peer.gid || groups.contains(&gid)))
    }
}

/// A set of names of listeners or services: one name, a prefix (`app-*`), or all (`*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    start: String,
    open: bool,
}

/// A text that is not a set of names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a set of names: write a name, or a prefix followed by `*`")]
pub struct InvalidNames(pub String);

impl Names {
    /// Whether a name is in the set.
    pub fn contains(&self, name: &Name) -> bool {
        let name = name.as_str();
        if self.open { name.starts_with(&self.start) } else { name == self.start }
    }
}

impl FromStr for Names {
    type Err = InvalidNames;

    fn from_str(text: &str) -> Result<Self, InvalidNames> {
        let (start, open) = match text.strip_suffix('*') {
            Some(start) => (start, true),
            None => (text, false),
        };
        if (open && start.is_empty()) || start.parse::<Name>().is_ok() {
            return Ok(Self { start: start.to_owned(), open });
        }
        Err(InvalidNames(text.chars().take(120).collect()))
    }
}

/// Allows some peers some verbs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The peers it applies to. Without any condition, none.
    pub who: Who,
    /// The verbs it allows.
    pub allow: Vec<Verb>,
    /// The addresses it covers; empty means all.
    pub addresses: Vec<Pattern>,
    /// The names that the peer may give to listeners; empty means none.
    pub names: Vec<Names>,
    /// The services that the peer may join besides those of its own user; empty means none.
    pub services: Vec<Names>,
}

impl Rule {
    /// Whether it allows `peer` a name from one of its lists.
    pub(super) fn allows_name(
        &self,
        peer: Peer,
        groups: &[u32],
        list: fn(&Self) -> &[Names],
        name: &Name,
    ) -> bool {
        self.who.is(peer, groups) && list(self).iter().any(|names| names.contains(name))
    }

    pub(super) fn allows(
        &self,
        peer: Peer,
        groups: &[u32],
        verb: Verb,
        subject: Option<&ListenSpec>,
    ) -> bool {
        let allowed =
            |allowed: &Verb| *allowed == verb || (*allowed == Verb::Bind && verb == Verb::Use);
        self.allow.iter().any(allowed)
            && self.who.is(peer, groups)
            && subject.is_none_or(|spec| {
                self.addresses.is_empty()
                    || self.addresses.iter().any(|pattern| pattern.contains(spec))
            })
    }
}

/// The narrowest pattern that contains `spec`.
pub(super) fn addresses(spec: &ListenSpec) -> String {
    let address = &spec.first.address;
    match address {
        // A dual-stack wildcard: of the patterns for a port, only `*` contains it.
        Address::Tcp(at) | Address::Udp(at) | Address::Quic(at)
            if at.ip().is_ipv6() && at.ip().is_unspecified() && !spec.first.options.v6only =>
        {
            format!("{}*:{}{}", protocol(address), at.port(), range(spec))
        }
        Address::Tcp(at) | Address::Udp(at) | Address::Quic(at) => {
            format!("{}{at}{}", protocol(address), range(spec))
        }
        _ => address.to_string(),
    }
}

fn protocol(address: &Address) -> &'static str {
    match address {
        Address::Udp(_) => "udp@",
        Address::Quic(_) => "quic@",
        _ => "",
    }
}

fn range(spec: &ListenSpec) -> String {
    if spec.is_range() { format!("-{}", spec.last_port) } else { String::new() }
}
