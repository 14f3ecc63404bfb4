//! Records of the users of listeners: connections, and the generations that they have joined as.

use bindonce_core::policy::Peer;
use bindonce_core::registry::{ConnectionId, Label, SavedLease};
use bindonce_core::succession::Progress;
use bindonce_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::omitted::is_default;

/// A connected client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionEntry {
    /// The broker's number for it.
    pub id: ConnectionId,
    /// The number of its descriptor, for an upgrade in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<i32>,
    /// The process that connected.
    #[serde(flatten)]
    pub peer: Peer,
    /// The generation that it has joined as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<ConnectionLabel>,
    /// Its leases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<SavedLease>,
    /// Bytes of a request that was not complete yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<u8>,
    /// The id, as JSON text, of its request for the upgrade, which the next image will answer.
    #[serde(default, rename = "owed", skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<String>,
    /// How many descriptors it was sent and may not have received yet.
    #[serde(default, skip_serializing_if = "is_default")]
    pub unreceived: usize,
}

/// The generation that a connection has joined as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionLabel {
    /// The generation.
    #[serde(flatten)]
    pub label: Label,
    /// Since when it is in that state.
    #[serde(default)]
    pub since: Timestamp,
    /// Its progress, if the broker keeps the order of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<Progress>,
}
