//! The order of the generations of each service that joined the broker.
//!
//! [`bindonce_core::succession`] decides, and [`crate::generations`] performs what it decides.

use std::rc::Rc;
use std::time::Instant;

use bindonce_core::generation::Moment;
use bindonce_core::name::Name;
use bindonce_core::registry::ConnectionId;
use bindonce_core::succession::{self, Action, Event, Progress, Record};
use tokio::sync::Notify;

/// The succession of every service, and when to look at it again.
#[derive(Debug)]
pub(crate) struct Succession {
    inner: succession::Succession,
    pub(crate) epoch: Instant,
    /// Notified when the deadline may have changed.
    pub(crate) changed: Rc<Notify>,
}

impl Default for Succession {
    fn default() -> Self {
        Self { inner: Default::default(), epoch: Instant::now(), changed: Rc::default() }
    }
}

impl Succession {
    /// Handles one event, and returns the actions that follow.
    pub(crate) fn on(&mut self, event: Event) -> Vec<Action> {
        let now: Moment = self.epoch.elapsed();
        let actions = self.inner.on(now, event);
        self.changed.notify_one();
        actions
    }

    /// Sets how long a generation has to stop accepting after it is told to.
    pub(crate) fn set_patience(&mut self, patience: std::time::Duration) {
        self.inner.set_patience(patience);
    }

    /// Whether the service has generations. If so, only their user and root may join it.
    pub(crate) fn is_joined(&self, service: &Name) -> bool {
        self.inner.is_joined(service)
    }

    /// When the next decision is due without an event, as time since the epoch.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.inner.deadline()
    }

    /// The records for the next broker, and the lowest generation number it may give.
    pub(crate) fn written(&self) -> (Vec<Record>, u64) {
        (self.inner.records().collect(), self.inner.floor())
    }

    /// The progress of each generation whose order the broker keeps.
    pub(crate) fn turns(&self) -> impl Iterator<Item = (ConnectionId, Progress)> {
        self.inner.places().filter_map(|place| Some((place.connection, place.ordered?)))
    }

    /// Resumes from the records of the previous broker.
    pub(crate) fn recall(&mut self, records: Vec<Record>, floor: u64) {
        self.on(Event::Recall(records, floor));
    }
}
