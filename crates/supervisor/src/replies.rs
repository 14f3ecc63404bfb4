//! The supervisor's replies on its control socket, and the parameters of `reload`. The supervisor
//! and the `bindonce` commands share these types.
//!
//! A field that an older supervisor does not send takes its default. [`Status`] and
//! [`GenerationStatus`] keep unknown fields of a newer supervisor.

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

/// The member of a refusal's data that is there if the service is being shut down: a start of the
/// service takes over from it, a reload does not.
pub const ENDING: &str = "ending";

/// The options of a reload. An option that is not set is not sent, because a supervisor refuses
/// options that it does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReloadParams {
    /// The configuration may leave nothing to listen on.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_empty: bool,
    /// Use the command line of this caller from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<Origin>,
    /// Older generations end as soon as the new generation serves.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub at_once: bool,
    /// Answer only when the older generations are gone, or after this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_drained_ms: Option<u64>,
    /// Close connections of older generations that are idle for this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_idle_ms: Option<u64>,
    /// End older generations after this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout_ms: Option<u64>,
}

impl ReloadParams {
    /// As JSON. Without any option there are no parameters, which every version accepts.
    ///
    /// # Errors
    /// If a value has no JSON form.
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
    /// The pid of its first process.
    pub pid: Option<i32>,
    /// Older generations that did not stop accepting and had to be ended.
    pub ended: Vec<u64>,
    /// Connections of older generations that were cut until the new generation served.
    #[serde(default)]
    pub cut: u64,
    /// Addresses of listeners that the configuration no longer has.
    #[serde(default)]
    pub left: Vec<String>,
    /// No client of the listeners that served before reaches a new listener.
    #[serde(default)]
    pub none_kept: bool,
    /// Addresses that haproxy bound for lines that it read otherwise than bindonce, on the broker's
    /// sockets.
    #[serde(default)]
    pub read_otherwise: Vec<String>,
    /// The same for older generations; they were told to stop instead of being paused for that
    /// reason.
    #[serde(default)]
    pub stopped_first: Vec<String>,
    /// Addresses that the generation listens on itself without a bind(2) or listen(2) that could be
    /// intercepted, as with io_uring.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<String>,
    /// Its standard error until it had started.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub startup: String,
    /// The drain of the older generations, if the client waited for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<Drained>,
}

/// The drain of the generations that a reload replaced, in [`Reloaded`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Generations that still drain.
    pub left: Vec<u64>,
    /// Number of their idle connections that were closed.
    pub idle_closed: u64,
    /// Number of connections that ended with a generation since the reload began.
    pub cut: u64,
}

/// The reply to `retire`: the generation has ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Retired {
    /// The generation.
    pub generation: u64,
    /// The pid of its first process.
    pub pid: Option<i32>,
    /// Number of connections that ended with it, where known.
    pub connections: Option<u64>,
}

/// The reply to `status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The name of the service.
    pub service: String,
    /// The program: `haproxy`, or the name of another program.
    #[serde(default)]
    pub program: String,
    /// The pid of the supervisor.
    pub pid: u32,
    /// The control socket of its broker.
    #[serde(default)]
    pub socket: PathBuf,
    /// The generations, oldest first.
    #[serde(default)]
    pub generations: Vec<GenerationStatus>,
    /// Counters of the supervisor.
    #[serde(flatten)]
    pub counts: Counts,
    /// Recent traffic of all generations.
    #[serde(default)]
    pub lately: Lately,
    /// Number of upgrades in place so far.
    #[serde(default)]
    pub upgrades: u64,
    /// Reloads that wait for the reload in progress to end, or for `--min-interval`.
    #[serde(default)]
    pub reloads_waiting: usize,
    /// Addresses that haproxy binds itself.
    #[serde(default)]
    pub left_alone: Vec<OwnAddress>,
    /// Addresses that an intercepted program listens on itself without a bind(2) or listen(2) that
    /// could be intercepted, as with io_uring.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<String>,
    /// Fields that only a newer supervisor sends.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Counters since the supervisor began.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Reloads that succeeded.
    pub reloads: u64,
    /// Reloads that failed.
    pub failed_reloads: u64,
    /// Starts after a serving generation had died.
    pub restarts: u64,
    /// Ghosts removed from epoll sets.
    pub ghosts_removed: u64,
    /// Requests that arrived on existing connections of generations that had stopped accepting.
    pub requests_after: u64,
    /// Bytes that these generations sent after they had stopped accepting.
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
    /// `starting`, `serving` or `draining`.
    pub state: String,
    /// The pid of its first process.
    pub pid: Option<i32>,
    /// When its process was started (RFC 3339).
    #[serde(default)]
    pub since: Option<String>,
    /// Seconds since then.
    pub age: Option<u64>,
    /// The version of haproxy.
    pub version: Option<String>,
    /// Number of its listeners.
    #[serde(default)]
    pub listeners: Option<usize>,
    /// Its connections and their drain.
    #[serde(flatten)]
    pub drain: DrainStatus,
    /// Duration of its start until it was ready, in milliseconds.
    #[serde(default)]
    pub start_ms: Option<u64>,
    /// Resident memory in bytes.
    pub memory: Option<u64>,
    /// Fields that only a newer supervisor sends.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// The connections of a generation, and their traffic while it drains.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainStatus {
    /// Number of connections.
    pub connections: Option<u64>,
    /// Requests that arrived on them since the generation stopped accepting. None while it accepts,
    /// or where the generation reports no counters.
    pub requests_after: Option<u64>,
    /// Bytes that the generation sent since then.
    pub bytes_after: Option<u64>,
    /// Number of connections closed because they were idle.
    pub idle_closed: u64,
    /// The oldest sessions, which keep a draining generation alive.
    pub oldest_sessions: Vec<Session>,
}

/// An address that haproxy binds itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OwnAddress {
    /// The line of the configuration.
    pub place: String,
    /// The address, as written in that line.
    pub address: String,
    /// Why it does not come from the broker.
    pub reason: String,
}

/// The JSON result for a reply.
pub(crate) fn result(reply: &impl Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(reply)
        .map_err(|error| RpcError::new(ErrorCode::INTERNAL, error.to_string()))
}
