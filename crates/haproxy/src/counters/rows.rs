//! The counters of frontends, backends and servers.

use std::collections::BTreeMap;

use super::columns::{COLUMNS, COUNT, SESSIONS, Sum};

/// What a row is about.
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
    /// Which of these.
    pub kind: Kind,
    /// The name of its section.
    pub proxy: Box<str>,
    /// The name of the server; empty of the others.
    pub server: Box<str>,
}

/// The value of each column that a row has. Some are for frontends or servers only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Values {
    /// Which are there, a bit for each.
    has: u64,
    /// Those that are not are 0.
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

    /// Adds the columns that `which` names.
    pub(super) fn add(&mut self, more: &Self, which: impl Fn(Sum) -> bool) {
        for (at, _) in COLUMNS.iter().enumerate().filter(|(_, column)| which(column.sum)) {
            if let Some(more) = more.get(at) {
                self.set(at, self.get(at).unwrap_or(0).saturating_add(more));
            }
        }
    }

    /// Goes on from what was known, where this is the same count; gives false where it began again: a server that was
    /// deleted and added, or `clear counters all`.
    pub(super) fn goes_on(&mut self, before: &Self) -> bool {
        let goes_on = self.get(SESSIONS) >= before.get(SESSIONS);
        let counters = COLUMNS.iter().enumerate().filter(|(_, column)| column.sum == Sum::Counter);
        // A time in state DOWN is rounded, and may be one less than before.
        for (at, _) in counters.filter(|_| goes_on) {
            if let Some(before) = before.get(at).filter(|before| Some(*before) > self.get(at)) {
                self.set(at, before);
            }
        }
        goes_on
    }

    /// Takes off what it began with, which is in the counters; gives false where it is not, since they began again.
    pub(super) fn without(&mut self, preset: &Self) -> bool {
        let has = self.get(SESSIONS) >= preset.get(SESSIONS);
        for (at, _) in COLUMNS.iter().enumerate().filter(|_| has) {
            if let Some((value, preset)) = self.get(at).zip(preset.get(at)) {
                self.set(at, value.saturating_sub(preset));
            }
        }
        has
    }

    /// Leaves the counters.
    pub(super) fn end(&mut self) {
        let all = std::mem::take(self);
        self.add(&all, |sum| sum == Sum::Counter);
    }
}

/// What one generation has counted, or several together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters(pub(super) BTreeMap<Row, Values>);

impl Counters {
    /// Adds the columns that `which` names.
    pub(super) fn add(&mut self, more: &Self, which: impl Fn(Sum) -> bool + Copy) {
        for (row, values) in &more.0 {
            match self.0.get_mut(row) {
                Some(sum) => sum.add(values, which),
                None => self.0.entry(row.clone()).or_default().add(values, which),
            }
        }
    }

    /// How many frontends, backends and servers.
    pub fn rows(&self) -> usize {
        self.0.len()
    }
}
