//! The counters of frontends, backends and servers.

use std::collections::BTreeMap;

use super::columns::{COLUMNS, COUNT, SESSIONS, Sum};

/// The kind of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A frontend.
    Frontend,
    /// A backend.
    Backend,
    /// A server.
    Server,
}

/// A frontend, a backend or a server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The kind.
    pub kind: Kind,
    /// The name of its section.
    pub proxy: Box<str>,
    /// The name of the server; empty for frontends and backends.
    pub server: Box<str>,
}

/// The values of a row's columns. Some columns exist for frontends or servers only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Values {
    /// The columns that exist, one bit each.
    has: u64,
    /// The values; 0 for a missing column.
    values: [u64; COUNT],
}

const _: () = assert!(COUNT <= 64, "a bit for each column");

impl Default for Values {
    fn default() -> Self {
        Self { has: 0, values: [0; COUNT] }
    }
}

impl Values {
    pub(super) fn get(&self, column: usize) -> Option<u64> {
        let value = self.values.get(column)?;
        (self.has >> column & 1 == 1).then_some(*value)
    }

    pub(super) fn set(&mut self, column: usize, value: u64) {
        if let Some(place) = self.values.get_mut(column) {
            *place = value;
            self.has |= 1 << column;
        }
    }

    /// Adds the columns that `which` selects.
    pub(super) fn add(&mut self, more: &Self, which: impl Fn(Sum) -> bool) {
        for (at, _) in COLUMNS.iter().enumerate().filter(|(_, column)| which(column.sum)) {
            if let Some(more) = more.get(at) {
                self.set(at, self.get(at).unwrap_or(0).saturating_add(more));
            }
        }
    }

    /// Continues the known count, so that no counter goes down. False if the count began again: the
    /// server was deleted and added, or `clear counters all` was run.
    pub(super) fn goes_on(&mut self, before: &Self) -> bool {
        let goes_on = self.get(SESSIONS) >= before.get(SESSIONS);
        let counters = COLUMNS.iter().enumerate().filter(|(_, column)| column.sum == Sum::Counter);
        // The time in state DOWN is rounded, and may be one second less than before.
        for (at, _) in counters.filter(|_| goes_on) {
            if let Some(before) = before.get(at).filter(|before| Some(*before) > self.get(at)) {
                self.set(at, before);
            }
        }
        goes_on
    }

    /// Subtracts the preset values. False if the counters no longer include them because they began
    /// again.
    pub(super) fn without(&mut self, preset: &Self) -> bool {
        let has = self.get(SESSIONS) >= preset.get(SESSIONS);
        for (at, _) in COLUMNS.iter().enumerate().filter(|_| has) {
            if let Some((value, preset)) = self.get(at).zip(preset.get(at)) {
                self.set(at, value.saturating_sub(preset));
            }
        }
        has
    }

    /// Keeps the counters only, without current values.
    pub(super) fn end(&mut self) {
        let all = std::mem::take(self);
        self.add(&all, |sum| sum == Sum::Counter);
    }
}

/// The counters of one generation, or of several together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters(pub(super) BTreeMap<Row, Values>);

impl Counters {
    /// Adds the columns that `which` selects.
    pub(super) fn add(&mut self, more: &Self, which: impl Fn(Sum) -> bool + Copy) {
        for (row, values) in &more.0 {
            match self.0.get_mut(row) {
                Some(sum) => sum.add(values, which),
                None => self.0.entry(row.clone()).or_default().add(values, which),
            }
        }
    }

    /// Number of frontends, backends and servers.
    pub fn rows(&self) -> usize {
        self.0.len()
    }
}
