//! Listeners of the previous broker that are not yet recovered.

use std::collections::HashSet;

use bindonce_core::listener::Key;
use bindonce_wire::manifest::Entry;

/// Listeners not yet recovered. Their records stay.
#[derive(Debug, Default)]
pub(crate) struct Missing {
    pub(crate) entries: Vec<Entry>,
    /// Whether the previous broker ended in order. If so, a listener that no process holds any more
    /// is not missing.
    pub(crate) left_in_order: bool,
}

impl Missing {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Copies of matching entries to hold again. A tentative listener ends with its broker.
    pub(crate) fn wanted(&self, matches: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let wanted = self.entries.iter().filter(|entry| !entry.tentative && matches(entry));
        wanted.cloned().collect()
    }

    /// Removes listeners that are held again, by inode.
    pub(crate) fn recovered(&mut self, inodes: &HashSet<u64>) {
        self.entries.retain(|entry| !inodes.contains(&entry.inode));
    }

    /// Removes listeners that a claim has bound again.
    pub(crate) fn bound(&mut self, keys: &HashSet<Key>) {
        self.entries.retain(|entry| entry.listener().is_ok_and(|it| !keys.contains(&it.key())));
    }
}
