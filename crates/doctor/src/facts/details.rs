//! What costs the kernel a walk through every connection, and is asked for only where a finding
//! needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What has to be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Questions {
    /// How long the queues of these listeners have waited: their inodes.
    pub(crate) queues: BTreeSet<u64>,
    /// Which connections these processes have: their pids.
    pub(crate) connections: BTreeSet<i32>,
}

/// The answers.
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
    /// How many there are.
    pub(crate) count: u64,
    /// The one that has been idle for longest, as `REMOTE - LOCAL`, and for how long.
    pub(crate) oldest: Option<(String, Duration)>,
}
