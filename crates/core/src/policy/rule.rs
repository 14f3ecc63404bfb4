//! One rule: to whom, what, and on which addresses.

use super::{Pattern, Peer, Verb};
use crate::address::Address;
use crate::listener::ListenSpec;

/// Conditions on who asks. All that are said must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Who {
    /// The effective user.
    pub uid: Option<u32>,
    /// The effective group, or a supplementary one.
    pub gid: Option<u32>,
}

impl Who {
    fn is(&self, peer: Peer, groups: &[u32]) -> bool {
        let said = self.uid.is_some() || self.gid.is_some();
        let known = |id: u32| id != Peer::UNKNOWN;
        said && self.uid.is_none_or(|uid| known(uid) && uid == peer.uid)
            && self.gid.is_none_or(|gid| known(gid) && (gid == peer.gid || groups.contains(&gid)))
    }
}

/// Allows some verbs to some processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// To whom. Without any condition, to nobody.
    pub who: Who,
    /// What.
    pub allow: Vec<Verb>,
    /// On which addresses; none means on all.
    pub addresses: Vec<Pattern>,
}

impl Rule {
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

/// The narrowest pattern for what was asked.
pub(super) fn addresses(spec: &ListenSpec) -> String {
    let address = &spec.first.address;
    match address {
        // Both families: no other pattern contains it.
        Address::Tcp(at) | Address::Udp(at)
            if at.ip().is_ipv6() && at.ip().is_unspecified() && !spec.first.options.v6only =>
        {
            let udp = if matches!(address, Address::Udp(_)) { "udp@" } else { "" };
            format!("{udp}*:{}{}", at.port(), range(spec))
        }
        Address::Udp(at) => format!("udp@{at}{}", range(spec)),
        Address::Tcp(at) => format!("{at}{}", range(spec)),
        Address::Unix(_) | Address::Abstract(_) => address.to_string(),
    }
}

fn range(spec: &ListenSpec) -> String {
    if spec.is_range() { format!("-{}", spec.last_port) } else { String::new() }
}
