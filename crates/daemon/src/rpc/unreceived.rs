//! Descriptors that clients were sent and have not received yet.
//!
//! The kernel counts them for this process's user, and sends none any more where there are as many as RLIMIT_NOFILE (unix(7),
//! ETOOMANYREFS); nothing but their receiver ends that. So each user has a part of what the others leave
//! ([`Budget::has_room`](bindonce_core::budget::Budget::has_room)), and who has it already waits until a connection of that user receives. A connection that this end has
//! closed counts, as an open one, until its peer has received all or has closed it.
//!
//! The kernel reports what is received only for connections for which a reply waits: on most connections nothing is unread, and a
//! look before more is sent is enough.

use std::cell::OnceCell;
use std::io;
use std::os::fd::BorrowedFd;

use bindonce_core::registry::ConnectionId;
use bindonce_sys::unreceived::Watched;
use tokio::sync::Notify;

/// Watches clients receive what they were sent.
#[derive(Debug, Default)]
pub(super) struct Unreceived {
    /// Connections that the kernel reports on; set when the server runs.
    pub(super) watched: OnceCell<Watched>,
    /// Rung when the peer of one has received all.
    pub(super) received: Notify,
}

impl Unreceived {
    /// Waits for the peer of this connection too. Look at it again after this.
    pub(super) fn watch(&self, connection: BorrowedFd<'_>, id: ConnectionId) -> io::Result<()> {
        let none = || Err(io::Error::other("the kernel gave nothing to watch connections with"));
        self.watched.get().map_or_else(none, |watched| watched.add(connection, id.0))
    }
}
