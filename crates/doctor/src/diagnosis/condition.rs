//! The conditions that doctor can find, with the numbers that prove them. Serialised members are
//! the `evidence` of `doctor --json`, and keep their names and meanings; the others are for the
//! text, to name the cause and the remedy.

use std::time::Duration;

use bindonce::Problem;
use bindonce_core::address::Address;
use bindonce_haproxy::counters::Unit;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::kind::Kind;

/// A condition; see [`Kind`] and the struct of each.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Condition {
    Split(Split),
    Stale(Stale),
    Unserved(Unserved),
    Absent(Absent),
    Paused(Paused),
    Overflow(Overflow),
    Saturated(Saturated),
    Ghost(Ghost),
    Limit(Limit),
    Lingering(Lingering),
    Answering(Answering),
    Fallback(Fallback),
    NotExclusive(NotExclusive),
    Foreign(Foreign),
    #[serde(serialize_with = "problem")]
    Broker(Problem),
}

impl Condition {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Split(_) => Kind::Split,
            Self::Stale(_) => Kind::Stale,
            Self::Unserved(_) | Self::Absent(_) => Kind::Unserved,
            Self::Paused(_) => Kind::Paused,
            Self::Overflow(_) => Kind::Overflow,
            Self::Saturated(_) => Kind::Saturated,
            Self::Ghost(_) => Kind::Ghost,
            Self::Limit(_) => Kind::Limit,
            Self::Lingering(_) => Kind::Lingering,
            Self::Answering(_) => Kind::Answering,
            Self::Fallback(_) => Kind::Fallback,
            Self::NotExclusive(_) => Kind::NotExclusive,
            Self::Foreign(_) => Kind::Foreign,
            Self::Broker(_) => Kind::Broker,
        }
    }

    /// Whether both conditions have the same cause: then they are one finding on two addresses.
    pub(super) fn has_the_cause_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Split(one), Self::Split(other)) => {
                one.silent == other.silent && one.takes_all == other.takes_all
            }
            (Self::Unserved(one), Self::Unserved(other)) => one.cause == other.cause,
            (Self::Overflow(one), Self::Overflow(other)) => {
                one.taker == other.taker && one.datagrams == other.datagrams
            }
            (Self::NotExclusive(one), Self::NotExclusive(other)) => one.setter == other.setter,
            _ => self.kind() == other.kind(),
        }
    }
}

/// Several sockets on one address: the kernel spreads new connections over them evenly, by a hash.
/// The processes of the finding are the older ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Split {
    pub(crate) sockets: u64,
    /// Sockets of the older processes.
    pub(crate) stale_sockets: u64,
    /// Their share in percent.
    pub(crate) stale_percent: f64,
    /// The process with the newest configuration.
    pub(crate) newest_pid: i32,
    /// The share of each running instance, as `pid 953: 33 %`.
    pub(crate) share: Vec<String>,
    /// Whether one socket takes everything: it was bound beside the others with SO_REUSEADDR,
    /// later, or on a more specific address.
    pub(crate) takes_all: bool,
    /// The older processes that do not accept: connections to them hang.
    #[serde(skip)]
    pub(crate) silent: Vec<i32>,
}

/// One socket from which several instances accept. The processes of the finding are the older ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Stale {
    pub(crate) stale_processes: usize,
    /// Number of sockets on which they accept.
    pub(crate) listeners: usize,
    /// The inode of the first of these sockets.
    pub(crate) inode: u64,
    /// The newest process that accepts there as well.
    #[serde(skip)]
    pub(crate) beside: Option<i32>,
}

/// A listening socket from which nobody accepts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Unserved {
    pub(crate) queue: u64,
    pub(crate) queue_limit: u64,
    /// How long the oldest connection has waited, if known.
    #[serde(rename = "waiting_seconds", serialize_with = "seconds_or_0")]
    pub(crate) waiting: Option<Duration>,
    #[serde(serialize_with = "how_many")]
    pub(crate) holders: Vec<i32>,
    pub(crate) inode: u64,
    /// Time until the queue is full, at its growth between two looks.
    #[serde(skip)]
    pub(crate) full_in: Option<Duration>,
    #[serde(skip)]
    pub(crate) cause: NotAccepting,
    /// Whether the state of the holders proves the condition; otherwise only a long wait does.
    #[serde(skip)]
    pub(crate) certain: bool,
}

/// Why nobody accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotAccepting {
    /// No visible process holds the socket.
    NoHolder,
    /// These processes are stopped.
    Stopped(Vec<i32>),
    /// The holders ask for connections and take none.
    Hung,
    /// This haproxy does not ask for connections.
    HaproxyDoesNotAsk(i32),
    /// A generation of this service serves it, in another container.
    Elsewhere { service: String, generation: u64 },
    /// The broker keeps this listener for a service that does not run.
    NoService { name: String, leased_by: Option<Lessee> },
    /// A broker that was not asked keeps it. The value is its control socket, if its command line
    /// names one.
    BrokerNotAsked(Option<String>),
    /// The holders do not ask for connections.
    HoldersDoNotAsk,
}

/// The holder of a lease on a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lessee {
    Generation(String, u64),
    Process(u32),
    /// A process of another pid namespace, which has no number here.
    Elsewhere,
}

/// Nothing listens on the target address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Absent {
    /// Number of sockets on the address: 0.
    pub(crate) sockets: usize,
}

/// A socket that is bound and does not listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Paused {
    pub(crate) inode: u64,
    pub(crate) holders: usize,
}

/// A full accept queue, or connections dropped for lack of room; for a datagram socket, dropped
/// datagrams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Overflow {
    pub(crate) queue: u64,
    pub(crate) queue_limit: u64,
    /// net.core.somaxconn of the network namespace; 0 if unknown.
    pub(crate) somaxconn: u64,
    /// Connection attempts dropped since the creation of the socket.
    pub(crate) drops: u64,
    /// Connection attempts dropped between two looks.
    pub(crate) new_drops: u64,
    pub(crate) listen_overflows: u64,
    pub(crate) listen_drops: u64,
    /// The process that takes connections too slowly.
    #[serde(skip)]
    pub(crate) taker: Option<i32>,
    /// Whether the queue is a receive buffer, in bytes.
    #[serde(skip)]
    pub(crate) datagrams: bool,
}

impl Overflow {
    /// Whether the queue is full: the kernel exceeds the limit by one.
    pub(crate) fn is_full(&self) -> bool {
        !self.datagrams && self.queue_limit > 0 && self.queue > self.queue_limit
    }

    /// Whether the limit is net.core.somaxconn, not the backlog given to listen().
    pub(crate) fn is_of_the_system(&self) -> bool {
        self.somaxconn > 0 && self.queue_limit >= self.somaxconn
    }
}

/// A haproxy at a limit of its own: the process of the finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Saturated {
    pub(crate) sessions: u64,
    /// The limit; 0 if there is none.
    pub(crate) limit: u64,
    pub(crate) queued: u64,
    /// The frontend, backend or server with the limit; None for the global maxconn.
    #[serde(skip)]
    pub(crate) proxy: Option<String>,
}

/// A process that the kernel wakes for listeners that it has closed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Ghost {
    pub(crate) listeners: usize,
    /// The share of a core that it uses, in percent; None after a single look.
    #[serde(serialize_with = "number_or_0")]
    pub(crate) processor_percent: Option<f64>,
    pub(crate) memory: u64,
}

/// A resource that is nearly used up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Limit {
    pub(crate) used: u64,
    pub(crate) limit: u64,
    pub(crate) percent: f64,
    #[serde(skip)]
    pub(crate) resource: Resource,
}

/// A resource with a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resource {
    /// Descriptors of the process with this pid.
    Descriptors(i32),
    /// Open files of the system.
    Files,
    /// Entries of connection tracking.
    Conntrack,
    /// Local ports for connections to this destination.
    Ports(String),
}

/// Replaced generations that drain: the processes of the finding, the oldest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Lingering {
    pub(crate) generations: usize,
    #[serde(rename = "oldest_seconds", serialize_with = "seconds")]
    pub(crate) age: Duration,
    /// The sum of their connections, or of their sockets where connections could not be counted.
    pub(crate) connections: u64,
    /// The sum of their resident memory, in bytes.
    pub(crate) memory: u64,
    /// The connection of the oldest process that has been idle longest, and its idle time.
    #[serde(skip)]
    pub(crate) kept_by: Option<(String, Duration)>,
}

/// Replaced generations that still answer on connections that they accepted earlier: the processes
/// of the finding, the oldest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Answering {
    /// Their share of the service's answers, in percent.
    pub(crate) percent: f64,
    /// The unit: requests, or bytes if no request was counted.
    pub(crate) unit: Unit,
    /// The amount that they have answered.
    pub(crate) answered: u64,
    /// The amount that all generations have answered.
    pub(crate) all: u64,
    /// The length of the period, in seconds.
    pub(crate) seconds: u64,
    pub(crate) connections: u64,
}

/// A haproxy that cannot bind a socket for each QUIC connection, so that all stay on the listener:
/// the process of the finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Fallback {
    pub(crate) port: u16,
    /// The first port on which it could.
    pub(crate) unprivileged_from: u16,
}

/// Sockets beside which another process could bind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NotExclusive {
    pub(crate) sockets: usize,
    /// The inode of the first of these sockets.
    pub(crate) inode: u64,
    /// The program other than haproxy that set SO_REUSEPORT.
    #[serde(skip)]
    pub(crate) setter: Option<String>,
}

/// Sockets that a generation bound itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Foreign {
    pub(crate) sockets: usize,
    #[serde(skip)]
    pub(crate) first: Vec<Address>,
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

fn seconds_or_0<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.unwrap_or_default().as_secs_f64())
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference.
fn number_or_0<S: Serializer>(number: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(number.unwrap_or_default())
}

fn how_many<S: Serializer>(list: &[i32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(list.len() as u64)
}

fn problem<S: Serializer>(problem: &Problem, serializer: S) -> Result<S::Ok, S::Error> {
    let mut evidence = serializer.serialize_map(Some(2))?;
    evidence.serialize_entry("problem", &problem.kind)?;
    evidence.serialize_entry("subject", &problem.subject)?;
    evidence.end()
}
