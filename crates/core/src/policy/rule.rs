//! One rule: to whom, what, and on which addresses.

use super::{Pattern, Peer, Verb};
use crate::address::Address;
use crate::listener::ListenSpec;

/// What can be seen of the process that connected, beside the kernel's word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// The file that it executes.
    pub exe: Option<String>,
    /// Its control group, as a path from the root of the hierarchy.
    pub cgroup: Option<String>,
}

/// Conditions on who asks. All that are said must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Who {
    /// The effective user.
    pub uid: Option<u32>,
    /// The effective group, or a supplementary one.
    pub gid: Option<u32>,
    /// The file that the process executes.
    pub exe: Option<String>,
    /// The systemd unit that the process belongs to: the last part of its control group.
    pub unit: Option<String>,
    /// The control group of the process; may end in `*`.
    pub cgroup: Option<String>,
}

impl Who {
    fn is(&self, peer: Peer, facts: &Facts) -> bool {
        let cgroup = facts.cgroup.as_deref();
        let said = self.uid.is_some()
            || self.gid.is_some()
            || self.exe.is_some()
            || self.unit.is_some()
            || self.cgroup.is_some();
        said && self.uid.is_none_or(|uid| uid == peer.uid)
            && self.gid.is_none_or(|gid| gid == peer.gid || facts.groups.contains(&gid))
            && self.exe.as_ref().is_none_or(|exe| facts.exe.as_ref() == Some(exe))
            && self.unit.as_deref().is_none_or(|unit| {
                cgroup.and_then(|cgroup| cgroup.rsplit('/').next()) == Some(unit)
            })
            && self.cgroup.as_deref().is_none_or(|wanted| match wanted.strip_suffix('*') {
                Some(start) => cgroup.is_some_and(|cgroup| cgroup.starts_with(start)),
                None => cgroup == Some(wanted),
            })
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
    pub(super) fn needs_facts(&self) -> bool {
        let Who { gid, exe, unit, cgroup, .. } = &self.who;
        gid.is_some() || exe.is_some() || unit.is_some() || cgroup.is_some()
    }

    pub(super) fn allows(
        &self,
        peer: Peer,
        facts: &Facts,
        verb: Verb,
        subject: Option<&ListenSpec>,
    ) -> bool {
        let allowed =
            |allowed: &Verb| *allowed == verb || (*allowed == Verb::Bind && verb == Verb::Use);
        self.allow.iter().any(allowed)
            && self.who.is(peer, facts)
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
