//! Claims that wait for another, which is about the same listeners.

use std::collections::BTreeSet;
use std::rc::Rc;

use bindonce_core::registry::ConnectionId;
use tokio::sync::Notify;

/// Which of them may be tried again.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    decided: BTreeSet<ConnectionId>,
    rung: Rc<Notify>,
}

impl Waiting {
    /// Rung when one is decided.
    pub(crate) fn bell(&self) -> Rc<Notify> {
        Rc::clone(&self.rung)
    }

    /// What a connection's claim waits for is decided.
    pub(super) fn decide(&mut self, id: ConnectionId) {
        self.decided.insert(id);
    }

    /// Tells them all, if some are decided.
    pub(super) fn ring(&self) {
        if !self.decided.is_empty() {
            self.rung.notify_waiters();
        }
    }

    /// Whether it is decided, and no longer waited for.
    pub(crate) fn take(&mut self, id: ConnectionId) -> bool {
        self.decided.remove(&id)
    }
}
