//! The recent traffic of a service's generations, as its supervisor reports it.

use serde::{Deserialize, Serialize};

/// The recent traffic of a service's generations, as far as haproxy reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lately {
    /// The length of the period, in seconds.
    pub seconds: u64,
    /// Requests answered by all generations.
    pub requests: u64,
    /// Bytes sent by all generations.
    pub bytes: u64,
    /// Requests that reached generations after they had stopped accepting.
    pub draining_requests: u64,
    /// Bytes sent by generations after they had stopped accepting.
    pub draining_bytes: u64,
}

/// The unit of the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Requests.
    Requests,
    /// Bytes sent, if no request was counted (TCP).
    Bytes,
}

impl Lately {
    /// The unit, the share of draining generations, and the total.
    pub fn draining(&self) -> (Unit, u64, u64) {
        match self.requests {
            0 => (Unit::Bytes, self.draining_bytes, self.bytes),
            requests => (Unit::Requests, self.draining_requests, requests),
        }
    }

    /// The share of draining generations, in percent.
    pub fn draining_percent(&self) -> u64 {
        let (_, of, all) = self.draining();
        of.saturating_mul(100) / all.max(1)
    }
}
