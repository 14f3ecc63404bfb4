//! The recent traffic of services, as their supervisors report it.

use bindonce_haproxy::counters::Lately;

/// The report of one service's supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The service.
    pub service: String,
    /// The report, or why there is none.
    pub told: Result<Answered, String>,
}

/// The recent traffic of a service's generations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answered {
    /// The totals, and the share of generations that have stopped accepting.
    pub lately: Lately,
    /// The pids of the draining processes, oldest first.
    pub pids: Vec<i32>,
    /// Number of their connections together.
    pub connections: u64,
}
