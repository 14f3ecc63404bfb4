//! The counters of a service: of living generations, and of those that are gone.

use std::collections::{BTreeMap, BTreeSet};

use super::columns::Sum;
use super::rows::{Counters, Row};
use super::table::MOST;

/// The counts of all generations of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Counts of generations that are gone, and counts from before a counter began again.
    gone: Counters,
    /// The last known counts of each living generation.
    live: BTreeMap<u64, Counters>,
    /// The values that each living generation began with (`stats-file`), which another generation
    /// has counted.
    preset: BTreeMap<u64, Counters>,
}

impl Totals {
    /// Restores saved totals: the counts of generations that are gone, those of each living one,
    /// and their presets.
    pub fn new(
        gone: Counters,
        live: impl IntoIterator<Item = (u64, Counters)>,
        preset: impl IntoIterator<Item = (u64, Counters)>,
    ) -> Self {
        Self { gone, live: live.into_iter().collect(), preset: preset.into_iter().collect() }
    }

    /// The counts of generations that are gone.
    pub fn gone(&self) -> &Counters {
        &self.gone
    }

    /// The counts of each living generation.
    pub fn live(&self) -> &BTreeMap<u64, Counters> {
        &self.live
    }

    /// The preset values of each living generation that has some.
    pub fn presets(&self) -> &BTreeMap<u64, Counters> {
        &self.preset
    }

    /// Records the values that a generation will begin with, which it has not counted itself.
    pub fn preset(&mut self, generation: u64, preset: Counters) {
        self.preset.insert(generation, preset);
    }

    /// Records the counts that a generation reports.
    pub fn update(&mut self, generation: u64, mut now: Counters) {
        if let Some(preset) = self.preset.get_mut(&generation) {
            preset.0.retain(|row, preset| match now.0.get_mut(row) {
                Some(values) => values.without(preset),
                // The row is missing from this report, and may come back.
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

    /// Records that a generation is gone.
    pub fn end(&mut self, generation: u64) {
        self.preset.remove(&generation);
        if let Some(last) = self.live.remove(&generation) {
            self.gone.add(&last, |sum| sum == Sum::Counter);
            self.forget();
        }
    }

    /// Records that every generation but these is gone.
    pub fn end_others(&mut self, living: &BTreeSet<u64>) {
        let known: BTreeSet<u64> = self.live.keys().chain(self.preset.keys()).copied().collect();
        for id in known.difference(living).copied() {
            self.end(id);
        }
    }

    /// Drops servers that no living generation has, once there are too many: servers may come and
    /// go by the thousand.
    fn forget(&mut self) {
        if self.gone.rows() > MOST {
            let live = &self.live;
            self.gone.0.retain(|row: &Row, _| live.values().any(|one| one.0.contains_key(row)));
        }
    }

    /// The sum of all counts, while generation `serving` serves.
    pub fn sum(&self, serving: Option<u64>) -> Counters {
        let mut sum = self.gone.clone();
        for (id, counters) in &self.live {
            let serves = serving == Some(*id);
            sum.add(counters, |which| which != Sum::Serving || serves);
        }
        sum
    }
}
