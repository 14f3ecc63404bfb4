//! What is started again when a generation that served has died.

use super::operation::Crashes;
use super::timeline::Timeline;
use super::{
    Action, BACKOFF_FIRST, BACKOFF_LAST, CRASHES_BEFORE_ROLLBACK, Configuration, GenerationId,
    Moment, SERVED_A_WHILE, WORKED_AFTER,
};

impl Timeline {
    /// Records that a configuration died, after it had served for this long.
    pub(super) fn crashed(&mut self, configuration: GenerationId, served: Moment) {
        let worked = served >= WORKED_AFTER;
        if worked {
            self.worked = Some(configuration);
        }
        if worked || self.crashes.configuration != Some(configuration) {
            self.crashes = Crashes { configuration: Some(configuration), ..Crashes::default() };
        }
        if served >= SERVED_A_WHILE {
            self.crashes.soon = 0;
        }
        self.crashes.count += 1;
        self.crashes.soon += 1;
    }

    /// Plans the next start of what served last, or of what worked before it.
    pub(super) fn plan_restart(
        &mut self,
        now: Moment,
        current: GenerationId,
        out: &mut Vec<Action>,
    ) {
        let Crashes { count, soon, .. } = match &self.crashes {
            crashes if crashes.configuration == Some(current) => crashes.clone(),
            _ => Crashes::default(),
        };
        let older = self.worked.filter(|worked| *worked != current);
        let (configuration, rollback) = match older {
            Some(worked) if count >= CRASHES_BEFORE_ROLLBACK => (worked, true),
            _ => (current, false),
        };
        let after = match soon {
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
