//! One generation: its stage, and what each stage waits for.

use super::{GenerationId, Moment, State};

/// One generation that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) stage: Stage,
    /// Whose configuration it serves: its own id, or that of the generation whose copy it runs.
    pub(super) configuration: GenerationId,
    /// The connection count is 0 and the admin connection was closed.
    pub(super) let_go: bool,
    /// How long it may drain, where a reload has said so; else as the settings say.
    pub(super) drain_timeout: Option<Moment>,
}

/// What a generation does, and until when it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// Started, not ready. Progress moves `until`, never past `latest`.
    Starting { until: Moment, latest: Moment },
    /// Ready and stopped, while the older ones are paused.
    Waiting,
    /// Accepts.
    Serving { since: Moment },
    /// Told to stop, and may still accept: unless `proved`, by the accept queues. Looked
    /// at again, and signalled again, at `again`. `says`: it has confirmed the signal.
    Stopping { since: Moment, again: Moment, proved: bool, says: bool },
    /// Has closed its listeners. `told`: it was sent the signal to stop; otherwise another process has sent it, or it stopped by itself.
    Draining { until: Moment, told: bool },
    /// Told to exit at once (SIGTERM), and until then may accept if it did before.
    Ending { kill: Moment, accepts: bool },
    /// Sent SIGKILL; the kernel ends it. The signal is repeated at this time, so that even here
    /// there is a deadline.
    Killed { again: Moment, accepts: bool },
}

impl Life {
    /// Whether it is possible that this generation accepts connections now.
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

    /// It was proved not to accept while it was being ended.
    pub(super) fn accepts_no_more(&mut self) {
        if let Stage::Ending { accepts, .. } | Stage::Killed { accepts, .. } = &mut self.stage {
            *accepts = false;
        }
    }

    /// Whether it counts towards `--max-draining`.
    pub(super) fn lingers(&self) -> bool {
        matches!(self.stage, Stage::Stopping { .. } | Stage::Draining { .. })
    }

    /// When this stage must be looked at again.
    pub(super) fn deadline(&self) -> Option<Moment> {
        match self.stage {
            Stage::Starting { until, .. } | Stage::Draining { until, .. } => Some(until),
            Stage::Stopping { again, .. } => Some(again),
            Stage::Ending { kill, .. } => Some(kill),
            Stage::Killed { again, .. } => Some(again),
            // Serving has no end of its own; a waiting one is under the handover's deadline.
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
