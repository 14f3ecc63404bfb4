//! Numbers of connections, listeners and processes.

use serde::{Deserialize, Serialize};

/// The most listeners that one request may ask for: enough for every port twice.
pub const MAX_CLAIM: usize = 150_000;

/// How many listeners of a claim are planned or granted in one step: about a microsecond each.
pub(super) const AT_ONCE: usize = 256;

/// A connection to the broker; a number that the shell chooses and never reuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConnectionId(pub u64);

/// A process: its pid, and when it started, by which it differs from an earlier one with that pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    /// The pid.
    pub pid: u32,
    /// The start time as the system counts it.
    pub start: u64,
}

/// A held listener. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub(super) u64);

impl ListenerId {
    /// The id as a number, for callers that store it.
    pub fn number(self) -> u64 {
        self.0
    }
}
