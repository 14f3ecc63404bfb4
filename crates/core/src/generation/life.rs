//! One generation: its stage, and what it waits for in each.

use super::{GenerationId, Moment, State};

/// One generation that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) stage: Stage,
    /// The generation whose configuration it serves: itself, or the one whose copy it runs.
    pub(super) configuration: GenerationId,
    /// Whether its connection count reached 0 and its admin connection was closed.
    pub(super) let_go: bool,
    /// How long it may drain, if a reload has said so; else the settings apply.
    pub(super) drain_timeout: Option<Moment>,
}

/// What a generation does, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// Started, not ready. Progress moves `until`, never past `latest`.
    Starting { until: Moment, latest: Moment },
    /// Ready and stopped, while the older ones are paused.
    Waiting,
    /// Accepting.
    Serving { since: Moment },
    /// Told to stop. May still accept, unless the accept queues have `proved` otherwise. Checked
    /// and signalled again at `again`. `says`: it has confirmed the signal.
    Stopping { since: Moment, again: Moment, proved: bool, says: bool },
    /// Has closed its listeners. `told`: the supervisor sent it the signal to stop; otherwise
    /// another process did, or it stopped by itself.
    Draining { until: Moment, told: bool },
    /// Told to exit at once (SIGTERM). Until it exits it may accept, if it did before.
    Ending { kill: Moment, accepts: bool },
    /// Sent SIGKILL; the kernel ends it. The signal is repeated at `again`, so even this stage has
    /// a deadline. Nobody waits for its end after `gone_by`.
    Killed { again: Moment, gone_by: Moment, accepts: bool },
}

impl Life {
    /// Whether this generation may accept connections now.
    pub(super) fn may_accept(&self) -> bool {
        match self.stage {
            Stage::Serving { .. } => true,
            Stage::Stopping { proved, .. } => !proved,
            Stage::Ending { accepts, .. } | Stage::Killed { accepts, .. } => accepts,
            Stage::Starting { .. } | Stage::Waiting | Stage::Draining { .. } => false,
        }
    }

    /// Whether it was told to exit at once, and accepted before.
    pub(super) fn is_being_ended(&self) -> bool {
        matches!(
            self.stage,
            Stage::Ending { accepts: true, .. } | Stage::Killed { accepts: true, .. }
        )
    }

    /// Whether it was told to stop, or has stopped by itself.
    pub(super) fn drains(&self) -> bool {
        matches!(self.stage, Stage::Stopping { .. } | Stage::Draining { .. })
    }

    /// Whether the kernel has not ended it in time: it waits for a disk, or its cgroup is frozen.
    pub(super) fn is_overdue(&self, now: Moment) -> bool {
        matches!(self.stage, Stage::Killed { gone_by, .. } if gone_by <= now)
    }

    /// Notes the proof that it accepts no more, if it is being ended.
    pub(super) fn accepts_no_more(&mut self) {
        if let Stage::Ending { accepts, .. } | Stage::Killed { accepts, .. } = &mut self.stage {
            *accepts = false;
        }
    }

    /// Whether it counts towards `--max-draining`.
    pub(super) fn lingers(&self) -> bool {
        matches!(self.stage, Stage::Stopping { .. } | Stage::Draining { .. })
    }

    /// When this stage must be checked again.
    pub(super) fn deadline(&self) -> Option<Moment> {
        match self.stage {
            Stage::Starting { until, .. } | Stage::Draining { until, .. } => Some(until),
            Stage::Stopping { again, .. } => Some(again),
            Stage::Ending { kill, .. } => Some(kill),
            Stage::Killed { again, .. } => Some(again),
            // Serving has no deadline; a waiting generation is under the handover's deadline.
            Stage::Waiting | Stage::Serving { .. } => None,
        }
    }

    pub(super) fn state(&self) -> State {
        match self.stage {
            Stage::Starting { .. } | Stage::Waiting => State::Starting,
            Stage::Serving { .. } => State::Serving,
            Stage::Stopping { .. }
            | Stage::Draining { .. }
            | Stage::Ending { .. }
            | Stage::Killed { .. } => State::Draining,
        }
    }
}
