//! A held listener.

use std::sync::Arc;

use crate::address::Address;
use crate::listener::{Key, Listener};
use crate::name::Name;
use crate::time::Timestamp;

use super::ids::Process;
use super::refusal::HeldBy;

/// A socket that the shell has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened<H> {
    /// The socket.
    pub handle: H,
    /// The address that it got; differs from the one asked for if that has port 0.
    pub bound: Address,
    /// Inode number of the socket.
    pub inode: u64,
    /// SO_COOKIE of the socket.
    pub cookie: u64,
    /// The backlog that was given to listen(2), 0 for UDP.
    pub backlog: u32,
    /// Whether no other process can bind the address beside it.
    pub exclusive: bool,
}

/// A held listener.
#[derive(Debug)]
pub struct Held<H> {
    /// The socket and its properties.
    pub opened: Opened<H>,
    /// The listener as first asked for; a later claim may have added its name.
    pub listener: Arc<Listener>,
    /// Since when it is held, with this socket.
    pub since: Timestamp,
    /// Whether it is closed with its last lease.
    pub tentative: bool,
    /// The process for which it is kept: it was tentative, and the process outlived the connection
    /// of its generation.
    pub outlived: Option<Process>,
    /// How many connections have a lease on it, or are about to get one.
    pub(super) leases: usize,
    /// The service and user whose lease ended last, if nobody has a lease now.
    pub(super) last_user: Option<Box<(Name, u32)>>,
    /// How often its name, its options, `tentative` or `outlived` have changed.
    pub(super) edition: u32,
    /// The edition that was granted last.
    granted: Option<u32>,
}

impl<H> Held<H> {
    /// A listener that nobody uses yet.
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

    /// A number that changes with its name, its options, `tentative` or `outlived`: a record
    /// written under the same number is still true.
    pub fn edition(&self) -> u32 {
        self.edition
    }

    /// Notes a grant; true if this edition was not granted before.
    pub(super) fn grant(&mut self) -> bool {
        self.granted.replace(self.edition) != Some(self.edition)
    }

    /// Makes it stay when its last lease ends.
    pub(super) fn confirm(&mut self) {
        let kept = self.outlived.take().is_some();
        if std::mem::replace(&mut self.tentative, false) || kept {
            self.edition += 1;
        }
    }

    /// Keeps it for a process that outlives the connection of its generation.
    pub(super) fn outlive(&mut self, process: Process) {
        self.confirm();
        self.outlived = Some(process);
    }

    /// Makes it tentative again: only its leases keep it.
    pub(super) fn doubt(&mut self) {
        self.outlived = None;
        self.tentative = true;
        self.edition += 1;
    }

    pub(super) fn key(&self) -> Key {
        self.listener.key()
    }

    /// Its description for a refusal.
    pub(super) fn described(&self) -> Box<HeldBy> {
        let asked = self.listener.address.port();
        let port = self.opened.bound.port().filter(|port| Some(*port) != asked);
        Box::new(HeldBy { listener: Arc::clone(&self.listener), port, since: self.since })
    }
}
