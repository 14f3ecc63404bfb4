//! What every part of a supervisor may use: the settings, the directory, the journal, the time, and the way to send the loop a
//! message.

use std::cell::Cell;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::event;
use bindonce_core::generation::{Event, GenerationId, WORKED_AFTER};
use bindonce_daemon::{Happening, Journal, Reporter};
use tokio::sync::mpsc;

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
    inbox: mpsc::UnboundedSender<Message>,
    /// What the timeline counts time from.
    epoch: Instant,
    own: Rc<OwnTime>,
}

/// What this process has missed of the time, because it was stopped: whatever it waits for was not looked at either. While a deadline
/// is waited for the time is looked at again and again; so what is between two looks beyond that is known to be missed.
#[derive(Default)]
struct OwnTime {
    missed: Cell<Duration>,
    /// The latest moment of the next look.
    next: Cell<Option<Instant>>,
}

/// So much later a look may be on a machine that is busy.
const LATE: Duration = Duration::from_millis(100);
/// A stop costs one part of so many that are left until a deadline.
const PARTS: u32 = 10;
/// How long a part is: the last ones are not shorter, so that they end.
const PART: RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(30);

impl OwnTime {
    /// What was missed until `now`, all in all.
    fn missed(&self, now: Instant) -> Duration {
        if let Some(next) = self.next.get() {
            let late = now.saturating_duration_since(next);
            if late > LATE {
                self.missed.set(self.missed.get() + late);
                self.next.set(None);
            }
        }
        self.missed.get()
    }

    /// When to look again, of what is `left` until a deadline.
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
        inbox: mpsc::UnboundedSender<Message>,
    ) -> Self {
        let (settings, directory) = (Rc::new(settings), Rc::new(directory));
        let journal = Rc::clone(&reporter.journal);
        // A minute ago: a generation that is taken over has served for a while already.
        let epoch = Instant::now().checked_sub(6 * WORKED_AFTER).unwrap_or_else(Instant::now);
        let own = Rc::default();
        Self { settings, directory, journal, reporter, passed, inbox, epoch, own }
    }

    /// The time for the timeline, without what this process has missed.
    pub(crate) fn now(&self) -> Duration {
        let now = Instant::now();
        now.saturating_duration_since(self.epoch).saturating_sub(self.own.missed(now))
    }

    /// When to look again, for a deadline in that time.
    pub(crate) fn next_look(&self, deadline: Option<Duration>) -> Option<Instant> {
        let left = deadline.map(|at| at.saturating_sub(self.now()));
        self.own.look_again(Instant::now(), left)
    }

    /// Sends a message to the loop, which takes it after what it does now. The loop ends only with the process.
    pub(crate) fn send(&self, message: Message) {
        let _ = self.inbox.send(message);
    }

    /// Sends an event for the timeline to the loop.
    pub(crate) fn later(&self, event: Event) {
        self.send(Message::Event(event));
    }

    /// Records what happens to a generation, in the words of the log.
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
        // Late, and not stopped.
        assert_eq!(own.missed(look + LATE), Duration::ZERO);
        // Stopped for a minute, once.
        assert_eq!(own.missed(look + 60 * SECOND), 60 * SECOND);
        assert_eq!(own.missed(look + 61 * SECOND), 60 * SECOND);
        // And again, just before the deadline.
        let look = own.look_again(begun, Some(Duration::from_millis(2))).expect("a look");
        assert_eq!(look, begun + Duration::from_millis(2));
        assert_eq!(own.missed(look + 7 * SECOND), 67 * SECOND);
    }
}
