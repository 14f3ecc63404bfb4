//! What a supervisor answers on its control socket, for it to write and for `bindonce` to read; and what `reload` takes, for
//! the reverse.
//!
//! What an older supervisor does not send is read as its default, and [`Status`] and [`GenerationStatus`] keep what
//! a newer one sends besides.

use std::path::PathBuf;

use bindonce_haproxy::cli::Session;
use bindonce_haproxy::counters::Lately;
use bindonce_wire::{ErrorCode, RpcError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::origin::Origin;

/// The reply to `ping`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pong {
    /// Always true.
    pub pong: bool,
    /// The supervisor's version.
    pub version: String,
    /// The generation that serves.
    #[serde(default)]
    pub serving: Option<u64>,
}

/// How a client wants a reload. What it does not say is not sent: a supervisor refuses what it does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReloadParams {
    /// Nothing may be left to listen on.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_empty: bool,
    /// It is to be started with the command of this process from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<Origin>,
    /// Older generations end as soon as the new one serves.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub at_once: bool,
    /// It is answered when the older generations are gone, or after this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_drained_ms: Option<u64>,
    /// Connections of older generations that are idle for this long are closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_idle_ms: Option<u64>,
    /// Older generations are ended after this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout_ms: Option<u64>,
}

impl ReloadParams {
    /// As JSON: no parameters where it says nothing, which any version takes.
    ///
    /// # Errors
    /// What cannot be JSON.
    pub fn json(&self) -> serde_json::Result<Value> {
        match *self == Self::default() {
            true => Ok(Value::Array(Vec::new())),
            false => serde_json::to_value(self),
        }
    }
}

/// The reply to `reload`: a new generation serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reloaded {
    /// The new generation.
    pub generation: u64,
    /// Its process.
    pub pid: Option<i32>,
    /// Older generations that did not stop accepting and had to be ended.
    pub ended: Vec<u64>,
    /// Connections of older generations that were cut until it served.
    #[serde(default)]
    pub cut: u64,
    /// The addresses of listeners that the configuration no longer has.
    #[serde(default)]
    pub left: Vec<String>,
    /// The configuration has none of the listeners that served before.
    #[serde(default)]
    pub none_kept: bool,
    /// What it has bound for lines that were read otherwise, with the broker's sockets.
    #[serde(default)]
    pub read_otherwise: Vec<String>,
    /// The same of older generations, which were told to stop instead of being paused for that.
    #[serde(default)]
    pub stopped_first: Vec<String>,
    /// Addresses that it listens on by itself without a bind(2) or listen(2) that could be intercepted, as by io_uring.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<String>,
    /// What it has written on standard error until it had started.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub startup: String,
    /// What became of the older generations, if that was waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<Drained>,
}

/// What became of the generations that a reload has replaced, in [`Reloaded`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Those that still drain.
    pub left: Vec<u64>,
    /// Idle connections of theirs that were closed.
    pub idle_closed: u64,
    /// Connections that ended with a generation since the reload began.
    pub cut: u64,
}

/// The reply to `retire`: the generation has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Retired {
    /// The generation.
    pub generation: u64,
    /// Its process.
    pub pid: Option<i32>,
    /// How many connections ended with it, where that is known.
    pub connections: Option<u64>,
}

/// The reply to `status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The name of the service.
    pub service: String,
    /// What it runs: `haproxy`, or the name of a program.
    #[serde(default)]
    pub program: String,
    /// The supervisor.
    pub pid: u32,
    /// The control socket of its broker.
    #[serde(default)]
    pub socket: PathBuf,
    /// Oldest first.
    #[serde(default)]
    pub generations: Vec<GenerationStatus>,
    /// What has happened so far, beside the other members.
    #[serde(flatten)]
    pub counts: Counts,
    /// What its generations have answered lately.
    #[serde(default)]
    pub lately: Lately,
    /// How often the supervisor became a newer binary.
    #[serde(default)]
    pub upgrades: u64,
    /// Reloads that wait for the next one: for the one in progress, or for `--min-interval`.
    #[serde(default)]
    pub reloads_waiting: usize,
    /// The addresses that haproxy binds itself.
    #[serde(default)]
    pub left_alone: Vec<OwnAddress>,
    /// Addresses that an intercepted program listens on by itself without a bind(2) or listen(2) that could be intercepted, as by
    /// io_uring.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<String>,
    /// What else a newer supervisor sends.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// What has happened since the supervisor began.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Reloads that succeeded.
    pub reloads: u64,
    /// Reloads that failed.
    pub failed_reloads: u64,
    /// Starts after a generation that served had died.
    pub restarts: u64,
    /// Entries that were removed from epoll sets.
    pub ghosts_removed: u64,
    /// Requests that came to generations after they had stopped accepting, on connections that they had.
    pub requests_after: u64,
    /// Bytes that they have sent since then.
    pub bytes_after: u64,
    /// Idle connections of older generations that were closed for `--drain-idle`.
    pub idle_closed: u64,
    /// Connections that ended with the generations that had them.
    pub connections_cut: u64,
}

/// One generation in [`Status`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GenerationStatus {
    /// Its number.
    pub generation: u64,
    /// Where it is in its life.
    pub state: String,
    /// Its process.
    pub pid: Option<i32>,
    /// When its process was started (RFC 3339).
    #[serde(default)]
    pub since: Option<String>,
    /// Seconds since then.
    pub age: Option<u64>,
    /// The version of haproxy.
    pub version: Option<String>,
    /// How many listeners it has.
    #[serde(default)]
    pub listeners: Option<usize>,
    /// Its connections.
    #[serde(flatten)]
    pub drain: DrainStatus,
    /// How long its start took, until it was ready.
    #[serde(default)]
    pub start_ms: Option<u64>,
    /// Resident memory in bytes.
    pub memory: Option<u64>,
    /// What else a newer supervisor sends.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// The connections of a generation, and what comes on them once it drains.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainStatus {
    /// How many it has.
    pub connections: Option<u64>,
    /// Requests that have come on them since it stopped accepting; none while it accepts, or where nobody tells.
    pub requests_after: Option<u64>,
    /// Bytes that it has sent since then.
    pub bytes_after: Option<u64>,
    /// How many of them were closed because they were idle.
    pub idle_closed: u64,
    /// What keeps a generation that drains.
    pub oldest_sessions: Vec<Session>,
}

/// An address that haproxy binds itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OwnAddress {
    /// The line of the configuration.
    pub place: String,
    /// As written there.
    pub address: String,
    /// Why it does not come from the broker.
    pub reason: String,
}

/// What a request is answered with.
pub(crate) fn result(reply: &impl Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(reply)
        .map_err(|error| RpcError::new(ErrorCode::INTERNAL, error.to_string()))
}
