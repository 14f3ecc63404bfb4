//! What every part of a supervisor may use: the settings, the directory, the journal, the time, and the way to send the loop a
//! message.

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
    pub(crate) epoch: Instant,
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
        Self { settings, directory, journal, reporter, passed, inbox, epoch }
    }

    /// The time for the timeline.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
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
