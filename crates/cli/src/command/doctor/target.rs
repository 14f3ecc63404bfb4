//! The address or the service that a person asks about.

use std::collections::BTreeSet;

use bindonce_core::address::Address;
use bindonce_core::diagnosis::{Finding, Kind, Look, Mode, Severity, Socket};

/// What findings are looked for.
#[derive(Debug)]
pub(super) enum Target {
    /// An address, and every one that takes connections for it.
    Address(Address),
    /// A service of the broker's, a listener's name, or a program, with its processes and sockets.
    Named { name: String, pids: BTreeSet<i32>, inodes: BTreeSet<u64> },
}

impl Target {
    /// Reads what was typed.
    pub(super) fn find(text: &str, look: &Look) -> anyhow::Result<Self> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let services = look.generations.iter().filter(|one| one.service == text).map(|one| one.pid);
        let programs = look.processes.values().filter(|one| one.program == text).map(|one| one.pid);
        let pids: BTreeSet<i32> = services.chain(programs).collect();
        let mut inodes: BTreeSet<u64> =
            look.held.iter().filter(|held| held.name == text).map(|held| held.inode).collect();
        let processes = look.processes.values().filter(|process| pids.contains(&process.pid));
        inodes.extend(processes.flat_map(|process| process.holds.iter().copied()));
        if pids.is_empty() && inodes.is_empty() {
            anyhow::bail!(
                "{text:?} is neither an address nor a service, a listener or a program that is seen here; `bindonce doctor` without it looks at everything"
            );
        }
        Ok(Self::Named { name: text.to_owned(), pids, inodes })
    }

    /// Whether a socket is meant.
    pub(super) fn has(&self, socket: &Socket) -> bool {
        match self {
            Self::Address(address) => covers(&socket.address, address),
            Self::Named { inodes, .. } => inodes.contains(&socket.inode),
        }
    }

    /// Whether a finding is about it. Limits of the whole system concern everything, those of a
    /// network namespace what is in it.
    pub(super) fn concerns(&self, finding: &Finding, look: &Look) -> bool {
        let mut sockets = look.sockets.iter().filter(|socket| self.has(socket));
        let ours = |pid: &i32| match self {
            Self::Address(_) => look
                .sockets
                .iter()
                .filter(|socket| self.has(socket))
                .any(|socket| look.holders(socket.inode).any(|process| process.pid == *pid)),
            Self::Named { pids, .. } => pids.contains(pid),
        };
        if let Self::Named { name, .. } = self
            && finding.service.as_ref() == Some(name)
        {
            return true;
        }
        match &finding.address {
            Some(_) => sockets.any(|socket| finding.concerns(&socket.address)),
            None if finding.culprits.is_empty() => {
                finding.network.is_none()
                    || sockets.any(|socket| look.network_name(socket) == finding.network)
            }
            None => finding.culprits.iter().any(ours),
        }
    }

    /// The finding that nothing listens there at all.
    pub(super) fn missing(&self, look: &Look) -> Option<Finding> {
        let Self::Address(address) = self else {
            return None;
        };
        let found = look.sockets.iter().any(|one| one.mode != Mode::Bound && self.has(one));
        (!found).then(|| Finding {
            kind: Kind::Unserved,
            severity: Severity::Error,
            network: None,
            address: Some(address.clone()),
            also: Vec::new(),
            service: None,
            culprits: Vec::new(),
            summary: "nothing listens here: clients are refused".to_owned(),
            evidence: vec![("sockets", 0_usize.into())],
            cause: format!(
                "no socket on this address, or on one that covers it, in {} network namespaces",
                look.networks.len()
            ),
            remedy: vec![
                "bindonce list   # is it held under another address? else start what serves it"
                    .to_owned(),
            ],
        })
    }
}

/// Whether a socket on `bound` takes what is sent to `wanted`.
fn covers(bound: &Address, wanted: &Address) -> bool {
    match (bound, wanted) {
        (Address::Tcp(bound), Address::Tcp(wanted))
        | (Address::Udp(bound), Address::Udp(wanted)) => {
            let any = bound.ip().is_unspecified() || wanted.ip().is_unspecified();
            bound.port() == wanted.port() && (any || bound.ip() == wanted.ip())
        }
        // A path keeps the temporary name that it was bound under.
        (Address::Unix(bound), Address::Unix(wanted)) => bound.starts_with(wanted.as_str()),
        (bound, wanted) => bound == wanted,
    }
}
