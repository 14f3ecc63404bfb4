//! The target of a report: an address, service, listener or program.

use std::collections::BTreeSet;

use bindonce_core::address::Address;
use bindonce_haproxy::names::renamed;

use super::condition::{Absent, Condition};
use super::finding::Finding;
use super::kind::Severity;
use crate::facts::{Look, Mode, Socket};

/// The target of a report.
#[derive(Debug)]
pub(crate) enum Target {
    /// An address, with every address that takes connections for it.
    Address(Address),
    /// A service of the broker's, a listener, or a program, with its processes and sockets.
    Named {
        /// Its name.
        name: String,
        /// Its processes.
        pids: BTreeSet<i32>,
        /// The inodes of its sockets.
        inodes: BTreeSet<u64>,
    },
}

impl Target {
    /// Reads the user's text; None if it is neither an address nor a name that was seen.
    pub(crate) fn find(text: &str, look: &Look) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        let services = look.generations().filter(|(service, _)| *service == text);
        let services = services.map(|(_, known)| known.pid.cast_signed());
        let programs = look.processes.values().filter(|one| one.program == text).map(|one| one.pid);
        let pids: BTreeSet<i32> = services.chain(programs).collect();
        let listeners = look.broker.iter().flat_map(|broker| &broker.status.listeners);
        let named = listeners.filter(|listener| listener.name == text);
        let mut inodes: BTreeSet<u64> = named.map(|listener| listener.inode).collect();
        let processes = pids.iter().filter_map(|pid| look.processes.get(pid));
        inodes.extend(processes.flat_map(|one| one.activity.holds.iter().map(|(inode, _)| *inode)));
        (!pids.is_empty() || !inodes.is_empty()).then(|| Self::Named {
            name: text.to_owned(),
            pids,
            inodes,
        })
    }

    /// Whether a socket belongs to the target.
    pub(crate) fn has(&self, socket: &Socket) -> bool {
        match self {
            Self::Address(address) => covers(&socket.address, address),
            Self::Named { inodes, .. } => inodes.contains(&socket.inode),
        }
    }

    /// Whether a finding is about the target. Limits of the whole system concern every target;
    /// limits of a network namespace concern targets with a socket in it.
    pub(crate) fn concerns(&self, finding: &Finding, look: &Look) -> bool {
        if let Self::Named { name, .. } = self
            && finding.service.as_ref() == Some(name)
        {
            return true;
        }
        let mut sockets = look.sockets.iter().filter(|socket| self.has(socket));
        if finding.address.is_some() {
            return sockets.any(|socket| finding.concerns(&socket.address));
        }
        if finding.pids.is_empty() {
            return finding.network.is_none()
                || sockets.any(|one| look.network_name(Some(one.network)) == finding.network);
        }
        match self {
            Self::Named { pids, .. } => finding.pids.iter().any(|pid| pids.contains(pid)),
            Self::Address(_) => sockets.any(|socket| {
                look.holders(socket.inode).any(|process| finding.pids.contains(&process.pid))
            }),
        }
    }

    /// The finding that nothing listens on the target at all.
    pub(crate) fn absent(&self, look: &Look) -> Option<Finding> {
        let Self::Address(address) = self else {
            return None;
        };
        let found = look.sockets.iter().any(|one| one.mode != Mode::Bound && self.has(one));
        let absent = Condition::Absent(Absent { sockets: 0 });
        let finding = Finding::at(None, Severity::Error, absent);
        (!found).then(|| Finding { address: Some(address.clone()), ..finding })
    }
}

/// Whether a socket on `bound` receives traffic to `wanted`.
fn covers(bound: &Address, wanted: &Address) -> bool {
    match (bound, &wanted.as_seen()) {
        (Address::Tcp(bound), Address::Tcp(wanted))
        | (Address::Udp(bound), Address::Udp(wanted)) => {
            let any = bound.ip().is_unspecified() || wanted.ip().is_unspecified();
            bound.port() == wanted.port() && (any || bound.ip() == wanted.ip())
        }
        (Address::Unix(bound), Address::Unix(wanted)) => {
            bound == wanted || renamed(bound).is_some_and(|(path, _)| path == wanted)
        }
        (bound, wanted) => bound == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_path_is_met_under_its_own_and_its_temporary_name_only() {
        let covers = |bound: &str, wanted: &str| {
            covers(&Address::Unix(bound.to_owned()), &Address::Unix(wanted.to_owned()))
        };
        for bound in ["/run/web", "/run/web.812.tmp"] {
            assert!(covers(bound, "/run/web"), "{bound}");
        }
        for bound in
            ["/run/web2", "/run/web/x", "/run/web.sock", "/run/web..tmp", "/run/web.8.tmp2"]
        {
            assert!(!covers(bound, "/run/web"), "{bound}");
        }
    }
}
