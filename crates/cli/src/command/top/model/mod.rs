//! The state of the screen, and what a key or news does to it.
//!
//! [`Model::on`] is a function of the time and the input: it uses no clock and no terminal, and
//! asks no process. What to do is returned as [`Effect`]s.

mod command;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bindonce::{BrokerInfo, ListenerInfo};
use bindonce_core::event::REMEMBERED;
use bindonce_core::history::Life;
use bindonce_core::time::Timestamp;

use super::keys::Key;
use super::lives::Lives;
use super::overview::{Generation, Overview, Service, Supervision};
use crate::events::SourcedEvent;

/// How long the outcome of an action is shown, in milliseconds.
const TOLD: u64 = 15_000;
/// Ended generations that are shown for each service.
const ENDED_SHOWN: usize = 3;
/// Lengths of the time line, in seconds.
pub(super) const SPANS: [u64; 8] =
    [60, 5 * 60, 15 * 60, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600, 30 * 24 * 3600];
/// Index of the longest length that is chosen without a key.
const LONGEST_UNASKED: usize = 3;

/// An input to the model.
#[derive(Debug)]
pub(super) enum Input {
    Key(Key),
    /// No news for a while.
    Time,
    /// A new snapshot.
    Overview(Box<Overview>),
    /// Events, oldest first.
    Happened(Vec<SourcedEvent>),
    /// The outcome of an action: what was reported, or why it failed.
    Done(Result<String, String>),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    Act(Action),
    /// Take a snapshot now.
    Look,
    /// Draw everything again: another program may have written on the terminal.
    Redraw,
    /// Give the terminal back to the shell until it continues this process.
    Suspend,
    Quit,
}

/// An action on a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Reload { service: String },
    Retire { service: String, generation: u64 },
}

/// A part of the screen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Pane {
    #[default]
    Services,
    Listeners,
    Events,
}

/// How the listeners are sorted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Name,
    /// The fullest queue first.
    Queue,
    /// The most holders first.
    Users,
}

/// A service, or one generation of it.
pub(super) type Row = (String, Option<u64>);

/// A message below the panes, until the next key that does something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// Shown from this time on, for a short while.
    Notice(Timestamp, String),
    Failed(String),
}

/// What the keys have chosen.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) pane: Pane,
    chosen: Option<Row>,
    /// The line of the listeners that stays in view.
    pub(super) listener: usize,
    /// Distance from the newest event.
    pub(super) back: usize,
    pub(super) sort: Sort,
    /// Index in [`SPANS`] of the chosen length.
    span: Option<usize>,
    pub(super) help: bool,
}

/// Everything on the screen.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) now: Timestamp,
    /// Whether a snapshot was taken yet.
    pub(super) looked: bool,
    /// As last reported.
    pub(super) broker: Option<BrokerInfo>,
    /// Since when the broker does not answer, and why.
    pub(super) lost: Option<(Timestamp, String)>,
    listeners: Vec<ListenerInfo>,
    pub(super) services: Vec<Service>,
    pub(super) lives: Lives,
    /// Oldest first.
    pub(super) events: VecDeque<SourcedEvent>,
    pub(super) view: View,
    /// The generation to end, once that is confirmed.
    pub(super) asking: Option<(String, u64)>,
    /// The running action, and since when.
    pub(super) doing: Option<(Action, Timestamp)>,
    pub(super) message: Option<Message>,
}

impl Model {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { now, ..Self::default() }
    }

    /// Handles an input, and returns what to do.
    pub(super) fn on(&mut self, now: Timestamp, input: Input) -> Vec<Effect> {
        self.now = now;
        match input {
            Input::Key(key) => self.key(key),
            Input::Time => Vec::new(),
            Input::Overview(seen) => {
                self.see(*seen);
                Vec::new()
            }
            Input::Happened(events) => {
                for sourced in events {
                    self.lives.happened(&sourced);
                    self.events.push_back(sourced);
                    // The event that is being read stays in place.
                    self.view.back += usize::from(self.view.back > 0);
                }
                let surplus = self.events.len().saturating_sub(REMEMBERED);
                self.events.drain(..surplus);
                self.view.back = self.view.back.min(self.events.len().saturating_sub(1));
                vec![Effect::Look]
            }
            Input::Done(outcome) => {
                self.doing = None;
                self.message = Some(match outcome {
                    Ok(text) => Message::Notice(now, text),
                    Err(text) => Message::Failed(text),
                });
                vec![Effect::Look]
            }
        }
    }

    fn see(&mut self, seen: Overview) {
        self.looked = true;
        if let Some(Message::Notice(since, _)) = self.message
            && self.now.0.saturating_sub(since.0) > TOLD
        {
            self.message = None;
        }
        match seen.broker {
            Ok((broker, listeners)) => {
                self.lost = None;
                self.broker = Some(broker);
                self.listeners = listeners;
            }
            Err(reason) => {
                let since = self.lost.as_ref().map_or(self.now, |(since, _)| *since);
                self.lost = Some((since, reason));
            }
        }
        for service in &seen.services {
            // A service that does not answer, or whose broker does not, still has its generations.
            let silent = matches!(service.supervision, Supervision::Silent(_));
            if !silent || !service.generations.is_empty() {
                self.lives.seen(self.now, service);
            }
        }
        self.services = seen.services;
        self.view.listener = self.view.listener.min(self.listeners.len().saturating_sub(1));
        let rows = self.rows();
        if !self.view.chosen.as_ref().is_some_and(|chosen| rows.contains(chosen)) {
            // If a generation is gone, its service is chosen instead.
            let service = self.view.chosen.take().map(|(service, _)| (service, None));
            self.view.chosen = service.filter(|row| rows.contains(row)).or(rows.into_iter().next());
        }
    }

    /// Services and their generations, newest first, then those that ended lately.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for service in &self.services {
            let name = &service.name;
            rows.push((name.clone(), None));
            let numbers = service.generations.iter().rev().map(|generation| generation.number);
            let listed = |number| service.generations.iter().any(|known| known.number == number);
            let ended = self.lives.of(name).rev();
            let ended = ended.filter(|(number, life)| !listed(*number) && self.ended_lately(life));
            let numbers = numbers.chain(ended.take(ENDED_SHOWN).map(|(number, _)| number));
            rows.extend(numbers.map(|number| (name.clone(), Some(number))));
        }
        rows
    }

    fn ended_lately(&self, life: &Life) -> bool {
        life.ended.is_some_and(|ended| ended >= self.span().0)
    }

    /// The chosen line of [`Model::rows`].
    pub(super) fn chosen(&self) -> Option<&Row> {
        self.view.chosen.as_ref()
    }

    /// The chosen service, or the service of the chosen generation.
    pub(super) fn service(&self) -> Option<&Service> {
        let (name, _) = self.view.chosen.as_ref()?;
        self.services.iter().find(|service| service.name == *name)
    }

    /// The listeners, sorted as chosen.
    pub(super) fn listeners(&self) -> Vec<&ListenerInfo> {
        let mut listeners: Vec<_> = self.listeners.iter().collect();
        match self.view.sort {
            Sort::Name => listeners.sort_by(|one, other| one.name.cmp(&other.name)),
            Sort::Queue => {
                listeners.sort_by(|one, other| fullness(other).total_cmp(&fullness(one)));
            }
            Sort::Users => {
                listeners.sort_by_key(|listener| std::cmp::Reverse(listener.holders.len()));
            }
        }
        listeners
    }

    fn span_index(&self) -> usize {
        self.view.span.unwrap_or_else(|| {
            let generations = self.services.iter().flat_map(|service| {
                let of = |known: &Generation| self.lives.get(&service.name, known.number);
                service.generations.iter().filter_map(of)
            });
            let oldest = generations.filter_map(Life::begin).min().unwrap_or(self.now);
            let age = self.now.0.saturating_sub(oldest.0) / 1000;
            SPANS
                .iter()
                .position(|span| *span > age)
                .unwrap_or(LONGEST_UNASKED)
                .min(LONGEST_UNASKED)
        })
    }

    /// Where the time line begins, and its length in seconds. It ends now.
    pub(super) fn span(&self) -> (Timestamp, u64) {
        let seconds = SPANS[self.span_index()];
        (Timestamp(self.now.0.saturating_sub(seconds * 1000)), seconds)
    }
}

/// How full the listener's queue is, as a fraction; negative if that is not known.
pub(super) fn fullness(listener: &ListenerInfo) -> f64 {
    let queue = listener.queue.or(listener.receive_queue);
    match (queue, listener.backlog.or(listener.receive_buffer)) {
        (Some(queue), Some(limit)) => f64::from(queue) / f64::from(limit.max(1)),
        _ => -1.0,
    }
}
