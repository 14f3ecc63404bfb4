//! The peer of a connection.

use std::rc::Rc;

use bindonce_core::policy::Peer;
use bindonce_core::registry::ConnectionId;

/// The peer of a connection, as it was when it connected.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The number of its connection.
    pub connection: ConnectionId,
    /// Its process, user and group.
    pub peer: Peer,
    /// Its supplementary groups.
    pub groups: Rc<[u32]>,
    /// The network namespace of its socket, by SO_NETNS_COOKIE; None if the kernel does not give
    /// it.
    pub network: Option<u64>,
}
