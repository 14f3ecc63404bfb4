//! What one connection has, counted against the budget of its user and of all users together.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bindonce_core::budget::Budget;

/// What one connection has, until this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Rc<RefCell<Budget>>,
    uid: u32,
    kept: Cell<usize>,
}

impl Share {
    pub(super) fn new(budget: &Rc<RefCell<Budget>>, uid: u32) -> Self {
        Self { budget: Rc::clone(budget), uid, kept: Cell::new(0) }
    }

    /// Counts `amount` in place of what was counted before. False if there is no room for it.
    pub(super) fn keep(&self, amount: usize) -> bool {
        let was = self.kept.replace(amount);
        self.budget.borrow_mut().change(self.uid, was, amount)
    }

    /// What is counted.
    pub(super) fn kept(&self) -> usize {
        self.kept.get()
    }

    /// Whether there is room for so much more of what the server cannot take back.
    pub(super) fn has_room(&self, more: usize) -> bool {
        self.budget.borrow().has_room(self.uid, more)
    }

    /// As [`Share::keep`], and a user may have one that is larger than its share: a long reply.
    pub(super) fn keep_one(&self, amount: usize) -> bool {
        self.keep(amount) || self.budget.borrow().is_only(self.uid, amount)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.keep(0);
    }
}
