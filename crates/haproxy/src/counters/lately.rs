//! What the generations of a service have answered lately, as its supervisor tells.

use serde::{Deserialize, Serialize};

/// What the generations of a service have answered lately, where haproxy tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lately {
    /// In this time.
    pub seconds: u64,
    /// Requests of all generations.
    pub requests: u64,
    /// Bytes that these have sent.
    pub bytes: u64,
    /// Requests that came to generations after they had stopped accepting.
    pub draining_requests: u64,
    /// Bytes that these have sent since then.
    pub draining_bytes: u64,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Requests.
    Requests,
    /// Bytes sent, where no request was counted (TCP).
    Bytes,
}

impl Lately {
    /// What draining generations have answered, and what all have.
    pub fn draining(&self) -> (Unit, u64, u64) {
        match self.requests {
            0 => (Unit::Bytes, self.draining_bytes, self.bytes),
            requests => (Unit::Requests, self.draining_requests, requests),
        }
    }

    /// The share of draining generations in percent.
    pub fn draining_percent(&self) -> u64 {
        let (_, of, all) = self.draining();
        of.saturating_mul(100) / all.max(1)
    }
}
