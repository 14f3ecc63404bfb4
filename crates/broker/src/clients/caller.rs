//! Who is at the other end of a connection.

use std::rc::Rc;

use bindonce_core::policy::Peer;
use bindonce_core::registry::ConnectionId;

/// The peer of a connection, as it was when it connected.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) connection: ConnectionId,
    pub(crate) peer: Peer,
    /// Its supplementary groups.
    pub(crate) groups: Rc<[u32]>,
}
