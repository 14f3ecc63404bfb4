//! The operation of a service: none, or one step of a start or a handover.

use std::collections::{BTreeMap, BTreeSet};

use super::{Failure, GenerationId, Moment, Observation};

/// What a service is doing now: one operation at a time.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    /// Nothing: the serving generation is the right one.
    None,
    /// A generation was started and is not ready yet.
    Starting { newer: GenerationId, yielding: Option<Yielding> },
    /// The new generation is ready and stopped, and the older ones are told to pause.
    Pausing(Pausing),
    /// The new generation serves or waits to, and not all older ones have confirmed their stop.
    Stopping(Stopping),
    /// The new generation waits, every older one has confirmed, and the accept queues are watched.
    Proving { stopping: Stopping, until: Moment, moving: bool },
    /// The new generation is refused, and its exit is awaited. The older ones that were paused for
    /// it are told to accept, and once more then.
    Refused { newer: GenerationId, failure: Failure, paused: BTreeSet<GenerationId> },
}

/// A handover whose older generations are told to stop.
#[derive(Debug, Clone)]
pub(super) struct Stopping {
    pub(super) newer: GenerationId,
    pub(super) older: Vec<GenerationId>,
    pub(super) ended: Vec<GenerationId>,
    /// Whether the accept queues must stand still in the end.
    pub(super) prove: bool,
    /// The latest end of the new generation's wait, if the older ones are known to be paused.
    pub(super) held: Option<Moment>,
}

/// A handover with a pause, until it is proved that nobody accepts.
#[derive(Debug, Clone)]
pub(super) struct Pausing {
    pub(super) newer: GenerationId,
    pub(super) older: BTreeSet<GenerationId>,
    pub(super) again: Moment,
    pub(super) until: Moment,
    pub(super) latest: Option<Observation>,
    /// When each silent generation became silent while nobody accepts.
    pub(super) silent: BTreeMap<GenerationId, Moment>,
    pub(super) ended: Vec<GenerationId>,
    /// By when those that are being ended must be gone.
    pub(super) gone_by: Moment,
    /// Every older generation is ended: the next observation of the queues decides.
    pub(super) alone: bool,
}

impl Operation {
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The generation that will take over.
    pub(super) fn newer(&self) -> Option<GenerationId> {
        match self {
            Self::None => None,
            Self::Starting { newer, .. } | Self::Refused { newer, .. } => Some(*newer),
            Self::Pausing(pausing) => Some(pausing.newer),
            Self::Stopping(stopping) | Self::Proving { stopping, .. } => Some(stopping.newer),
        }
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        match self {
            Self::Pausing(pausing) => Some(pausing.again.min(pausing.until)),
            Self::Proving { until, .. } => Some(*until),
            Self::Stopping(stopping) => stopping.held,
            // Otherwise the deadline of the generation itself applies.
            Self::Starting { yielding, .. } => yielding.as_ref()?.until,
            Self::Refused { .. } | Self::None => None,
        }
    }

    /// Whether the accept queues are being watched.
    pub(super) fn proves(&self) -> bool {
        matches!(self, Self::Pausing(_) | Self::Proving { .. })
    }

    /// The older generations that were paused for the new one, even if they were told to accept
    /// again.
    pub(super) fn paused(&self) -> BTreeSet<GenerationId> {
        match self {
            Self::Pausing(pausing) => pausing.older.clone(),
            Self::Starting { yielding: Some(yielding), .. } => yielding.paused.clone(),
            Self::Refused { paused, .. } => paused.clone(),
            _ => BTreeSet::new(),
        }
    }

    /// Remembers that an older generation had to be ended, once.
    pub(super) fn note_ended(&mut self, id: GenerationId) {
        let ended = match self {
            Self::Stopping(stopping) if stopping.older.contains(&id) => &mut stopping.ended,
            Self::Pausing(pausing) if pausing.older.contains(&id) => &mut pausing.ended,
            _ => return,
        };
        if !ended.contains(&id) {
            ended.push(id);
        }
    }
}

/// The older generations that were paused for the starting one.
#[derive(Debug, Clone)]
pub(super) struct Yielding {
    pub(super) paused: BTreeSet<GenerationId>,
    /// When they resume at the latest; none once they were told to.
    pub(super) until: Option<Moment>,
}
