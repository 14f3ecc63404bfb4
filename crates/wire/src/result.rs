//! Results of the methods. A reader ignores unknown members, so that a newer broker can add some.
//! For the same reason, types that the client library hands to programs can grow, and are made by
//! `new`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::event::Event;
use crate::omitted::is_default;
use crate::params::State;

/// The result of `bind`: one entry for each descriptor, in the order of the descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindResult {
    /// The listeners.
    pub listeners: Vec<Bound>,
}

/// A listener as handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Its name; its address if it was never named.
    pub name: String,
    /// The address as asked for, in canonical form.
    pub address: String,
    /// The address that the socket has; its port differs from `address` if that says 0.
    pub bound: String,
    /// Whether this request created it.
    pub created: bool,
    /// The inode number of the socket, which is the same in every process.
    pub inode: u64,
}

impl Bound {
    /// Its JSON text, as in a reply.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

/// The result of `join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinResult {
    /// Always true.
    pub joined: bool,
    /// With `handover`: the number of the generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// With `handover`: its state. `starting` in reply to `serving` means that it has to wait,
    /// `draining` that a newer one has taken its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
}

/// The result of `release`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseResult {
    /// The names of the listeners that were closed, in the order of the request.
    pub released: Vec<String>,
}

/// The result of `ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PingResult {
    /// Always true.
    pub pong: bool,
    /// The broker's version.
    pub version: String,
}

impl PingResult {
    /// The result of a server of this version.
    pub fn new(version: impl Into<String>) -> Self {
        Self { pong: true, version: version.into() }
    }
}

/// The result of `events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EventsResult {
    /// The remembered events after `since`, oldest first.
    pub events: Vec<Event>,
    /// The newest id given so far.
    pub last: u64,
    /// Whether each further event follows as a line of its own.
    pub following: bool,
}

impl EventsResult {
    /// The events, the newest id, and whether further events follow.
    pub fn new(events: Vec<Event>, last: u64, following: bool) -> Self {
        Self { events, last, following }
    }
}

/// The result of `store`: one entry for each listener, in the order of the request, as in `bind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreResult {
    /// The listeners. The caller has a lease on each from now on.
    pub listeners: Vec<Bound>,
}

/// The result of `upgrade`, sent by the new image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeResult {
    /// Always true.
    pub upgraded: bool,
    /// The broker's process, the same as before.
    pub pid: u32,
    /// The version of the new image.
    pub version: String,
}

/// The result of `list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ListResult {
    /// Every listener, sorted by name.
    pub listeners: Vec<ListenerInfo>,
    /// Problems of the broker, for callers who may list every listener.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

impl ListResult {
    /// A result from listeners sorted by name.
    pub fn new(listeners: Vec<ListenerInfo>) -> Self {
        Self { listeners, problems: Vec::new() }
    }
}

/// Something that the broker should do and cannot, reported for as long as that lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Problem {
    /// `listener-not-bound`, `listener-not-recovered`, `listener-broken`, `listener-unreachable`,
    /// `listener-hidden` or `state-not-written`; there may be more.
    pub kind: String,
    /// The subject: the listener as the configuration has it, or a path.
    pub subject: String,
    /// What happened.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// A problem: its kind, its subject, what happened and what to do about it.
    pub fn new(
        kind: impl Into<String>,
        subject: impl Into<String>,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Self {
        Self { kind: kind.into(), subject: subject.into(), message: message.into(), hint }
    }
}

// One field for each member of the JSON object: serde reads flattened parts through a buffer, which
// would cost thousands of listeners too much.
/// A listener as `list` and `status` show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ListenerInfo {
    /// Its name; its address if it was never named.
    pub name: String,
    /// The address as asked for.
    pub address: String,
    /// The address that the socket has.
    pub bound: String,
    /// The options as first asked for.
    #[serde(default)]
    pub options: Map<String, Value>,
    /// The capacity of its accept queue, in connections; none for a datagram socket.
    #[serde(default)]
    pub backlog: Option<u32>,
    /// Connections waiting in its accept queue now; none if the kernel does not tell.
    #[serde(default)]
    pub queue: Option<u32>,
    /// For a datagram socket, such as one for QUIC: bytes waiting in its receive buffer, including
    /// the kernel's overhead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_queue: Option<u32>,
    /// The size of that receive buffer, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_buffer: Option<u32>,
    /// Datagrams that the kernel has dropped because the buffer was full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drops: Option<u32>,
    /// Whether the socket is in the LISTEN state (for a datagram socket: bound).
    pub listening: bool,
    /// The inode number of the socket.
    pub inode: u64,
    /// The kernel's cookie of the socket (SO_COOKIE), never reused; 0 if unknown.
    #[serde(default)]
    pub cookie: u64,
    /// Whether no other process can bind the address beside it (no SO_REUSEPORT).
    #[serde(default = "yes")]
    pub exclusive: bool,
    /// How often it left the LISTEN state and was made to listen again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub repaired: u64,
    /// Socket options that another holder of the socket has changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<ChangedOption>,
    /// When it was created, RFC 3339.
    pub since: String,
    /// Whether it is closed when its last lease ends.
    #[serde(default)]
    pub tentative: bool,
    /// The open connections that have a lease on it.
    #[serde(default)]
    pub holders: Vec<HolderInfo>,
}

impl ListenerInfo {
    /// A listener in the LISTEN state, with nothing else known yet.
    pub fn new(name: String, address: String, bound: String, inode: u64, since: String) -> Self {
        Self {
            name,
            address,
            bound,
            options: Map::new(),
            backlog: None,
            queue: None,
            receive_queue: None,
            receive_buffer: None,
            drops: None,
            listening: true,
            inode,
            cookie: 0,
            exclusive: true,
            repaired: 0,
            changed: Vec::new(),
            since,
            tentative: false,
            holders: Vec::new(),
        }
    }
}

/// A socket option that has changed since the broker opened the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChangedOption {
    /// Its name in the manual pages, such as `TCP_DEFER_ACCEPT`.
    pub option: String,
    /// The original value; -1 is off for SO_LINGER.
    pub was: i64,
    /// The value now.
    pub now: i64,
}

impl ChangedOption {
    /// An option, its original value, and its current value.
    pub fn new(option: impl Into<String>, was: i64, now: i64) -> Self {
        Self { option: option.into(), was, now }
    }
}

/// A connection that has a lease on a listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HolderInfo {
    /// The service that it has joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The generation that it has joined as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The process that it named when it joined, else the one that connected.
    pub pid: u32,
    /// The user of the process that connected.
    pub uid: u32,
    /// The state that it declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// When it first claimed the listener, RFC 3339.
    pub since: String,
}

impl HolderInfo {
    /// A connection of this process and user that has not joined.
    pub fn new(pid: u32, uid: u32, since: String) -> Self {
        Self { service: None, generation: None, pid, uid, state: None, since }
    }
}

/// The result of `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StatusResult {
    /// The broker itself.
    pub broker: BrokerInfo,
    /// Every listener, as in `list`.
    pub listeners: Vec<ListenerInfo>,
    /// Every service with a connected generation, sorted by name.
    pub services: Vec<ServiceInfo>,
    /// Problems of the broker, for callers who may list every listener.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

impl StatusResult {
    /// A result from listeners and services sorted by name.
    pub fn new(
        broker: BrokerInfo,
        listeners: Vec<ListenerInfo>,
        services: Vec<ServiceInfo>,
    ) -> Self {
        Self { broker, listeners, services, problems: Vec::new() }
    }
}

/// The broker as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BrokerInfo {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it started, RFC 3339.
    pub since: String,
    /// How often it was upgraded in place since then.
    #[serde(default)]
    pub upgrades: u64,
    /// The path of its control socket.
    pub socket: String,
    /// How many listeners it holds.
    pub listeners: usize,
    /// How many clients are connected.
    pub connections: usize,
    /// How many descriptors it may have open (the soft RLIMIT_NOFILE).
    pub descriptor_limit: u64,
}

impl BrokerInfo {
    /// A broker without listeners, clients or upgrades yet.
    pub fn new(pid: u32, version: impl Into<String>, since: String, socket: String) -> Self {
        let version = version.into();
        let (upgrades, listeners, connections, descriptor_limit) = (0, 0, 0, 0);
        Self { pid, version, since, upgrades, socket, listeners, connections, descriptor_limit }
    }
}

/// A service as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServiceInfo {
    /// Its name.
    pub name: String,
    /// Its generations that are connected, oldest first.
    pub generations: Vec<GenerationInfo>,
}

impl ServiceInfo {
    /// A service and its generations, oldest first.
    pub fn new(name: impl Into<String>, generations: Vec<GenerationInfo>) -> Self {
        Self { name: name.into(), generations }
    }
}

/// A generation as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GenerationInfo {
    /// Which start of the service it is.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// Its state.
    pub state: State,
    /// Since when it is in that state, RFC 3339.
    pub since: String,
    /// The names of the listeners that it has.
    pub listeners: Vec<String>,
}

impl GenerationInfo {
    /// A generation that has no listener yet.
    pub fn new(generation: u64, pid: u32, state: State, since: String) -> Self {
        Self { generation, pid, state, since, listeners: Vec::new() }
    }
}

fn yes() -> bool {
    true
}
