//! What was seen, as plain values: the only thing that findings are made from.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::address::Address;
use crate::time::Timestamp;

/// One look at the system, and an earlier one where two were taken: a condition
/// that is normal for a moment counts only if it was seen both times.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The earlier look, if there was one.
    pub earlier: Option<Look>,
    /// The latest look.
    pub now: Look,
}

/// One look at the system.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    /// When it was taken.
    pub at: Timestamp,
    /// Every socket that listens, receives datagrams from anyone, or is bound and does not listen.
    pub sockets: Vec<Socket>,
    /// Processes that have to do with these sockets, and every haproxy, by pid.
    pub processes: BTreeMap<i32, Process>,
    /// What the broker says of the generations of its services.
    pub generations: Vec<Generation>,
    /// Services whose generations changed while the look was taken: what was seen of them
    /// is of two moments.
    pub changing: Vec<String>,
    /// What the broker says of the sockets that it holds.
    pub held: Vec<Held>,
    /// What the broker says that it cannot do.
    pub problems: Vec<Problem>,
    /// The pid of the broker, if one answers.
    pub broker: Option<i32>,
    /// What each haproxy says of itself on its stats socket.
    pub haproxies: Vec<Haproxy>,
    /// Each network namespace that was looked at.
    pub networks: Vec<Network>,
    /// Open files of the whole system (fs.file-nr).
    pub files: Option<Gauge>,
    /// What could not be seen, each with the reason.
    pub unseen: Vec<String>,
}

/// How much of something is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauge {
    /// In use.
    pub used: u64,
    /// The most that can be.
    pub limit: u64,
}

impl Gauge {
    /// The part that is used, in percent. 0 without a limit.
    pub fn percent(self) -> f64 {
        percent(self.used, self.limit)
    }
}

/// `part` of `whole` in percent; 0 of nothing.
pub(crate) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// What a socket does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// It accepts connections into its queue.
    #[default]
    Listening,
    /// It receives datagrams.
    Datagram,
    /// It has the address and accepts nothing: clients are refused.
    Bound,
}

/// A socket on an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// The network namespace: [`Network::id`].
    pub network: u64,
    /// Its address.
    pub address: Address,
    /// Its device, if it is bound to one.
    pub interface: Option<String>,
    /// Its inode.
    pub inode: u64,
    /// Its cookie, which is never used twice.
    pub cookie: u64,
    /// What it does.
    pub mode: Mode,
    /// Connections in its accept queue (`used`) and how many it takes (`limit`).
    pub queue: Gauge,
    /// Connections and packets that it dropped since it exists.
    pub drops: u64,
    /// Whether it has SO_REUSEPORT; none where that could not be read.
    pub reuseport: Option<bool>,
    /// How long the oldest connection in its queue has waited, where that was asked.
    pub waiting: Option<Duration>,
}

/// A registration of a socket in an epoll instance of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// The socket's inode.
    pub inode: u64,
    /// It is woken for new connections (EPOLLIN).
    pub input: bool,
    /// The process still has the descriptor. If not, the registration is a ghost.
    pub live: bool,
}

/// A process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// The name of its program, without a loader in front.
    pub program: String,
    /// Its command line.
    pub command: Vec<String>,
    /// The network namespace that it is in: [`Network::id`]; none where it does not tell.
    pub network: Option<u64>,
    /// The topmost ancestor that runs the same program; itself if there is none.
    pub root: i32,
    /// Its parent.
    pub parent: i32,
    /// When it started.
    pub started: Timestamp,
    /// Its state as in ps(1).
    pub state: char,
    /// Processor time that it has used.
    pub used: Duration,
    /// Resident memory in bytes.
    pub memory: u64,
    /// Its open descriptors, and its soft limit (0: unlimited or unknown).
    pub descriptors: Gauge,
    /// How many of its descriptors are sockets.
    pub sockets: u64,
    /// A signal that tells haproxy to stop (SIGUSR1, SIGTERM) was sent and not taken yet.
    pub stop_pending: bool,
    /// Inodes of the sockets that it holds, each once.
    pub holds: Vec<u64>,
    /// Its registrations of sockets.
    pub watches: Vec<Watch>,
    /// Inodes of sockets that a thread is blocked in accept, poll or select for.
    pub waits: Vec<u64>,
    /// What every thread waits for was seen.
    pub all_known: bool,
    /// It has an epoll instance.
    pub epoll: bool,
    /// Its connections: how many, and the one that is idle the longest. Only where it was asked.
    pub connections: Option<Connections>,
}

/// Connections of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connections {
    /// How many.
    pub count: u64,
    /// The two ends of the one on which nothing has moved for longest, and for how long.
    pub oldest: Option<(String, Duration)>,
}

/// What the broker says of one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The service.
    pub service: String,
    /// Its number.
    pub id: u64,
    /// Its process.
    pub pid: i32,
    /// Where it is in its life.
    pub life: Life,
    /// The names of the listeners that it uses.
    pub listeners: Vec<String>,
    /// Since when.
    pub since: Option<Timestamp>,
}

/// Where a generation is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It has not served yet: a handover may be under way.
    Starting,
    /// It serves.
    Serving,
    /// It finishes its connections and should accept none.
    Draining,
}

/// What the broker says of one socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its inode.
    pub inode: u64,
    /// The listener's name.
    pub name: String,
    /// Whether nobody else can bind the address.
    pub exclusive: bool,
    /// Whether it listens (or, for datagrams, is bound).
    pub listening: bool,
    /// The backlog that was asked for, if one was.
    pub backlog: Option<u64>,
    /// Who has a lease on it, so that it cannot be released.
    pub users: Vec<User>,
}

/// Somebody who has a lease on a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its process.
    pub pid: u32,
    /// The service and the generation that it said it is.
    pub generation: Option<(String, u64)>,
}

/// Something that the broker should do and cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `listener-not-bound`, `listener-unreachable`, `state-not-written`, or one that this version does not know.
    pub kind: String,
    /// A listener or a path.
    pub subject: String,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What a haproxy says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Haproxy {
    /// Its process.
    pub pid: i32,
    /// It was told to stop.
    pub stopping: bool,
    /// Its connections and its global maxconn.
    pub connections: Gauge,
    /// Frontends, backends and servers that have a limit or a queue.
    pub proxies: Vec<Proxy>,
}

/// A frontend, a backend or a server of haproxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    /// As a person names it: `frontend web`, `server app/s1`.
    pub name: String,
    /// Sessions now, and the limit (0: none).
    pub sessions: Gauge,
    /// Requests that wait for a connection.
    pub queued: u64,
}

/// A network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Its inode.
    pub id: u64,
    /// Its name; none for the one that the observer is in.
    pub name: Option<String>,
    /// net.core.somaxconn.
    pub somaxconn: u64,
    /// Times that an accept queue was full, since the namespace exists (ListenOverflows).
    pub overflows: u64,
    /// Connection attempts that were dropped (ListenDrops), overflows included.
    pub drops: u64,
    /// Entries of connection tracking, where it is used.
    pub conntrack: Option<Gauge>,
    /// Ports for connections to one destination: the destination that uses the most, and
    /// how many of the ephemeral ports.
    pub ephemeral: Option<(String, Gauge)>,
}
