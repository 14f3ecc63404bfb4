//! The counters of a service: of the generations that live, and of those that are gone.

use std::collections::{BTreeMap, BTreeSet};

use super::columns::Sum;
use super::rows::{Counters, Row};
use super::table::MOST;

/// What all generations of a service have counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// By those that are gone, and before a counter began again.
    gone: Counters,
    /// By each that lives, as far as it has told.
    live: BTreeMap<u64, Counters>,
    /// What each that lives began with (`stats-file`): another has counted it.
    preset: BTreeMap<u64, Counters>,
}

impl Totals {
    /// What was counted by generations that are gone, and by each that lived, and what these began with.
    pub fn new(
        gone: Counters,
        live: impl IntoIterator<Item = (u64, Counters)>,
        preset: impl IntoIterator<Item = (u64, Counters)>,
    ) -> Self {
        Self { gone, live: live.into_iter().collect(), preset: preset.into_iter().collect() }
    }

    /// By generations that are gone.
    pub fn gone(&self) -> &Counters {
        &self.gone
    }

    /// By each that lives.
    pub fn live(&self) -> &BTreeMap<u64, Counters> {
        &self.live
    }

    /// What each that lives began with, where it began with something.
    pub fn presets(&self) -> &BTreeMap<u64, Counters> {
        &self.preset
    }

    /// A generation will begin to count with this, which is none of its own.
    pub fn preset(&mut self, generation: u64, preset: Counters) {
        self.preset.insert(generation, preset);
    }

    /// A generation tells what it has counted so far.
    pub fn update(&mut self, generation: u64, mut now: Counters) {
        if let Some(preset) = self.preset.get_mut(&generation) {
            preset.0.retain(|row, preset| match now.0.get_mut(row) {
                Some(values) => values.without(preset),
                // It is not told now, and may be again.
                None => true,
            });
        }
        let known = self.live.entry(generation).or_default();
        for (_, values) in known.0.iter_mut().filter(|(row, _)| !now.0.contains_key(row)) {
            values.end();
        }
        for (row, mut values) in now.0 {
            if let Some(before) = known.0.get(&row)
                && !values.goes_on(before)
            {
                self.gone.0.entry(row.clone()).or_default().add(before, |sum| sum == Sum::Counter);
            }
            known.0.insert(row, values);
        }
    }

    /// A generation is gone.
    pub fn end(&mut self, generation: u64) {
        self.preset.remove(&generation);
        if let Some(last) = self.live.remove(&generation) {
            self.gone.add(&last, |sum| sum == Sum::Counter);
            self.forget();
        }
    }

    /// Every generation but these is gone.
    pub fn end_others(&mut self, living: &BTreeSet<u64>) {
        let known: BTreeSet<u64> = self.live.keys().chain(self.preset.keys()).copied().collect();
        for id in known.difference(living).copied() {
            self.end(id);
        }
    }

    /// Where servers come and go by the thousand, those that no generation has any more are left out at some point.
    fn forget(&mut self) {
        if self.gone.rows() > MOST {
            let live = &self.live;
            self.gone.0.retain(|row: &Row, _| live.values().any(|one| one.0.contains_key(row)));
        }
    }

    /// All of it, while this generation serves.
    pub fn sum(&self, serving: Option<u64>) -> Counters {
        let mut sum = self.gone.clone();
        for (id, counters) in &self.live {
            let serves = serving == Some(*id);
            sum.add(counters, |which| which != Sum::Serving || serves);
        }
        sum
    }
}
