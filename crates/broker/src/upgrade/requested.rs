//! Upgrades that are asked for, and how many have been done.

use std::cell::{Cell, RefCell};

use tokio::sync::{Notify, oneshot};

/// Upgrades of one broker, asked for and done.
#[derive(Debug, Default)]
pub(crate) struct Upgrade {
    pub(super) wanted: Notify,
    /// Those who wait to hear that it failed.
    pub(super) callers: RefCell<Vec<oneshot::Sender<String>>>,
    pub(super) done: Cell<u64>,
}

impl Upgrade {
    /// How often this process has become another binary.
    pub(crate) fn count(&self) -> u64 {
        self.done.get()
    }
}
