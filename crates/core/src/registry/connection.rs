//! A connection, the generation that it has joined as, and the holders of a listener.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::{ConnectionId, ListenerId};
use crate::name::Name;
use crate::policy::Peer;
use crate::time::Timestamp;

/// The state of a generation, in the words of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has not accepted yet: it is not ready, or waits for older ones to stop accepting.
    Starting,
    /// It accepts. The listeners that it holds are confirmed.
    Serving,
    /// It was told to stop, and serves its open connections.
    Draining,
}

impl State {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The generation of a service that a connection has joined as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Name of the service.
    pub service: Name,
    /// Number of the generation.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// Its state.
    pub state: State,
}

/// All that the registry knows of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedConnection {
    /// Its number, the same in both images.
    pub id: ConnectionId,
    /// Who connected.
    pub peer: Peer,
    /// The generation that it has joined as, and since when that is in its state.
    pub label: Option<(Label, Timestamp)>,
    /// The listeners that it uses.
    pub leases: Vec<SavedLease>,
}

/// A listener that a connection uses, for another image of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SavedLease {
    /// Inode number of the listener's socket.
    pub inode: u64,
    /// Since when.
    #[serde(default)]
    pub since: Timestamp,
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
    /// The process that uses the listener: that of the generation, else the one that connected.
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
            // The kernel reports no pid for a process of another pid namespace.
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
    /// Each lease, with the time it began.
    pub(super) leases: BTreeMap<ListenerId, Timestamp>,
}
