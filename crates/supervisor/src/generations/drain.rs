//! What becomes of the connections of a generation once it drains, and what the next supervisor must know of that.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::generations::since::Since;
use crate::replies::DrainStatus;

/// What becomes of the connections of a generation once it drains.
#[derive(Default)]
pub(crate) struct Drain {
    /// Connections left.
    pub(crate) connections: Option<u64>,
    /// How long one of them must have been idle to be closed; none: it is left alone. Shared with the task that does it.
    pub(crate) idle: Rc<Cell<Option<Duration>>>,
    /// How long it may drain, where a reload has said so.
    pub(crate) timeout: Option<Duration>,
    /// How many were closed for that.
    pub(crate) idle_closed: u64,
    /// What it has done on them since it stopped accepting; none before, or where nobody tells.
    pub(crate) since: Option<Since>,
    /// Its counters when it was last asked; none where it was not since this process has it.
    counted: Option<Since>,
    /// Those that end with it are counted.
    is_cut: bool,
}

/// What the next supervisor must know of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedDrain {
    /// Connections that are idle for so many milliseconds are closed.
    drain_idle_ms: Option<u64>,
    /// It may drain for so many milliseconds, where a reload has said so.
    drain_timeout_ms: Option<u64>,
    /// What it had done when it was last asked; for the supervisor itself alone.
    counted: Option<Since>,
    /// How many bytes it had answered then on its admin connection.
    pub(crate) told: u64,
    /// What it has done since it stopped accepting.
    after: Option<Since>,
    /// How many of its idle connections were closed.
    idle_closed: u64,
}

impl Drain {
    /// Of one that was just started: all that it counts is new.
    pub(crate) fn of_new() -> Self {
        Self { counted: Some(Since::default()), ..Self::default() }
    }

    /// Goes on from what an earlier supervisor has saved.
    pub(crate) fn resume(saved: &SavedDrain) -> Self {
        Self {
            idle: Rc::new(Cell::new(saved.drain_idle_ms.map(Duration::from_millis))),
            timeout: saved.drain_timeout_ms.map(Duration::from_millis),
            idle_closed: saved.idle_closed,
            since: saved.after,
            counted: saved.counted,
            ..Self::default()
        }
    }

    /// For clients, without what only haproxy can tell.
    pub(crate) fn status(&self) -> DrainStatus {
        DrainStatus {
            connections: self.connections,
            requests_after: self.since.map(|since| since.requests),
            bytes_after: self.since.map(|since| since.bytes),
            idle_closed: self.idle_closed,
            oldest_sessions: Vec::new(),
        }
    }

    /// For the next supervisor, or for the next image of this process: what another finds may be long ago by then.
    /// `told`: how many bytes it has answered on its admin connection.
    pub(crate) fn saved(&self, for_itself: bool, told: u64) -> SavedDrain {
        SavedDrain {
            drain_idle_ms: self.idle.get().and_then(milliseconds),
            drain_timeout_ms: self.timeout.and_then(milliseconds),
            counted: self.counted.filter(|_| for_itself),
            told: if for_itself { told } else { 0 },
            after: self.since.filter(|_| for_itself),
            idle_closed: self.idle_closed,
        }
    }

    /// It has told its counters: what it has done since it last did, and whether it drains. None where it has not before.
    pub(crate) fn count(&mut self, counts: Since, drains: bool) -> Option<(Since, bool)> {
        let more = counts.less(self.counted.replace(counts)?);
        // It was one before an upgrade, too.
        let drains = drains || self.since.is_some();
        if drains {
            self.since.get_or_insert_default().add(more);
        }
        Some((more, drains))
    }

    /// Those that it has end with it: how many, as far as it has told, or has `said` of its own hard stop; none where they
    /// are counted.
    pub(crate) fn cut(&mut self, said: u64) -> u64 {
        match (std::mem::replace(&mut self.is_cut, true), said) {
            (true, _) => 0,
            (false, 0) => self.connections.unwrap_or_default(),
            (false, said) => said,
        }
    }
}

/// As a file for the next supervisor has a time.
pub(crate) fn milliseconds(time: Duration) -> Option<u64> {
    u64::try_from(time.as_millis()).ok()
}
