//! What is on the screen, and what a key or news does to it.
//!
//! [`Model::on`] is a function of the time and of what happens: no clock, no terminal and nobody
//! to ask is in here. What is to be done comes out as [`Effect`]s.

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

/// For how many milliseconds it is told what was done.
const TOLD: u64 = 15_000;
/// Ended generations that are shown of each service.
const ENDED_SHOWN: usize = 3;
/// Seconds that the time line can show.
pub(super) const SPANS: [u64; 8] =
    [60, 5 * 60, 15 * 60, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600, 30 * 24 * 3600];
/// The longest of them that is chosen without being asked for.
const LONGEST_UNASKED: usize = 3;

/// What happens.
#[derive(Debug)]
pub(super) enum Input {
    Key(Key),
    /// Nothing for a while.
    Time,
    /// They were all asked.
    Overview(Box<Overview>),
    /// Events, oldest first.
    Happened(Vec<SourcedEvent>),
    /// What was being done is done: what was said of it, or why it failed.
    Done(Result<String, String>),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    Act(Action),
    /// Ask them all, now.
    Look,
    /// Draw everything again: another program may have written on the terminal.
    Redraw,
    /// Give the terminal back to the shell until it continues this process.
    Suspend,
    Quit,
}

/// What can be done to a service.
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

/// By what the listeners are sorted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Name,
    /// The fullest queue first.
    Queue,
    /// Those that most connections to the broker have first.
    Users,
}

/// A service, or one generation of it.
pub(super) type Row = (String, Option<u64>);

/// What is told below everything, until the next key that does something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// From then on, and not for long.
    Notice(Timestamp, String),
    Failed(String),
}

/// What of it the keys have chosen.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) pane: Pane,
    chosen: Option<Row>,
    /// The line of the listeners that is in sight.
    pub(super) listener: usize,
    /// How far back from the newest event.
    pub(super) back: usize,
    pub(super) sort: Sort,
    /// Which of [`SPANS`] was asked for.
    span: Option<usize>,
    pub(super) help: bool,
}

/// All that is on the screen.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) now: Timestamp,
    /// Whether anybody was asked yet.
    pub(super) looked: bool,
    /// As it last told.
    pub(super) broker: Option<BrokerInfo>,
    /// Since when it does not tell, and why.
    pub(super) lost: Option<(Timestamp, String)>,
    listeners: Vec<ListenerInfo>,
    pub(super) services: Vec<Service>,
    pub(super) lives: Lives,
    /// Oldest first.
    pub(super) events: VecDeque<SourcedEvent>,
    pub(super) view: View,
    /// The generation that is to be ended once that is confirmed.
    pub(super) asking: Option<(String, u64)>,
    /// What is being done, and since when.
    pub(super) doing: Option<(Action, Timestamp)>,
    pub(super) message: Option<Message>,
}

impl Model {
    /// Nothing known yet.
    pub(super) fn new(now: Timestamp) -> Self {
        Self { now, ..Self::default() }
    }

    /// Takes in what happens, and says what is to be done.
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
                    // What is being read stays where it is.
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
            // One that does not answer, or whose broker does not, still has what it had.
            let silent = matches!(service.supervision, Supervision::Silent(_));
            if !silent || !service.generations.is_empty() {
                self.lives.seen(self.now, service);
            }
        }
        self.services = seen.services;
        self.view.listener = self.view.listener.min(self.listeners.len().saturating_sub(1));
        let rows = self.rows();
        if !self.view.chosen.as_ref().is_some_and(|chosen| rows.contains(chosen)) {
            // A generation that is gone leaves the choice to its service.
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

    /// The line of [`Model::rows`] that is chosen.
    pub(super) fn chosen(&self) -> Option<&Row> {
        self.view.chosen.as_ref()
    }

    /// The service that is chosen, or one of whose generations is.
    pub(super) fn service(&self) -> Option<&Service> {
        let (name, _) = self.view.chosen.as_ref()?;
        self.services.iter().find(|service| service.name == *name)
    }

    /// The listeners as they are sorted.
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

/// How full its queue is, of 1; less than nothing where that is not known.
pub(super) fn fullness(listener: &ListenerInfo) -> f64 {
    let queue = listener.queue.or(listener.receive_queue);
    match (queue, listener.backlog.or(listener.receive_buffer)) {
        (Some(queue), Some(limit)) => f64::from(queue) / f64::from(limit.max(1)),
        _ => -1.0,
    }
}
