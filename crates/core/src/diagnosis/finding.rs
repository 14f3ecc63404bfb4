//! What is wrong, with the numbers that show it and the command that helps.

use std::fmt;

use crate::address::Address;

/// One thing that is wrong, or worth knowing.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Kind,
    /// How bad it is.
    pub severity: Severity,
    /// The name of the network namespace, if it is not the observer's own.
    pub network: Option<String>,
    /// The address that it is about.
    pub address: Option<Address>,
    /// Further addresses of which the same is true, for the same reason.
    pub also: Vec<Address>,
    /// The service that it is about.
    pub service: Option<String>,
    /// The processes that are the cause; those that suffer are not among them.
    pub culprits: Vec<i32>,
    /// The finding in one sentence, with its numbers, pids and times.
    pub summary: String,
    /// The numbers, by name.
    pub evidence: Vec<(&'static str, Value)>,
    /// Why it is so.
    pub cause: String,
    /// What to do, in order: commands to run as they are, or advice that begins with `#`.
    pub remedy: Vec<String>,
}

impl Finding {
    /// Every address that it is about.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.address.iter().chain(&self.also)
    }

    /// Whether it is about this address.
    pub fn concerns(&self, address: &Address) -> bool {
        self.addresses().any(|one| one == address)
    }

    /// Takes another one in if both say the same of different addresses.
    pub(super) fn merge(&mut self, other: &Self) -> bool {
        let same = self.kind == other.kind
            && self.severity == other.severity
            && self.network == other.network
            && self.culprits == other.culprits
            && self.cause == other.cause
            && self.address.is_some();
        if same {
            let new: Vec<Address> =
                other.addresses().filter(|one| !self.concerns(one)).cloned().collect();
            self.also.extend(new);
        }
        same
    }

    /// Whether an earlier look found the same: the same kind, on the same address,
    /// with a culprit in common.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.network == other.network
            && (self.address == other.address || self.addresses().any(|one| other.concerns(one)))
            && (self.culprits.is_empty() && other.culprits.is_empty()
                || self.culprits.iter().any(|pid| other.culprits.contains(pid)))
    }
}

/// The kinds of findings, from the worst to the mildest. The texts are stable: scripts and
/// docs/failure-modes.md go by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// Several sockets on one address, of different generations.
    Split,
    /// A replaced generation accepts on a socket that it shares with its successor.
    Stale,
    /// An address on which nobody accepts.
    Unserved,
    /// A socket that is bound and does not listen.
    Paused,
    /// A full accept queue, or connections dropped for want of room.
    Overflow,
    /// A proxy at a limit of its own.
    Saturated,
    /// A process woken for a listener that it has closed.
    Ghost,
    /// A resource that is nearly used up.
    Limit,
    /// Replaced generations that do not end.
    Lingering,
    /// A socket beside which another process could bind.
    NotExclusive,
    /// A socket that haproxy bound by itself under a supervisor.
    Foreign,
    /// Something that the broker should do and cannot.
    Broker,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Self; 12] = [
        Self::Split,
        Self::Stale,
        Self::Unserved,
        Self::Paused,
        Self::Overflow,
        Self::Saturated,
        Self::Ghost,
        Self::Limit,
        Self::Lingering,
        Self::NotExclusive,
        Self::Foreign,
        Self::Broker,
    ];

    /// Whether the condition is normal for a moment, so that it counts only if it lasts.
    pub(super) fn may_be_momentary(self) -> bool {
        !matches!(self, Self::Limit | Self::NotExclusive | Self::Foreign | Self::Broker)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Split => "split",
            Self::Stale => "stale",
            Self::Unserved => "unserved",
            Self::Paused => "paused",
            Self::Overflow => "overflow",
            Self::Saturated => "saturated",
            Self::Ghost => "ghost",
            Self::Limit => "limit",
            Self::Lingering => "lingering",
            Self::NotExclusive => "not-exclusive",
            Self::Foreign => "foreign",
            Self::Broker => "broker",
        })
    }
}

/// How bad a finding is, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Clients fail, hang, or get stale answers now.
    Error,
    /// They will, or something is wasted.
    Warning,
    /// Worth knowing; nothing is wrong, and it does not count as found.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// A number or a text of the evidence.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// How many.
    Count(u64),
    /// A share in percent, or seconds, as the name says.
    Decimal(f64),
    /// Anything else.
    Text(String),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Decimal(number)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
