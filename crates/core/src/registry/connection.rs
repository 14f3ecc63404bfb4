//! A connection, the generation that it has joined as, and who uses a listener.

use std::collections::BTreeMap;
use std::fmt;

use super::ids::{ConnectionId, ListenerId};
use crate::name::Name;
use crate::policy::Peer;
use crate::time::Timestamp;

/// The state of a generation, as its connection has joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JoinState {
    /// It does not accept yet.
    Starting,
    /// It accepts.
    Serving,
    /// It finishes what it has.
    Draining,
}

/// The generation of a service that a connection has joined as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Name of the service.
    pub service: Name,
    /// Number of the generation.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// Where it is in its life.
    pub phase: JoinState,
}

/// A connection with all that the registry knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedConnection {
    /// Its number, the same in both images.
    pub id: ConnectionId,
    /// Who connected.
    pub peer: Peer,
    /// The generation that it has joined as, and since when it is in that state.
    pub label: Option<(Label, Timestamp)>,
    /// The listeners that it uses, by the inode of the socket, and since when.
    pub leases: Vec<(u64, Timestamp)>,
}

/// A connection that has a lease on a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Who connected.
    pub peer: Peer,
    /// The generation that it has joined as, if it has.
    pub label: Option<Label>,
    /// When it first claimed the listener.
    pub since: Timestamp,
}

impl Holder {
    /// The process that uses the listener: that of the generation, else the one
    /// that connected.
    pub fn pid(&self) -> u32 {
        self.label.as_ref().map_or(self.peer.pid, |label| label.pid)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.label {
            Some(label) => {
                write!(f, "{} generation {} (pid {})", label.service, label.generation, label.pid)
            }
            // The kernel gives no number to a process of another pid namespace.
            None if self.peer.pid == 0 => {
                write!(f, "a process of uid {} in another container", self.peer.uid)
            }
            None => write!(f, "pid {} (uid {})", self.peer.pid, self.peer.uid),
        }
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: Peer,
    pub(super) label: Option<(Label, Timestamp)>,
    /// Each lease with the time it began.
    pub(super) leases: BTreeMap<ListenerId, Timestamp>,
}
