//! The context that every part of a supervisor uses: the settings, the directory, the journal, the
//! time, and the way to send the loop a message.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::event;
use bindonce_core::generation::{Event, GenerationId, WORKED_AFTER};
use bindonce_core::patience::OwnTime;
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
    /// The loop's deadlines do not count the time that this process missed.
    own: Rc<RefCell<OwnTime>>,
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
        now.saturating_duration_since(self.epoch).saturating_sub(self.own.borrow_mut().missed(now))
    }

    /// The time of the next look for a deadline on the timeline's clock.
    pub(crate) fn next_look(&self, deadline: Option<Duration>) -> Option<Instant> {
        let left = deadline.map(|at| at.saturating_sub(self.now()));
        self.own.borrow_mut().look_again(Instant::now(), left)
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
