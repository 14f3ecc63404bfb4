//! One thing that is wrong: how bad it is, what it is about, and the condition with its numbers.

use bindonce_core::address::Address;
use serde::Serialize;

use super::condition::Condition;
use super::kind::{Kind, Severity};
use crate::facts::{Look, Process, Socket};

/// One thing that is wrong, or worth knowing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Finding {
    /// How bad it is.
    pub(crate) severity: Severity,
    /// The name of the network namespace, if it is not the observer's own.
    pub(crate) network: Option<String>,
    /// The address that it is about.
    pub(crate) address: Option<Address>,
    /// Further addresses of which the same is true, for the same reason.
    pub(crate) also: Vec<Address>,
    /// The service that it is about.
    pub(crate) service: Option<String>,
    /// The processes that are the cause; those that suffer are not among them.
    pub(crate) pids: Vec<i32>,
    /// What is wrong.
    #[serde(rename = "evidence")]
    pub(crate) condition: Condition,
}

impl Finding {
    /// About a socket.
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

    /// About a network namespace, or the whole host.
    pub(super) fn at(network: Option<String>, severity: Severity, condition: Condition) -> Self {
        let (address, also, service, pids) = (None, Vec::new(), None, Vec::new());
        Self { severity, network, address, also, service, pids, condition }
    }

    /// With these processes as the cause.
    pub(super) fn caused_by<'a>(
        mut self,
        processes: impl IntoIterator<Item = &'a Process>,
    ) -> Self {
        self.pids = processes.into_iter().map(|process| process.pid).collect();
        self
    }

    /// About this service.
    pub(super) fn of(mut self, service: Option<String>) -> Self {
        self.service = service;
        self
    }

    /// What kind of thing it is.
    pub(crate) fn kind(&self) -> Kind {
        self.condition.kind()
    }

    /// Every address that it is about.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.address.iter().chain(&self.also)
    }

    /// Whether it is about this address.
    pub(crate) fn concerns(&self, address: &Address) -> bool {
        self.addresses().any(|one| one == address)
    }

    /// Takes another one in if both are the same of different addresses.
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

    /// Whether an earlier look found the same: the same kind, on the same address, with a cause
    /// in common.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        self.kind() == other.kind()
            && self.network == other.network
            && (self.address == other.address || self.addresses().any(|one| other.concerns(one)))
            && (self.pids.is_empty() && other.pids.is_empty()
                || self.pids.iter().any(|pid| other.pids.contains(pid)))
    }
}
