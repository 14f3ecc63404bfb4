//! The peer of a connection.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The credentials of the process at the other end of a connection, as they were when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// Process id, 0 where it is not visible from here (another pid namespace).
    pub pid: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

impl Peer {
    /// The id of a user or group without one in the broker's user namespace. No user has it (it is
    /// `(uid_t) -1`), and no rule allows it anything.
    pub const UNKNOWN: u32 = u32::MAX;
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.uid == Self::UNKNOWN {
            return write!(f, "a user of another user namespace (pid {})", self.pid);
        }
        write!(f, "uid {} (pid {})", self.uid, self.pid)
    }
}
