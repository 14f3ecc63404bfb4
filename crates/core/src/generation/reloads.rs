//! The callers that wait for a reload. Those that ask while one is in progress share the next one.

use std::collections::VecDeque;

use super::{Action, Caller, Moment, Outcome};

/// The waiting callers, and when the next reload may begin.
#[derive(Debug, Clone, Default)]
pub(super) struct Reloads {
    /// Callers of the reload in progress.
    running: Vec<Caller>,
    /// Callers that have asked since it began. Each group, none empty, has one reload.
    waiting: VecDeque<Vec<Caller>>,
    /// When the last start for a reload began; none if the next must not wait for it.
    begun: Option<Moment>,
}

impl Reloads {
    /// Adds a caller to the last group.
    pub(super) fn ask(&mut self, caller: Caller) {
        match self.waiting.back_mut() {
            Some(group) => group.push(caller),
            None => self.ask_apart(caller),
        }
    }

    /// Adds a caller that cannot share the reload of those that wait already.
    pub(super) fn ask_apart(&mut self, caller: Caller) {
        self.waiting.push_back(vec![caller]);
    }

    /// Adds a caller that must not wait for the interval since the last reload. Any reload will do.
    pub(super) fn ask_at_once(&mut self, caller: Caller) {
        self.begun = None;
        match self.waiting.front_mut() {
            Some(group) => group.push(caller),
            None => self.ask_apart(caller),
        }
    }

    /// How many callers wait for a later reload.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.iter().map(Vec::len).sum()
    }

    /// The callers of the reload in progress.
    pub(super) fn running(&self) -> &[Caller] {
        &self.running
    }

    /// When the waiting callers can have their reload, once nothing else is in progress: `interval`
    /// after the last one began, while a generation serves.
    pub(super) fn due(&self, interval: Moment, serves: bool) -> Option<Moment> {
        let begun = self.begun.filter(|_| serves);
        let due = begun.map_or(Moment::ZERO, |begun| begun.saturating_add(interval));
        (!self.waiting.is_empty()).then_some(due)
    }

    /// Begins the reload of the first group.
    pub(super) fn begin(&mut self) {
        self.running.extend(self.waiting.pop_front().into_iter().flatten());
    }

    /// All callers have the outcome of the reload in progress.
    pub(super) fn begin_all(&mut self) {
        self.running.extend(self.waiting.drain(..).flatten());
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
