//! Numbers of connections and listeners.

use serde::{Deserialize, Serialize};

/// The most listeners that one request may ask for: every port twice, and some.
pub const MAX_CLAIM: usize = 150_000;

/// So many listeners of a claim are planned or granted in one step: about a microsecond each.
pub(super) const AT_ONCE: usize = 256;

/// One connection to the broker; a number that the shell chose and never uses twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConnectionId(pub u64);

/// One listener that is held. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub(super) u64);

impl ListenerId {
    /// As a number, for callers that store it.
    pub fn number(self) -> u64 {
        self.0
    }
}
