//! What clients may cost beside what they were given: memory that is kept for them, and lines of
//! the log.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bindonce_core::budget::Budget;
use bindonce_core::event::Flood;

use crate::state::{State, now};

/// So many users and kinds are told apart.
const KINDS: usize = 256;

/// What is kept for one connection, until this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Rc<RefCell<Budget>>,
    uid: u32,
    /// Root and the broker's user may have what they ask for.
    spared: bool,
    kept: Cell<usize>,
}

impl Share {
    pub(crate) fn new(budget: &Rc<RefCell<Budget>>, uid: u32, spared: bool) -> Self {
        Self { budget: Rc::clone(budget), uid, spared, kept: Cell::new(0) }
    }

    /// So much is kept now. False if there is no room for it.
    pub(crate) fn keep(&self, bytes: usize) -> bool {
        self.spared || {
            let was = self.kept.replace(bytes);
            self.budget.borrow_mut().change(self.uid, was, bytes)
        }
    }

    /// As [`Share::keep`], and a user may have one that is larger than its share: a long reply.
    pub(crate) fn keep_one(&self, bytes: usize) -> bool {
        self.keep(bytes) || self.budget.borrow().is_only(self.uid, bytes)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.keep(0);
    }
}

/// What the log has been told of each user and kind.
#[derive(Debug, Default)]
pub(crate) struct Told(RefCell<BTreeMap<(u32, &'static str), Flood>>);

/// How many lines of one kind a user may cause in ten seconds.
const LINES: u32 = 10;

/// The same for what it was given, and for lines that tell of its work.
const LINES_OF_WORK: u32 = 100;

impl Told {
    fn passes(&self, uid: u32, kind: &'static str, most: u32) -> Option<Option<u64>> {
        let mut floods = self.0.borrow_mut();
        let key = (uid, kind);
        // Users without end share a place.
        let place = if floods.len() < KINDS || floods.contains_key(&key) { uid } else { u32::MAX };
        let left_out = floods.entry((place, kind)).or_default().up_to(most, now().0)?;
        Some((left_out > 0).then_some(left_out))
    }

    /// Whether the log is told of something that was refused to a user, and how many before it the
    /// log was not told of.
    pub(crate) fn refused(&self, uid: u32, kind: &'static str) -> Option<Option<u64>> {
        self.passes(uid, kind, LINES)
    }

    /// The same of something that was done for a user.
    pub(crate) fn done(&self, uid: u32, kind: &'static str) -> Option<Option<u64>> {
        self.passes(uid, kind, LINES_OF_WORK)
    }
}

impl State {
    /// Whether the log and the events are told of work that was done for a user: all of it for root
    /// and the broker's user, some for others. If so, of how many before it they were not told.
    pub(crate) fn worth_a_line(&self, uid: u32, kind: &'static str) -> Option<Option<u64>> {
        if self.policy.owns_names(uid) { Some(None) } else { self.told.done(uid, kind) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_its_own_lines_and_users_without_end_share_some() {
        let told = Told::default();
        let lines = |uid| (0..1000).filter(|_| told.refused(uid, "denied").is_some()).count();
        assert!(lines(1) <= 20 && lines(2) >= 10);
        let all: usize = (0..2000).map(|uid| usize::from(told.refused(uid, "cut").is_some())).sum();
        assert!(all <= KINDS + 20, "{all}");
        assert!(told.0.borrow().len() <= KINDS + 2);
    }
}
