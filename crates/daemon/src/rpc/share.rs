//! The resources of one connection, counted against the budgets of its user and of all users.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bindonce_core::budget::Budget;

use super::limits::{Limits, RESERVED};

/// The budgets for all clients of a server.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    /// Bytes that are kept for clients.
    bytes: Rc<RefCell<Budget>>,
    /// The same for root and the daemon's user.
    reserved: Rc<RefCell<Budget>>,
    /// Received descriptors that are not taken yet.
    in_flight: Rc<RefCell<Budget>>,
    /// Sent descriptors that are not received yet.
    unreceived: Rc<RefCell<Budget>>,
}

impl Budgets {
    pub(super) fn limit(&self, limits: &Limits) {
        let Limits { buffered_bytes, descriptors_in_flight, descriptors_unreceived, .. } = *limits;
        self.bytes.borrow_mut().set_limit(buffered_bytes);
        self.reserved.borrow_mut().set_limit(buffered_bytes.saturating_mul(RESERVED));
        self.in_flight.borrow_mut().set_limit(descriptors_in_flight);
        self.unreceived.borrow_mut().set_limit(descriptors_unreceived);
    }

    /// The shares of a new connection of this user, empty at first.
    pub(super) fn shares(&self, uid: u32, exempt: bool) -> Shares {
        let bytes = if exempt { &self.reserved } else { &self.bytes };
        Shares {
            memory: Share::new(bytes, uid),
            in_flight: Share::new(&self.in_flight, uid),
            unreceived: Share::new(&self.unreceived, uid),
        }
    }
}

/// One connection's share of each budget.
#[derive(Debug)]
pub(super) struct Shares {
    /// The memory of its requests and replies.
    pub(super) memory: Share,
    /// Descriptors that came with requests that are not answered yet.
    pub(super) in_flight: Share,
    /// Descriptors that were sent to it and may not be received yet.
    pub(super) unreceived: Share,
}

/// One connection's share of one budget, until this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Rc<RefCell<Budget>>,
    uid: u32,
    kept: Cell<usize>,
}

impl Share {
    fn new(budget: &Rc<RefCell<Budget>>, uid: u32) -> Self {
        Self { budget: Rc::clone(budget), uid, kept: Cell::new(0) }
    }

    /// Counts `amount` in place of the amount before. False if there is no room for it.
    pub(super) fn keep(&self, amount: usize) -> bool {
        let was = self.kept.replace(amount);
        if was == amount {
            return true;
        }
        self.budget.borrow_mut().change(self.uid, was, amount)
    }

    /// The amount that is counted.
    pub(super) fn kept(&self) -> usize {
        self.kept.get()
    }

    /// Whether there is room for `more` of a resource that the server cannot take back.
    pub(super) fn has_room(&self, more: usize) -> bool {
        self.budget.borrow().has_room(self.uid, more)
    }

    /// As [`Share::keep`], but a user may have one item that is larger than its share: a long
    /// reply.
    pub(super) fn keep_one(&self, amount: usize) -> bool {
        self.keep(amount) || self.budget.borrow().is_only(self.uid, amount)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.keep(0);
    }
}
