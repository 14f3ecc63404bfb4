//! What to start again when a serving generation has died.

use super::{
    Action, BACKOFF_FIRST, BACKOFF_LAST, CRASHES_BEFORE_ROLLBACK, GenerationId, Moment,
    SERVED_A_WHILE, WORKED_AFTER,
};

/// Which configuration to start again, and when.
#[derive(Debug, Clone, Default)]
pub(super) struct Restarts {
    /// When to start which configuration again.
    planned: Option<(Moment, GenerationId)>,
    crashes: Crashes,
    /// The configuration that serves, or served last.
    current: Option<GenerationId>,
    /// The last configuration that served for [`WORKED_AFTER`].
    worked: Option<GenerationId>,
}

/// The crashes that decide about the next start.
#[derive(Debug, Clone, Default)]
struct Crashes {
    /// The configuration that crashed last, and how often since it last worked.
    configuration: Option<GenerationId>,
    count: u32,
    /// Crashes in a row that came soon after the start, of whichever configuration was started
    /// again; each makes the next wait longer.
    soon: u32,
}

impl Restarts {
    /// Continues from what an earlier supervisor knew.
    pub(super) fn resume(&mut self, worked: Option<GenerationId>) {
        self.worked = worked;
    }

    /// Notes that this configuration serves.
    pub(super) fn serves(&mut self, configuration: GenerationId) {
        if ![self.current, self.worked].contains(&Some(configuration)) {
            // A new one: what came before says nothing about it.
            self.crashes = Crashes::default();
        }
        self.current = Some(configuration);
        self.planned = None;
    }

    /// Notes that this configuration has served for this long.
    pub(super) fn served(&mut self, configuration: GenerationId, time: Moment) {
        if time >= WORKED_AFTER {
            self.worked = Some(configuration);
        }
    }

    /// Notes that this configuration died after it had served for this long.
    pub(super) fn crashed(&mut self, configuration: GenerationId, time: Moment) {
        self.served(configuration, time);
        if time >= WORKED_AFTER || self.crashes.configuration != Some(configuration) {
            (self.crashes.configuration, self.crashes.count) = (Some(configuration), 0);
        }
        if time >= SERVED_A_WHILE {
            self.crashes.soon = 0;
        }
        self.crashes.count += 1;
        self.crashes.soon += 1;
    }

    /// Cancels the planned start.
    pub(super) fn call_off(&mut self) {
        self.planned = None;
    }

    /// The planned start: when, and which configuration.
    pub(super) fn planned(&self) -> Option<(Moment, GenerationId)> {
        self.planned
    }

    pub(super) fn worked(&self) -> Option<GenerationId> {
        self.worked
    }

    /// Configurations that may start again.
    pub(super) fn kept(&self) -> impl Iterator<Item = GenerationId> + use<> {
        [self.current, self.worked, self.planned.map(|(_, of)| of)].into_iter().flatten()
    }

    /// Plans the next start: of the configuration that served last, or of the one that worked
    /// before it. None if nothing has served.
    pub(super) fn plan(&mut self, now: Moment) -> Option<Action> {
        let current = self.current?;
        let Crashes { configuration: crashed, count, soon } = self.crashes.clone();
        let count = if crashed == Some(current) { count } else { 0 };
        let older = self.worked.filter(|worked| *worked != current);
        let (configuration, rollback) = match older {
            Some(worked) if count >= CRASHES_BEFORE_ROLLBACK => (worked, true),
            _ => (current, false),
        };
        let after = match soon {
            0 | 1 => Moment::ZERO,
            n => (BACKOFF_FIRST * 2u32.saturating_pow(n.min(12) - 2)).min(BACKOFF_LAST),
        };
        self.planned = Some((now + after, configuration));
        Some(Action::Restart { died: current, configuration, after, rollback })
    }
}
