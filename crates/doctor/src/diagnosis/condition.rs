//! What can be wrong, with the numbers that show it. The members that are serialised are the
//! `evidence` of `doctor --json`, and keep their names and meanings; the others are what the
//! text needs to name the cause and the remedy.

use std::fmt;
use std::time::Duration;

use bindonce::Problem;
use bindonce_core::address::Address;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::kind::Kind;
use crate::facts::percent;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Condition {
    /// Several sockets on one address, of different generations.
    Split(Split),
    /// A replaced generation accepts on a socket that it shares with its successor.
    Stale(Stale),
    /// An address on which nobody accepts.
    Unserved(Unserved),
    /// An address that no socket has.
    Absent(Absent),
    /// A socket that is bound and does not listen.
    Paused(Paused),
    /// A full accept queue, or connections dropped for want of room.
    Overflow(Overflow),
    /// A proxy at a limit of its own.
    Saturated(Saturated),
    /// A process woken for a listener that it has closed.
    Ghost(Ghost),
    /// A resource that is nearly used up.
    Limit(Limit),
    /// Replaced generations that do not end.
    Lingering(Lingering),
    /// A socket beside which another process could bind.
    NotExclusive(NotExclusive),
    /// A socket that haproxy bound by itself under a supervisor.
    Foreign(Foreign),
    /// Something that the broker should do and cannot.
    #[serde(serialize_with = "problem")]
    Broker(Problem),
}

impl Condition {
    /// Its kind.
    pub fn kind(&self) -> Kind {
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
            Self::NotExclusive(_) => Kind::NotExclusive,
            Self::Foreign(_) => Kind::Foreign,
            Self::Broker(_) => Kind::Broker,
        }
    }

    /// Whether both are so for the same reason: then they are one finding on two addresses.
    pub(super) fn has_the_cause_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Split(one), Self::Split(other)) => one.silent == other.silent,
            (Self::Unserved(one), Self::Unserved(other)) => one.cause == other.cause,
            (Self::Overflow(one), Self::Overflow(other)) => one.taker == other.taker,
            (Self::NotExclusive(one), Self::NotExclusive(other)) => one.setter == other.setter,
            _ => self.kind() == other.kind(),
        }
    }
}

/// Several sockets on one address: the kernel spreads new connections over them by a hash, evenly.
/// The processes of the finding are the older ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Split {
    /// Sockets on the address.
    pub sockets: u64,
    /// Those of the older processes.
    pub stale_sockets: u64,
    /// Their part in percent.
    pub stale_percent: f64,
    /// The process with the newest configuration.
    pub newest_pid: i32,
    /// The part of each running instance.
    #[serde(rename = "share")]
    pub shares: Vec<Share>,
    /// The older processes that do not accept: what goes to them hangs.
    #[serde(skip)]
    pub silent: Vec<i32>,
    /// How the older are ended.
    #[serde(skip)]
    pub remedy: EndOlder,
}

/// The part of the sockets of an address that one running instance has.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// Its processes.
    pub pids: Vec<i32>,
    /// Its sockets.
    pub part: u64,
    /// All sockets on the address.
    pub whole: u64,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pids: Vec<String> = self.pids.iter().map(i32::to_string).collect();
        write!(f, "pid {}: {:.0} %", pids.join(" "), percent(self.part, self.whole))
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How older processes are brought to stop accepting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndOlder {
    /// What helps now.
    pub how: How,
    /// None of them is under a supervisor, which would keep it from happening again.
    pub unsupervised: bool,
}

/// See [`EndOlder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// They are no proxies, and may share the address on purpose: a person decides.
    Judge,
    /// These haproxies finish on SIGUSR1.
    Finish(Vec<i32>),
    /// They have been told to finish and did not.
    End,
    /// They are stopped, and take no signal before they go on.
    EndStopped,
}

/// One socket from which several instances accept. The processes of the finding are the older ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stale {
    /// How many they are.
    pub stale_processes: usize,
    /// On how many sockets they do.
    pub listeners: usize,
    /// The first of these.
    pub inode: u64,
    /// The newest process that accepts there as well.
    #[serde(skip)]
    pub beside: Option<i32>,
    /// How the older are ended.
    #[serde(skip)]
    pub remedy: EndOlder,
}

/// A listening socket from which nobody accepts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unserved {
    /// Connections in its queue.
    pub queue: u64,
    /// The limit of its queue.
    pub queue_limit: u64,
    /// How long the oldest of them has waited, where that could be found out.
    #[serde(rename = "waiting_seconds", serialize_with = "seconds_or_0")]
    pub waiting: Option<Duration>,
    /// The processes that hold it.
    #[serde(serialize_with = "how_many")]
    pub holders: Vec<i32>,
    /// Its inode.
    pub inode: u64,
    /// When its queue will be full, at the rate at which it grew between two looks.
    #[serde(skip)]
    pub full_in: Option<Duration>,
    /// Why nobody accepts.
    #[serde(skip)]
    pub cause: NotAccepting,
    /// What was seen of the holders proves it; else only a long wait does.
    #[serde(skip)]
    pub certain: bool,
}

/// Why nobody accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAccepting {
    /// No process is seen to hold the socket.
    NoHolder,
    /// These are stopped.
    Stopped(Vec<i32>),
    /// The holders ask for connections and take none.
    Hung,
    /// This haproxy does not ask for connections.
    HaproxyDoesNotAsk(i32),
    /// A generation of this service serves it, out of sight.
    Elsewhere {
        /// The service.
        service: String,
        /// Its generation.
        generation: u64,
    },
    /// The broker keeps this listener for a service that does not run.
    NoService {
        /// The listener.
        name: String,
        /// Who has a lease on it.
        leased_by: Option<Lessee>,
    },
    /// A broker keeps it that was not asked; this is its control socket, if its command line names one.
    BrokerNotAsked(Option<String>),
    /// The holders do not ask for connections.
    HoldersDoNotAsk,
}

/// Who has a lease on a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lessee {
    /// A generation of a service.
    Generation(String, u64),
    /// A process.
    Process(u32),
}

/// Nothing listens on the address that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Absent {
    /// Sockets on it: 0.
    pub sockets: usize,
    /// In how many network namespaces that was looked for.
    #[serde(skip)]
    pub networks: usize,
}

/// A socket that has its address and does not listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Paused {
    /// Its inode.
    pub inode: u64,
    /// How many processes hold it.
    pub holders: usize,
    /// Who can make it listen again.
    #[serde(skip)]
    pub remedy: Resume,
}

/// Who can make a socket listen again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The broker, whose listener has this name.
    Broker(String),
    /// The haproxy that holds it.
    Haproxy,
    /// The program that holds it.
    Program,
}

/// A full accept queue, or connections dropped for want of room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overflow {
    /// Connections in the queue.
    pub queue: u64,
    /// Its limit.
    pub queue_limit: u64,
    /// net.core.somaxconn of the network namespace; 0 if unknown.
    pub somaxconn: u64,
    /// Connection attempts dropped since the socket exists.
    pub drops: u64,
    /// Those dropped between two looks.
    pub new_drops: u64,
    /// ListenOverflows of the network namespace.
    pub listen_overflows: u64,
    /// ListenDrops of the network namespace.
    pub listen_drops: u64,
    /// The process that takes connections, too slowly.
    #[serde(skip)]
    pub taker: Option<i32>,
}

impl Overflow {
    /// Whether the queue is full: the kernel lets one more in than the limit says.
    pub fn is_full(&self) -> bool {
        self.queue_limit > 0 && self.queue > self.queue_limit
    }

    /// Whether the limit is net.core.somaxconn, and not the backlog given to listen().
    pub fn is_of_the_system(&self) -> bool {
        self.somaxconn > 0 && self.queue_limit >= self.somaxconn
    }
}

/// A haproxy at a limit of its own. It is the process of the finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Saturated {
    /// Connections or sessions now.
    pub sessions: u64,
    /// The limit; 0 if there is none.
    pub limit: u64,
    /// Requests that wait in haproxy.
    pub queued: u64,
    /// The frontend, backend or server whose limit it is; none for the global maxconn.
    #[serde(skip)]
    pub proxy: Option<String>,
}

/// A process that is woken for listeners that it has closed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ghost {
    /// How many listeners.
    pub listeners: usize,
    /// The part of a core that it uses; none if it was looked at once.
    #[serde(serialize_with = "number_or_0")]
    pub processor_percent: Option<f64>,
    /// Its resident memory in bytes.
    pub memory: u64,
}

/// A resource that is nearly used up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    /// In use.
    pub used: u64,
    /// The most that can be.
    pub limit: u64,
    /// The part that is used.
    pub percent: f64,
    /// The resource.
    #[serde(skip)]
    pub resource: Resource,
}

/// A resource with a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
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
pub struct Lingering {
    /// How many.
    pub generations: usize,
    /// Age of the oldest.
    #[serde(rename = "oldest_seconds", serialize_with = "seconds")]
    pub age: Duration,
    /// Their connections together, or sockets where connections could not be counted.
    pub connections: u64,
    /// Their resident memory together, in bytes.
    pub memory: u64,
    /// The connection of the oldest that has been idle for longest, and for how long.
    #[serde(skip)]
    pub kept_by: Option<(String, Duration)>,
}

/// Sockets beside which another process could bind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotExclusive {
    /// How many.
    pub sockets: usize,
    /// The first of these.
    pub inode: u64,
    /// They are the broker's.
    #[serde(skip)]
    pub held: bool,
    /// The program, other than haproxy, that set SO_REUSEPORT.
    #[serde(skip)]
    pub setter: Option<String>,
}

/// Sockets that a generation bound by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Foreign {
    /// How many.
    pub sockets: usize,
    /// The first four addresses.
    #[serde(skip)]
    pub first: Vec<Address>,
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
