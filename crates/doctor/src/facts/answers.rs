//! What the generations of services answer, as their supervisors tell.

use bindonce_haproxy::counters::Lately;

/// What the supervisor of a service tells, or why it does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The service.
    pub service: String,
    /// What it tells, or why not.
    pub told: Result<Answered, String>,
}

/// What the generations of a service have answered lately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answered {
    /// How much, and how much of it after they had stopped accepting.
    pub lately: Lately,
    /// The processes that drain, the oldest first.
    pub pids: Vec<i32>,
    /// Connections that they have together.
    pub connections: u64,
}
