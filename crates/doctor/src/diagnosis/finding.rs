//! One finding: its severity, its subject, and the condition with its numbers.

use bindonce_core::address::Address;
use serde::Serialize;

use super::condition::Condition;
use super::kind::{Kind, Severity};
use crate::facts::{Look, Process, Socket};

/// One thing that is wrong, or worth knowing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Finding {
    /// The severity.
    pub(crate) severity: Severity,
    /// The name of the network namespace, if it is not the observer's own.
    pub(crate) network: Option<String>,
    /// The address of the finding.
    pub(crate) address: Option<Address>,
    /// Further addresses with the same condition for the same cause.
    pub(crate) also: Vec<Address>,
    /// The service of the finding.
    pub(crate) service: Option<String>,
    /// The processes that are the cause, not those that suffer.
    pub(crate) pids: Vec<i32>,
    /// The condition.
    #[serde(rename = "evidence")]
    pub(crate) condition: Condition,
}

impl Finding {
    /// A finding about a socket.
    pub(super) fn on(
        look: &Look,
        socket: &Socket,
        severity: Severity,
        condition: Condition,
    ) -> Self {
        let network = look.network_name(Some(socket.network));
        let address = Some(socket.address.clone());
        Self { address, ..Self::at(network, severity, condition) }
    }

    /// A finding about a network namespace, or the whole host.
    pub(super) fn at(network: Option<String>, severity: Severity, condition: Condition) -> Self {
        let (address, also, service, pids) = (None, Vec::new(), None, Vec::new());
        Self { severity, network, address, also, service, pids, condition }
    }

    /// Sets these processes as the cause.
    pub(super) fn caused_by<'a>(
        mut self,
        processes: impl IntoIterator<Item = &'a Process>,
    ) -> Self {
        self.pids = processes.into_iter().map(|process| process.pid).collect();
        self
    }

    /// Sets the service.
    pub(super) fn of(mut self, service: Option<String>) -> Self {
        self.service = service;
        self
    }

    /// The kind of the finding.
    pub(crate) fn kind(&self) -> Kind {
        self.condition.kind()
    }

    /// Every address of the finding.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.address.iter().chain(&self.also)
    }

    /// Whether the finding is about this address.
    pub(crate) fn concerns(&self, address: &Address) -> bool {
        self.addresses().any(|one| one == address)
    }

    /// Merges another finding into this one, if both differ only in their addresses; false if they
    /// do not.
    pub(super) fn merge(&mut self, other: &Self) -> bool {
        let same = self.severity == other.severity
            && self.network == other.network
            && self.pids == other.pids
            && self.condition.has_the_cause_of(&other.condition)
            && self.address.is_some();
        if same {
            let new: Vec<Address> =
                other.addresses().filter(|one| !self.concerns(one)).cloned().collect();
            self.also.extend(new);
        }
        same
    }

    /// Whether both findings are the same in two looks: the same kind, on the same address, with a
    /// cause in common.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        self.kind() == other.kind()
            && self.network == other.network
            && (self.address == other.address || self.addresses().any(|one| other.concerns(one)))
            && (self.pids.is_empty() && other.pids.is_empty()
                || self.pids.iter().any(|pid| other.pids.contains(pid)))
    }
}
