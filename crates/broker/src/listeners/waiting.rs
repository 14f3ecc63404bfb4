//! Claims that wait for another claim about the same listeners.

use std::collections::BTreeSet;
use std::rc::Rc;

use bindonce_core::registry::ConnectionId;
use tokio::sync::Notify;

/// The waiting claims that may be retried.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    decided: BTreeSet<ConnectionId>,
    rung: Rc<Notify>,
}

impl Waiting {
    /// Notified when a claim may be retried.
    pub(crate) fn bell(&self) -> Rc<Notify> {
        Rc::clone(&self.rung)
    }

    /// Notes that the claim of a connection may be retried: the one it waits for is decided.
    pub(super) fn decide(&mut self, id: ConnectionId) {
        self.decided.insert(id);
    }

    /// Wakes all waiting claims, if some may be retried.
    pub(super) fn ring(&self) {
        if !self.decided.is_empty() {
            self.rung.notify_waiters();
        }
    }

    /// Whether the claim of a connection may be retried. Clears the note.
    pub(crate) fn take(&mut self, id: ConnectionId) -> bool {
        self.decided.remove(&id)
    }
}
