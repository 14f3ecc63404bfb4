//! The callers that wait for a reload. Those that ask while one is in progress share the next one.

use super::{Action, Caller, Moment, Outcome};

/// The waiting callers, and when the next reload may begin.
#[derive(Debug, Clone, Default)]
pub(super) struct Reloads {
    /// Callers of the reload in progress.
    running: Vec<Caller>,
    /// Callers that have asked since it began.
    waiting: Vec<Caller>,
    /// When the last start for a reload began; none if the next must not wait for it.
    begun: Option<Moment>,
}

impl Reloads {
    pub(super) fn ask(&mut self, caller: Caller) {
        self.waiting.push(caller);
    }

    /// Adds a caller that must not wait for the interval since the last reload.
    pub(super) fn ask_at_once(&mut self, caller: Caller) {
        self.begun = None;
        self.ask(caller);
    }

    /// How many callers wait for the next reload.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When the waiting callers can have their reload, once nothing else is in progress: `interval`
    /// after the last one began, while a generation serves.
    pub(super) fn due(&self, interval: Moment, serves: bool) -> Option<Moment> {
        let begun = self.begun.filter(|_| serves);
        let due = begun.map_or(Moment::ZERO, |begun| begun.saturating_add(interval));
        (!self.waiting.is_empty()).then_some(due)
    }

    /// Begins the reload of all waiting callers.
    pub(super) fn begin(&mut self) {
        self.running.append(&mut self.waiting);
    }

    /// A generation is started with the files as they are.
    pub(super) fn started(&mut self, now: Moment) {
        self.begun = Some(now);
    }

    /// Whether the start in progress has callers.
    pub(super) fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Answers the callers of the reload in progress.
    pub(super) fn answer(&mut self, outcome: Outcome) -> Option<Action> {
        self.is_running().then(|| Action::Answer(std::mem::take(&mut self.running), outcome))
    }
}
