//! Who waits for a reload. Those who ask while one is in progress share the next one.

use super::{Action, Caller, Moment, Outcome};

/// Who waits for a reload, and when the next one may begin.
#[derive(Debug, Clone, Default)]
pub(super) struct Reloads {
    /// Who waits for the one in progress.
    running: Vec<Caller>,
    /// Who has asked since it began.
    waiting: Vec<Caller>,
    /// When the last start for one began; none where the next must not wait for it.
    begun: Option<Moment>,
}

impl Reloads {
    /// A client asks for a reload.
    pub(super) fn ask(&mut self, caller: Caller) {
        self.waiting.push(caller);
    }

    /// The same, however short a while ago the last one began.
    pub(super) fn ask_at_once(&mut self, caller: Caller) {
        self.begun = None;
        self.ask(caller);
    }

    /// How many wait for the next one.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// From when on they can have it, once nothing else is in progress: so long after the last one began, while a generation
    /// serves.
    pub(super) fn due(&self, interval: Moment, serves: bool) -> Option<Moment> {
        let begun = self.begun.filter(|_| serves);
        let due = begun.map_or(Moment::ZERO, |begun| begun.saturating_add(interval));
        (!self.waiting.is_empty()).then_some(due)
    }

    /// They have it.
    pub(super) fn begin(&mut self) {
        self.running.append(&mut self.waiting);
    }

    /// A generation is started on the files as they are.
    pub(super) fn started(&mut self, now: Moment) {
        self.begun = Some(now);
    }

    /// Whether the start in progress was asked for.
    pub(super) fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Answers everybody who waits for the one in progress.
    pub(super) fn answer(&mut self, outcome: Outcome) -> Option<Action> {
        self.is_running().then(|| Action::Answer(std::mem::take(&mut self.running), outcome))
    }
}
