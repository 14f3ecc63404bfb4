//! Long looks at all that is held, one at a time for each user: what a listing that is being made takes in memory, a user
//! takes once, on however many connections it asks.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::Mutex;

/// Whose listings are being made.
#[derive(Debug, Default)]
pub(crate) struct Listings(RefCell<HashMap<u32, Rc<Mutex<()>>>>);

impl Listings {
    /// To be locked while a listing is made for this user.
    pub(crate) fn of(&self, uid: u32) -> Rc<Mutex<()>> {
        let mut users = self.0.borrow_mut();
        // Nobody of these makes one any more.
        users.retain(|_, lock| Rc::strong_count(lock) > 1);
        Rc::clone(users.entry(uid).or_default())
    }
}
