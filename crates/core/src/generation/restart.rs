//! What is started again when a generation that served has died.

use super::timeline::Timeline;
use super::{
    Action, BACKOFF_FIRST, BACKOFF_LAST, CRASHES_BEFORE_ROLLBACK, Configuration, GenerationId,
    Moment,
};

/// Crashes of one configuration since it last worked.
#[derive(Debug, Clone, Default)]
pub(super) struct Crashes {
    pub(super) configuration: Option<GenerationId>,
    pub(super) count: u32,
}

impl Timeline {
    /// Records that a configuration died, and whether it had worked before.
    pub(super) fn crashed(&mut self, configuration: GenerationId, worked: bool) {
        if worked {
            self.worked = Some(configuration);
        }
        if worked || self.crashes.configuration != Some(configuration) {
            self.crashes = Crashes { configuration: Some(configuration), count: 0 };
        }
        self.crashes.count += 1;
    }

    /// Plans the next start of what served last, or of what worked before it.
    pub(super) fn plan_restart(
        &mut self,
        now: Moment,
        current: GenerationId,
        out: &mut Vec<Action>,
    ) {
        let count =
            if self.crashes.configuration == Some(current) { self.crashes.count } else { 0 };
        let older = self.worked.filter(|worked| *worked != current);
        let (configuration, rollback) = match older {
            Some(worked) if count >= CRASHES_BEFORE_ROLLBACK => (worked, true),
            _ => (current, false),
        };
        let after = match count {
            0 | 1 => Moment::ZERO,
            n => (BACKOFF_FIRST * 2u32.saturating_pow(n.min(12) - 2)).min(BACKOFF_LAST),
        };
        out.push(Action::Restart { died: current, configuration, after, rollback });
        self.restart = Some((now + after, configuration));
        if after.is_zero() {
            self.start(now, Configuration::Of(configuration), out);
        }
    }
}
