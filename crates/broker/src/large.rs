//! Large answers, one at a time for each user. So a user takes the memory for a large answer only
//! once, on however many connections it asks.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

/// Users with a large answer in progress.
#[derive(Debug, Default)]
pub(crate) struct LargeAnswers(RefCell<HashMap<u32, Arc<Mutex<()>>>>);

/// The turn of a request among its user's large ones, once it has come.
#[derive(Debug, Default)]
pub(crate) struct Turn(Option<OwnedMutexGuard<()>>);

impl Turn {
    /// Whether the turn has come. It comes at once if no other is in progress.
    pub(crate) fn has_come(&mut self, large: &LargeAnswers, uid: u32) -> bool {
        if self.0.is_none() {
            self.0 = large.of(uid).try_lock_owned().ok();
        }
        self.0.is_some()
    }

    /// Waits for the turn, if it has not come yet. It lasts until this is dropped.
    pub(crate) async fn come(&mut self, large: &LargeAnswers, uid: u32) {
        if self.0.is_none() {
            let lock = large.of(uid);
            self.0 = Some(lock.lock_owned().await);
        }
    }
}

impl LargeAnswers {
    fn of(&self, uid: u32) -> Arc<Mutex<()>> {
        let mut users = self.0.borrow_mut();
        // Forget users that have no large answer in progress.
        users.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(users.entry(uid).or_default())
    }
}
