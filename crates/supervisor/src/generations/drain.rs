//! The connections of a draining generation, and what the next supervisor must know about them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::generations::since::Since;
use crate::replies::DrainStatus;

/// The connections of a generation, and their limits once it drains.
#[derive(Default)]
pub(crate) struct Drain {
    pub(crate) connections: Option<u64>,
    /// How long a connection must be idle to be closed. None: no connection is closed. Shared with
    /// the task that closes them.
    pub(crate) idle: Rc<Cell<Option<Duration>>>,
    /// How long it may drain, if a reload has set that.
    pub(crate) timeout: Option<Duration>,
    pub(crate) idle_closed: u64,
    /// Its work since it stopped accepting. None before that, or if haproxy does not report it.
    pub(crate) since: Option<Since>,
    /// Its counters at the last answer. None before this process has had an answer.
    counted: Option<Since>,
    /// Whether the connections that end with it are counted.
    is_cut: bool,
}

/// What the next supervisor must know about a drain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedDrain {
    /// Connections that are idle for this many milliseconds are closed.
    drain_idle_ms: Option<u64>,
    /// How many milliseconds it may drain, if a reload has set that.
    drain_timeout_ms: Option<u64>,
    /// Its counters at the last answer; only for the next image of this process.
    counted: Option<Since>,
    /// Number of bytes received on its admin connection by then.
    #[serde(rename = "told")]
    pub(crate) received: u64,
    /// Its work since it stopped accepting.
    after: Option<Since>,
    idle_closed: u64,
}

impl Drain {
    /// The drain of a new generation: everything that it counts is new.
    pub(crate) fn of_new() -> Self {
        Self { counted: Some(Since::default()), ..Self::default() }
    }

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

    /// The status for clients, without what only haproxy can report.
    pub(crate) fn status(&self) -> DrainStatus {
        DrainStatus {
            connections: self.connections,
            requests_after: self.since.map(|since| since.requests),
            bytes_after: self.since.map(|since| since.bytes),
            idle_closed: self.idle_closed,
            oldest_sessions: Vec::new(),
        }
    }

    /// What to save for the next supervisor or, if `for_itself`, the next image of this process.
    /// Only the latter gets the counters: another supervisor may come much later. `received` is the
    /// number of bytes received on the admin connection.
    pub(crate) fn saved(&self, for_itself: bool, received: u64) -> SavedDrain {
        SavedDrain {
            drain_idle_ms: self.idle.get().and_then(milliseconds),
            drain_timeout_ms: self.timeout.and_then(milliseconds),
            counted: self.counted.filter(|_| for_itself),
            received: if for_itself { received } else { 0 },
            after: self.since.filter(|_| for_itself),
            idle_closed: self.idle_closed,
        }
    }

    /// Takes new counters. Gives the work since the last ones, and whether the generation drains.
    /// None if these are the first.
    pub(crate) fn count(&mut self, counts: Since, drains: bool) -> Option<(Since, bool)> {
        let more = counts.less(self.counted.replace(counts)?);
        // It may have drained before an upgrade already.
        let drains = drains || self.since.is_some();
        if drains {
            self.since.get_or_insert_default().add(more);
        }
        Some((more, drains))
    }

    /// Gives the number of connections that end with the generation, as last reported or as haproxy
    /// `said` at its own hard stop. 0 if they were counted before.
    pub(crate) fn cut(&mut self, said: u64) -> u64 {
        match (std::mem::replace(&mut self.is_cut, true), said) {
            (true, _) => 0,
            (false, 0) => self.connections.unwrap_or_default(),
            (false, said) => said,
        }
    }
}

/// A time as the file for the next supervisor has it.
pub(crate) fn milliseconds(time: Duration) -> Option<u64> {
    u64::try_from(time.as_millis()).ok()
}
