//! The order of the generations of each service that joined the broker.
//!
//! [`bindonce_core::succession`] decides, and [`crate::generations`] performs what it decides.

use std::rc::Rc;
use std::time::Instant;

use bindonce_core::generation::Moment;
use bindonce_core::name::Name;
use bindonce_core::patience::OwnTime;
use bindonce_core::registry::ConnectionId;
use bindonce_core::succession::{self, Action, Event, Progress, Record};
use tokio::sync::Notify;

/// The succession of every service, and when to look at it again.
#[derive(Debug)]
pub(crate) struct Succession {
    inner: succession::Succession,
    epoch: Instant,
    /// Deadlines do not count the time that this process missed.
    own: OwnTime,
    /// Notified when the deadline may have changed.
    pub(crate) changed: Rc<Notify>,
}

impl Default for Succession {
    fn default() -> Self {
        Self {
            inner: Default::default(),
            epoch: Instant::now(),
            own: OwnTime::default(),
            changed: Rc::default(),
        }
    }
}

impl Succession {
    /// Handles one event, and returns the actions that follow.
    pub(crate) fn on(&mut self, event: Event) -> Vec<Action> {
        let now = self.now();
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

    /// The time since the epoch, without the time that this process missed.
    fn now(&mut self) -> Moment {
        let now = Instant::now();
        now.saturating_duration_since(self.epoch).saturating_sub(self.own.missed(now))
    }

    /// When to look whether a decision is due without an event.
    pub(crate) fn next_look(&mut self) -> Option<Instant> {
        let left = self.inner.deadline().map(|at| at.saturating_sub(self.now()));
        self.own.look_again(Instant::now(), left)
    }

    /// Whether a decision is due without an event.
    pub(crate) fn is_due(&mut self) -> bool {
        self.inner.deadline().is_some_and(|at| at <= self.now())
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

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use bindonce_core::registry::State;
    use bindonce_core::succession::{Joining, Speaker};

    use super::*;

    /// The process sleeps, and looks at no clock meanwhile, as while it is stopped.
    #[test]
    fn nobody_is_late_because_the_broker_was_stopped() {
        let (patience, stop) = (Duration::from_millis(500), Duration::from_millis(700));
        let mut succession = Succession::default();
        succession.set_patience(patience);
        let mut join = |connection, state| {
            let connection = ConnectionId(connection);
            let speaker =
                Speaker { connection, pid: 9, uid: 7, privileged: false, takes_back: false };
            let service = "edge".parse().expect("a name");
            let joining = Joining {
                service,
                generation: None,
                pid: Some(9),
                state,
                ordered: true,
                successor: None,
            };
            succession.on(Event::Join(speaker, joining))
        };
        for state in [State::Starting, State::Serving] {
            join(1, state);
        }
        join(2, State::Starting);
        let begun = Instant::now();
        let told = join(2, State::Serving);
        assert!(told.iter().any(|action| matches!(action, Action::Retire(..))), "{told:?}");
        succession.next_look().expect("a deadline");
        sleep(stop);
        assert!(!succession.is_due(), "its answer may wait to be read");
        while !succession.is_due() {
            let look = succession.next_look().expect("the rest of its time");
            sleep(look.saturating_duration_since(Instant::now()));
        }
        assert!(begun.elapsed() >= stop + patience * 8 / 10);
    }
}
