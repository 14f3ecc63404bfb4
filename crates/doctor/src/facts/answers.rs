//! What the generations of services answer, as their supervisors tell.

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
    /// The processes that drain, the oldest first.
    pub pids: Vec<i32>,
    /// Connections that they have together.
    pub connections: u64,
}
