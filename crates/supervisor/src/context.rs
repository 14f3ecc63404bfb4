//! The context that every part of a supervisor uses: the settings, the directory, the journal, the
//! time, and the way to send the loop a message.

use std::cell::Cell;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::event;
use bindonce_core::generation::{Event, GenerationId, WORKED_AFTER};
use bindonce_daemon::{Happening, Journal, Reporter};
use tokio::sync::mpsc;

use crate::control::gate::Gate;
use crate::disk::directory::Directory;
use crate::message::Message;
use crate::passed::Passed;
use crate::settings::Settings;

/// Clones share everything.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) settings: Rc<Settings>,
    pub(crate) directory: Rc<Directory>,
    pub(crate) journal: Rc<Journal>,
    pub(crate) reporter: Rc<Reporter>,
    pub(crate) passed: Rc<Passed>,
    pub(crate) gate: Gate,
    inbox: mpsc::UnboundedSender<Message>,
    /// The origin of the timeline's time.
    epoch: Instant,
    own: Rc<OwnTime>,
}

/// The time that this process missed because it was stopped. Its deadlines do not count that time.
/// While the loop waits for a deadline it looks at the clock at short intervals: a look that comes
/// much later than planned shows how long the process was stopped.
#[derive(Default)]
struct OwnTime {
    missed: Cell<Duration>,
    /// When the clock is looked at next: now, until the loop waits, and then at the end of its wait.
    /// None while it waits for no deadline.
    next: Cell<Option<Instant>>,
}

/// A look may be this late on a busy machine.
const LATE: Duration = Duration::from_millis(100);
/// The remaining time until a deadline is divided by this number to get the interval between two
/// looks. A stop therefore costs at most one such part of it.
const PARTS: u32 = 10;
/// Limits of that interval. The minimum ensures that the last parts end.
const PART: RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(30);

impl OwnTime {
    /// All time missed until `now`.
    fn missed(&self, now: Instant) -> Duration {
        // A stop in the middle of a turn counts too: a deadline may be set before it and looked at
        // after it.
        if let Some(next) = self.next.replace(Some(now)) {
            let late = now.saturating_duration_since(next);
            if late > LATE {
                self.missed.set(self.missed.get() + late);
            }
        }
        self.missed.get()
    }

    /// The time of the next look, with `left` until the deadline.
    fn look_again(&self, now: Instant, left: Option<Duration>) -> Option<Instant> {
        let part = left.map(|left| (left / PARTS).clamp(*PART.start(), *PART.end()).min(left));
        self.next.set(part.map(|part| now + part));
        self.next.get()
    }
}

impl Context {
    pub(crate) fn new(
        settings: Settings,
        directory: Directory,
        reporter: Rc<Reporter>,
        passed: Rc<Passed>,
        gate: Gate,
        inbox: mpsc::UnboundedSender<Message>,
    ) -> Self {
        let (settings, directory) = (Rc::new(settings), Rc::new(directory));
        let journal = Rc::clone(&reporter.journal);
        // A minute ago: a generation that was taken over has already served for a while.
        let epoch = Instant::now().checked_sub(6 * WORKED_AFTER).unwrap_or_else(Instant::now);
        let own = Rc::default();
        Self { settings, directory, journal, reporter, passed, gate, inbox, epoch, own }
    }

    /// The time for the timeline, without the time that this process missed.
    pub(crate) fn now(&self) -> Duration {
        let now = Instant::now();
        now.saturating_duration_since(self.epoch).saturating_sub(self.own.missed(now))
    }

    /// The time of the next look for a deadline on the timeline's clock.
    pub(crate) fn next_look(&self, deadline: Option<Duration>) -> Option<Instant> {
        let left = deadline.map(|at| at.saturating_sub(self.now()));
        self.own.look_again(Instant::now(), left)
    }

    /// Sends a message to the loop, which handles it after its current message. The loop ends only
    /// with the process.
    pub(crate) fn send(&self, message: Message) {
        let _ = self.inbox.send(message);
    }

    /// Sends an event for the timeline to the loop.
    pub(crate) fn later(&self, event: Event) {
        self.send(Message::Event(event));
    }

    /// Records an event of a generation, in the same words as the log.
    pub(crate) fn record(
        &self,
        id: GenerationId,
        pid: Option<i32>,
        kind: event::Kind,
        text: impl Into<String>,
    ) {
        self.journal.record(Happening::new(kind, text).generation(id.0).pid(pid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_stop_costs_a_tenth_of_what_is_left_at_most() {
        let (own, begun) = (OwnTime::default(), Instant::now());
        assert_eq!(own.look_again(begun, None), None);
        assert_eq!(own.missed(begun + 100 * SECOND), Duration::ZERO, "nothing is waited for");
        let look = own.look_again(begun, Some(5 * SECOND)).expect("a look");
        assert_eq!(look, begun + SECOND / 2);
        // Late, but not stopped.
        assert_eq!(own.missed(look + LATE), Duration::ZERO);
        // Stopped for a minute, once.
        let look = own.look_again(begun, Some(5 * SECOND)).expect("a look");
        assert_eq!(own.missed(look + 60 * SECOND), 60 * SECOND);
        assert_eq!(own.missed(look + 60 * SECOND), 60 * SECOND);
        // And again, just before the deadline.
        let look = own.look_again(begun, Some(Duration::from_millis(2))).expect("a look");
        assert_eq!(look, begun + Duration::from_millis(2));
        assert_eq!(own.missed(look + 7 * SECOND), 67 * SECOND);
    }

    #[test]
    fn a_stop_in_the_middle_of_a_turn_costs_nothing() {
        let (own, begun) = (OwnTime::default(), Instant::now());
        own.look_again(begun, None);
        // A message begins a start, and the process is stopped before it waits for its deadline.
        let set = begun + 3 * SECOND;
        assert_eq!(own.missed(set), Duration::ZERO);
        assert_eq!(own.missed(set + SECOND / 100), Duration::ZERO);
        assert_eq!(own.missed(set + SECOND / 100 + 4 * SECOND), 4 * SECOND);
    }
}
