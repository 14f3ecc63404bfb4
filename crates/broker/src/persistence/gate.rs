//! Where claims wait until the broker has recovered what it can.

use std::cell::Cell;

use tokio::sync::Notify;

/// Opens when the broker has recovered all that it can.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shut: Cell<bool>,
    opened: Notify,
    /// Notified when a client has donated a listener.
    pub(crate) donated: Notify,
}

impl Gate {
    pub(crate) fn shut(&self) {
        self.shut.set(true);
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.get()
    }

    pub(crate) fn open(&self) {
        self.shut.set(false);
        self.opened.notify_waiters();
    }

    /// Waits until the gate is open.
    pub(crate) async fn pass(&self) {
        while self.shut.get() {
            self.opened.notified().await;
        }
    }
}
