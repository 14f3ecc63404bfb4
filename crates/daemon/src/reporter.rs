//! Writes the log and the events, and limits how much of the log one user can cause.
//!
//! Everything is counted and recorded as an event. Of the log lines that a client can cause again
//! and again, each user has a fixed number in ten seconds; the next line says how many were left
//! out.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bindonce_core::event::{Flood, Kind};
use bindonce_core::policy::owns_names;
use bindonce_sys::clock::now;

use crate::{Happening, Journal};

/// The most pairs of user and kind that are counted separately.
const KINDS: usize = 256;

/// How many lines of one kind a user may cause in ten seconds.
const LINES: u32 = 10;

/// The same for lines about work that was done for the user.
const LINES_OF_WORK: u32 = 100;

/// The reporter of one daemon.
#[derive(Debug)]
pub struct Reporter {
    /// The journal of the events.
    pub journal: Rc<Journal>,
    /// The daemon's user.
    owner: u32,
    floods: RefCell<BTreeMap<(u32, &'static str), Flood>>,
}

impl Reporter {
    /// A reporter for a daemon of this user.
    pub fn new(journal: Rc<Journal>, owner: u32) -> Rc<Self> {
        Rc::new(Self { journal, owner, floods: RefCell::default() })
    }

    /// Records an event.
    pub fn record(&self, happening: Happening) {
        self.journal.record(happening);
    }

    /// Records an event about this process itself.
    pub fn own(&self, kind: Kind, text: impl Into<String>) {
        self.record(Happening::new(kind, text).pid(std::process::id().cast_signed()));
    }

    fn passes(&self, uid: u32, kind: &'static str, most: u32) -> Option<Option<u64>> {
        let mut floods = self.floods.borrow_mut();
        let key = (uid, kind);
        // Further users share one entry.
        let place = if floods.len() < KINDS || floods.contains_key(&key) { uid } else { u32::MAX };
        let left_out = floods.entry((place, kind)).or_default().up_to(most, now().0)?;
        Some((left_out > 0).then_some(left_out))
    }

    /// Whether to log a refusal to a user, or a signal from one; if so, how many before it were
    /// left out.
    pub fn refused(&self, uid: u32, kind: &'static str) -> Option<Option<u64>> {
        self.passes(uid, kind, LINES)
    }

    /// Whether to report work that was done for a user: always for root and the daemon's user, else
    /// within a limit. If so, how many reports before it were left out.
    pub fn worth_a_line(&self, uid: u32, kind: &'static str) -> Option<Option<u64>> {
        if self.is_owner(uid) { Some(None) } else { self.passes(uid, kind, LINES_OF_WORK) }
    }

    /// Whether a user is root or the daemon's own user.
    pub fn is_owner(&self, uid: u32) -> bool {
        owns_names(self.owner, uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_its_own_lines_and_users_without_end_share_some() {
        let reporter = Reporter::new(Journal::in_memory(None), 0);
        let refused = |uid, kind| reporter.refused(uid, kind).is_some();
        let lines = |uid| (0..1000).filter(|_| refused(uid, "denied")).count();
        assert!(lines(1) <= 20 && lines(2) >= 10);
        let all: usize = (0..2000).map(|uid| usize::from(refused(uid, "cut"))).sum();
        assert!(all <= KINDS + 20, "{all}");
        assert!(reporter.floods.borrow().len() <= KINDS + 2);
        assert!((0..1000).all(|_| reporter.worth_a_line(0, "opened") == Some(None)));
    }
}
