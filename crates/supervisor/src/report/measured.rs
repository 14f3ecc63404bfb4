//! Counters and durations for metrics alone.

use std::collections::BTreeMap;
use std::time::Instant;

use bindonce_core::time::Timestamp;

use bindonce_daemon::openmetrics::Durations;
use bindonce_sys::clock;

/// Counters and durations for metrics alone.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// When the reload in progress began.
    pub(crate) begun: Option<Instant>,
    /// When the generation that takes over became ready.
    pub(crate) ready: Option<Instant>,
    pub(crate) reload_time: Durations,
    pub(crate) start_time: Durations,
    pub(crate) handover_time: Durations,
    pub(crate) failures: BTreeMap<&'static str, u64>,
    pub(crate) last: Option<(Timestamp, bool)>,
}

impl Measured {
    /// Ends a reload, or the first start; with its cause if it failed.
    pub(crate) fn ended(&mut self, failure: Option<&'static str>) {
        if let Some(begun) = self.begun.take() {
            self.reload_time.add(begun.elapsed());
        }
        if let Some(cause) = failure {
            *self.failures.entry(cause).or_default() += 1;
        }
        self.last = Some((clock::now(), failure.is_none()));
    }

    /// A generation serves alone.
    pub(crate) fn serves(&mut self) {
        if let Some(ready) = self.ready.take() {
            self.handover_time.add(ready.elapsed());
        }
    }
}
