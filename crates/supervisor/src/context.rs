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
        if let Some(next) = self.own.next.get() {
            let late = now.saturating_duration_since(next);
            if late > LATE {
                self.own.missed.set(self.own.missed.get() + late);
                self.own.next.set(None);
            }
        }
        now.saturating_duration_since(self.epoch).saturating_sub(self.own.missed.get())
    }

    /// When to look again, for a deadline in that time.
    pub(crate) fn next_look(&self, deadline: Option<Duration>) -> Option<Instant> {
        let left = deadline.map(|at| at.saturating_sub(self.now()));
        let part = left.map(|left| (left / PARTS).clamp(*PART.start(), *PART.end()).min(left));
        let next = part.map(|part| Instant::now() + part);
        self.own.next.set(next);
        next
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
