//! Upgrades in place: those requested, and the number done.

use std::cell::{Cell, RefCell};

use tokio::sync::{Notify, oneshot};

#[derive(Debug, Default)]
pub(crate) struct Upgrade {
    pub(super) wanted: Notify,
    /// Callers that wait to hear of a failure.
    pub(super) callers: RefCell<Vec<oneshot::Sender<String>>>,
    pub(super) done: Cell<u64>,
}

impl Upgrade {
    /// Number of upgrades in place so far.
    pub(crate) fn count(&self) -> u64 {
        self.done.get()
    }
}
