//! Records of who uses the listeners: connections, the generations that they stand for, and services.

use serde::{Deserialize, Serialize};

use crate::params::State;

/// A client that is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionEntry {
    /// The broker's number for it.
    pub id: u64,
    /// The number of its descriptor, for an upgrade in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<i32>,
    /// The process that connected.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The generation that it has joined as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<ConnectionLabel>,
    /// What it uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<ConnectionLease>,
    /// Bytes of a request that was not complete yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<u8>,
    /// The id, as JSON text, of its request for the upgrade, which the next image answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owed: Option<String>,
}

/// The generation that a connection has joined as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionLabel {
    /// Name of the service.
    pub service: String,
    /// Number of the generation.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// Where it is in its life.
    pub state: State,
    /// Since when, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub since: u64,
    /// Where the broker keeps the order of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<ConnectionTurn>,
}

/// How far a generation is whose order the broker keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionTurn {
    /// It has said that it is ready.
    #[serde(default)]
    pub ready: bool,
    /// It has been told to retire.
    #[serde(default)]
    pub told: bool,
}

/// A service whose order the broker keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The last number that a generation of it was given.
    pub last: u64,
    /// The generation that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<u64>,
}

/// A listener that a connection uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionLease {
    /// Inode number of the listener's socket.
    pub inode: u64,
    /// Since when, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub since: u64,
}
