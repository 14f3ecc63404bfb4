//! A listener that is held.

use std::sync::Arc;

use crate::address::Address;
use crate::listener::{Key, Listener};
use crate::name::Name;
use crate::time::Timestamp;

use super::ids::ConnectionId;
use super::refusal::HeldBy;

/// A socket that the shell has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened<H> {
    /// The socket.
    pub handle: H,
    /// The address that it got; differs from the one asked for where that has port 0.
    pub bound: Address,
    /// Inode number of the socket.
    pub inode: u64,
    /// SO_COOKIE of the socket.
    pub cookie: u64,
    /// The backlog that was given to listen(2), 0 for UDP.
    pub backlog: u32,
    /// Whether nobody else can bind the address beside it.
    pub exclusive: bool,
}

/// A listener that is held.
#[derive(Debug)]
pub struct Held<H> {
    /// The socket and what is known of it.
    pub opened: Opened<H>,
    /// As it was asked for first; its name may have been added by a later claim.
    pub listener: Arc<Listener>,
    /// Since when.
    pub since: Timestamp,
    /// Whether it is closed with its last lease.
    pub tentative: bool,
    /// It was tentative, and this connection's generation has outlived the connection with it.
    pub(super) outlived: Option<ConnectionId>,
    /// How many connections have a lease on it, or are about to get one.
    pub(super) leases: usize,
    /// The service and the user whose lease was the last to end, where nobody has it now.
    pub(super) last_user: Option<Box<(Name, u32)>>,
    /// How often its name, its options or `tentative` has changed.
    pub(super) edition: u32,
    /// The edition that was granted last.
    granted: Option<u32>,
}

impl<H> Held<H> {
    /// Nobody uses it yet.
    pub(super) fn new(
        listener: Arc<Listener>,
        opened: Opened<H>,
        since: Timestamp,
        tentative: bool,
    ) -> Self {
        Self {
            opened,
            listener,
            since,
            tentative,
            outlived: None,
            leases: 0,
            last_user: None,
            edition: 0,
            granted: None,
        }
    }

    /// Another number whenever its name, its options or whether it is tentative has changed: what was
    /// written down of it under the same number is still true.
    pub fn edition(&self) -> u32 {
        self.edition
    }

    /// It is granted: whether its edition was not granted before.
    pub(super) fn grant(&mut self) -> bool {
        self.granted.replace(self.edition) != Some(self.edition)
    }

    /// It stays when its last lease ends.
    pub(super) fn confirm(&mut self) {
        self.outlived = None;
        if std::mem::replace(&mut self.tentative, false) {
            self.edition += 1;
        }
    }

    /// The generation of this connection lives on with it, while the connection ends.
    pub(super) fn outlive(&mut self, connection: ConnectionId) {
        self.confirm();
        self.outlived = Some(connection);
    }

    /// Nothing keeps it but its leases.
    pub(super) fn doubt(&mut self) {
        self.outlived = None;
        self.tentative = true;
        self.edition += 1;
    }

    pub(super) fn key(&self) -> Key {
        self.listener.key()
    }

    /// As a refusal names it.
    pub(super) fn described(&self) -> Box<HeldBy> {
        let asked = self.listener.address.port();
        let port = self.opened.bound.port().filter(|port| Some(*port) != asked);
        Box::new(HeldBy { listener: Arc::clone(&self.listener), port, since: self.since })
    }
}
