//! Facts that cost the kernel a walk through every connection, and so are collected only where a
//! finding needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The facts to collect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Questions {
    /// Inodes of listeners: how long have their queues waited?
    pub(crate) queues: BTreeSet<u64>,
    /// Pids of processes: which connections do they have?
    pub(crate) connections: BTreeSet<i32>,
}

/// The collected facts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Details {
    /// How long the oldest connection in a listener's accept queue has waited, by inode.
    pub(crate) waits: BTreeMap<u64, Duration>,
    /// The connections of a process, by pid.
    pub(crate) connections: BTreeMap<i32, Connections>,
}

/// The connections of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Connections {
    /// Number of connections.
    pub(crate) count: u64,
    /// The connection that has been idle longest, as `REMOTE - LOCAL`, and its idle time.
    pub(crate) oldest: Option<(String, Duration)>,
}
