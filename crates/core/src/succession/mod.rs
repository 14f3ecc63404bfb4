//! Succession: the order in which the generations of a service serve, where the broker keeps it.
//!
//! A generation joins, gets a number that only grows, reports that it is ready, and serves once no
//! older generation does: the older ones are told to retire, and each reports when it accepts no
//! more. [`Succession::on`] is the whole decision: events and the time go in, actions come out, and
//! [`Succession::deadline`] says when to call again if nothing happens. It guarantees, whatever the
//! order of events:
//!
//! - at most one generation of a service serves, and none is let in before the one that served has
//!   reported that it stopped, is gone, or was cut off at its deadline;
//! - a generation that goes before it was let in disturbs nobody: older generations that were told
//!   to retire for it and have not stopped yet are told to stay;
//! - a number is never given twice, even when a later broker continues from the [`Record`]s;
//! - every wait has a deadline.
//!
//! A supervisor that orders its generations itself (haproxy's) joins with its own numbers and is
//! merely entered. Either the broker or a supervisor orders a service, never both.
//!
//! The records of the previous broker count: the generation that served then has [`ABSENCE`] to
//! come back before another may serve.

mod order;
mod refusal;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::generation::Moment;
use crate::name::Name;
use crate::registry::{ConnectionId, Label, State};

pub use refusal::Refusal;

/// How long a generation that was told to retire has to report that it stopped accepting, by
/// default.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long the generation that served under a killed broker has to come back.
pub const ABSENCE: Duration = Duration::from_secs(3);

/// The largest number that a generation may bring from a broker that this one knows nothing of.
pub const LARGEST_BROUGHT: u64 = 1 << 48;

/// How many services without a generation are remembered. Beyond that half of them, those that
/// ended first, are forgotten, and no number that they had is given again.
pub const REMEMBERED: usize = 1000;

/// The parameter of `join`: what a connection joins as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joining {
    /// The name of the service.
    pub service: Name,
    /// The number of the generation. With `handover` it may be missing: then it is the one that the
    /// connection has, or the next number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Its process; the caller's own if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its state. With `handover`, `serving` is a wish.
    pub state: State,
    /// Whether the broker keeps the order of the service's generations, and tells this connection
    /// when it serves and when it must retire.
    #[serde(default, rename = "handover", skip_serializing_if = "std::ops::Not::not")]
    pub ordered: bool,
    /// With `handover` and `draining`: the newer generation that this one made room for. If that
    /// one is gone and no other waits, this one serves on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<u64>,
}

/// The peer that joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speaker {
    /// Its connection.
    pub connection: ConnectionId,
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Whether it may succeed generations of other users.
    pub privileged: bool,
    /// Whether it may take names back: generations of other users (but root's) that are in its way
    /// are ended.
    pub takes_back: bool,
}

/// The record of a service for the next broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: Name,
    /// The last number given.
    pub last: u64,
    /// The generation that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<u64>,
}

/// A connection that has joined as a generation, for the next image of the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its connection.
    pub connection: ConnectionId,
    /// Its user.
    pub uid: u32,
    /// What it has joined as.
    pub label: Label,
    /// How far it is, if the broker keeps the order. None if a supervisor does.
    pub ordered: Option<Progress>,
}

/// How far a generation is, besides its state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Whether it has reported that it is ready.
    #[serde(default)]
    pub ready: bool,
    /// Whether it has been told to retire.
    #[serde(default, rename = "told")]
    pub retiring: bool,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A connection joins as a generation, or its state has changed.
    Join(Speaker, Joining),
    /// A connection has ended, and with it its generation.
    Gone(ConnectionId),
    /// Time has passed.
    Tick,
    /// The records of the previous broker, and the largest number of the
    /// services that it had forgotten.
    Recall(Vec<Record>, u64),
    /// The connections of an earlier image of this process.
    Resume(Vec<Place>),
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this record before anything else is done.
    Record(Record),
    /// Services were forgotten: write all of [`Succession::records`] again.
    Rewrite,
    /// A connection has joined as this generation, in this state. The answer to `join`.
    Enter(ConnectionId, Label),
    /// Tell a waiting generation that it serves.
    Serve(ConnectionId, Label),
    /// Tell a generation to stop accepting, because the newer one with this number is ready.
    Retire(ConnectionId, Label, u64),
    /// Tell a generation that it need not retire after all: the newer one went before it was let
    /// in.
    Stay(ConnectionId, Label),
    /// End a connection.
    Cut(ConnectionId, Label, Cause),
    /// The generation that served under the previous broker has not come back.
    Missed(Name, u64),
    /// Answer that a connection may not join.
    Refuse(ConnectionId, Refusal),
}

/// Why a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It was told to retire and did not report in time that it stopped accepting.
    Overdue,
    /// The same generation has joined on another connection.
    Replaced,
    /// Root or the broker's user took the service's name back.
    TakenBack,
}

/// All services that have a generation or are remembered.
#[derive(Debug)]
pub struct Succession {
    services: BTreeMap<Name, Service>,
    places: BTreeMap<ConnectionId, Name>,
    /// Numbers up to this one are not given.
    floor: u64,
    patience: Duration,
}

#[derive(Debug, Default)]
struct Service {
    last: u64,
    members: BTreeMap<ConnectionId, Member>,
    /// The generation that served under the previous broker, and until when it may come back.
    absent: Option<(u64, Moment)>,
    /// The last record written: the last number and the serving generation.
    written: (u64, Option<u64>),
    /// When a generation last left.
    idle: Moment,
}

#[derive(Debug)]
struct Member {
    uid: u32,
    pid: u32,
    generation: u64,
    stage: Stage,
    ordered: bool,
    /// When it must have stopped accepting, if it was told to retire.
    retire_by: Option<Moment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    /// Waits to be let in.
    Ready,
    Serving,
    Draining,
}

impl Stage {
    fn of(state: State) -> Self {
        match state {
            State::Starting => Self::Starting,
            State::Serving => Self::Serving,
            State::Draining => Self::Draining,
        }
    }
}

impl Member {
    fn label(&self, service: &Name) -> Label {
        let state = match self.stage {
            Stage::Starting | Stage::Ready => State::Starting,
            Stage::Serving => State::Serving,
            Stage::Draining => State::Draining,
        };
        Label { service: service.clone(), generation: self.generation, pid: self.pid, state }
    }
}

impl Default for Succession {
    fn default() -> Self {
        Self { services: BTreeMap::new(), places: BTreeMap::new(), floor: 0, patience: PATIENCE }
    }
}

impl Succession {
    /// Sets how long a generation has to stop accepting once it is told to; running deadlines stay.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Takes one event and returns what to do about it.
    pub fn on(&mut self, now: Moment, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Join(speaker, joining) => {
                let connection = speaker.connection;
                if let Err(refusal) = self.join(now, speaker, joining, &mut actions) {
                    actions.push(Action::Refuse(connection, refusal));
                }
            }
            Event::Gone(connection) => self.leave(now, connection, &mut actions),
            Event::Tick => self.tick(now, &mut actions),
            Event::Recall(records, floor) => self.recall(now, records, floor),
            Event::Resume(places) => self.resume(now, places, &mut actions),
        }
        actions
    }

    /// When to send [`Event::Tick`], if nothing else happens before.
    pub fn deadline(&self) -> Option<Moment> {
        let due = |service: &Service| {
            let overdue = service.members.values().filter_map(Member::overdue);
            overdue.chain(service.absent.map(|(_, until)| until)).min()
        };
        self.services.values().filter_map(due).min()
    }

    /// The records of all services whose order the broker keeps.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let numbered = self.services.iter().filter(|(_, service)| service.last != 0);
        numbered.map(|(name, service)| service.record(name))
    }

    /// Whether the service has generations. Then only their user and privileged users may join.
    pub fn is_joined(&self, service: &Name) -> bool {
        self.services.get(service).is_some_and(|service| !service.members.is_empty())
    }

    /// Services that are not remembered get no number up to this one.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Every connection that has joined as a generation.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.services.iter().flat_map(|(name, service)| {
            service.members.iter().map(|(connection, member)| Place {
                connection: *connection,
                uid: member.uid,
                label: member.label(name),
                ordered: member.ordered.then_some(Progress {
                    ready: member.stage == Stage::Ready,
                    retiring: member.retire_by.is_some(),
                }),
            })
        })
    }

    fn recall(&mut self, now: Moment, records: Vec<Record>, floor: u64) {
        self.floor = self.floor.max(floor);
        for Record { name, last, serving } in records {
            let service = self.services.entry(name).or_default();
            service.last = service.last.max(last);
            service.absent = serving.map(|generation| (generation, now + ABSENCE));
            service.written = (last, serving);
            service.idle = now;
        }
    }

    fn resume(&mut self, now: Moment, places: Vec<Place>, actions: &mut Vec<Action>) {
        for Place { connection, uid, label, ordered } in places {
            let Label { service: name, generation, pid, state } = label;
            let progress = ordered.unwrap_or_default();
            let stage = match state {
                State::Starting if progress.ready => Stage::Ready,
                state => Stage::of(state),
            };
            let retire_by = progress.retiring.then(|| now + self.patience);
            let member =
                Member { uid, pid, generation, stage, ordered: ordered.is_some(), retire_by };
            let service = self.services.entry(name.clone()).or_default();
            if ordered.is_some() {
                service.last = service.last.max(generation);
                // The record names it as the one that served under the previous broker.
                service.absent.take_if(|(absent, _)| *absent == generation);
            }
            service.members.insert(connection, member);
            self.places.insert(connection, name);
        }
        // A connection of the earlier image may be missing.
        for (name, service) in &mut self.services {
            service.advance(name, now + self.patience, None, actions);
            service.write_down(name, actions);
        }
    }
}
