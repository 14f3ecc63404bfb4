//! What is kept for one connection, counted against what its user and all users together may have.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bindonce_core::budget::Budget;

/// What is kept for one connection, until this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Rc<RefCell<Budget>>,
    uid: u32,
    /// It may have what it asks for.
    spared: bool,
    kept: Cell<usize>,
}

impl Share {
    pub(crate) fn new(budget: &Rc<RefCell<Budget>>, uid: u32, spared: bool) -> Self {
        Self { budget: Rc::clone(budget), uid, spared, kept: Cell::new(0) }
    }

    /// So much is kept now. False if there is no room for it.
    pub(crate) fn keep(&self, amount: usize) -> bool {
        self.spared || {
            let was = self.kept.replace(amount);
            self.budget.borrow_mut().change(self.uid, was, amount)
        }
    }

    /// As [`Share::keep`], and a user may have one that is larger than its share: a long reply.
    pub(crate) fn keep_one(&self, amount: usize) -> bool {
        self.keep(amount) || self.budget.borrow().is_only(self.uid, amount)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.keep(0);
    }
}
