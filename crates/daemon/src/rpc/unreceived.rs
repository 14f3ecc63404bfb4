//! Descriptors that were sent to clients and are not received yet.
//!
//! The kernel counts them for this process's user. When there are as many as RLIMIT_NOFILE, it
//! sends no more (unix(7), ETOOMANYREFS), and only the receivers can end that. So each user may
//! have a part of what the other users leave
//! ([`Budget::has_room`](bindonce_core::budget::Budget::has_room)); a user that has it already
//! waits until one of its connections receives. A connection that this end has closed counts like
//! an open one, until its peer has received all or has closed it.
//!
//! The kernel is asked to report receipts only where a reply waits for them: most connections have
//! nothing unread, and a check before more is sent is enough.

use std::cell::OnceCell;
use std::io;
use std::os::fd::BorrowedFd;

use bindonce_core::registry::ConnectionId;
use bindonce_sys::unreceived::Watched;
use tokio::sync::Notify;

/// Watches clients receive what was sent to them.
#[derive(Debug, Default)]
pub(super) struct Unreceived {
    /// Connections that the kernel reports on; set when the server runs.
    pub(super) watched: OnceCell<Watched>,
    /// Notified when the peer of a connection has received all.
    pub(super) received: Notify,
}

impl Unreceived {
    /// Watches the peer of this connection too. Check the connection again after this.
    pub(super) fn watch(&self, connection: BorrowedFd<'_>, id: ConnectionId) -> io::Result<()> {
        let none = || Err(io::Error::other("the kernel gave nothing to watch connections with"));
        self.watched.get().map_or_else(none, |watched| watched.add(connection, id.0))
    }
}
