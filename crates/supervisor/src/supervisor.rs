//! The parts of a supervisor, each with its own data. The loop in [`super::main_loop`] owns them all.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use bindonce_core::event;
use bindonce_core::generation::{Ending, Event, GenerationId, Timeline};
use bindonce_daemon::Journal;
use tokio::sync::{Mutex, mpsc};

use super::directory::{Directory, Saved};
use super::error::Error;
use super::generation::Generation;
use super::handover::Handover;
use super::kind::Kind;
use super::lease::{Leases, Shared};
use super::message::Message;
use super::report::Report;
use super::requests::Requests;
use super::settings::{Ghosts, Settings};
use super::starts::Starts;
use super::upgrades::Upgrade;
use super::version::Version;

pub(super) struct Supervisor {
    pub(super) settings: Rc<Settings>,
    pub(super) directory: Rc<Directory>,
    /// Decides; what the others do is what it says.
    pub(super) timeline: Timeline,
    /// What the timeline counts time from.
    pub(super) epoch: Instant,
    pub(super) sender: mpsc::UnboundedSender<Message>,
    pub(super) generations: BTreeMap<GenerationId, Generation>,
    pub(super) starts: Starts,
    pub(super) handover: Handover,
    pub(super) leases: Leases,
    pub(super) requests: Requests,
    pub(super) report: Report,
    pub(super) upgrade: Upgrade,
    pub(super) ending: Option<Ending>,
}

impl Supervisor {
    pub(super) fn new(
        settings: Settings,
        directory: Directory,
        saved: &Saved,
        control: OwnedFd,
        sender: mpsc::UnboundedSender<Message>,
        journal: Rc<Journal>,
    ) -> Result<Self, Error> {
        let version = match &settings.kind {
            Kind::Haproxy(haproxy) if !haproxy.admin => {
                Some(Version::of(&haproxy.command.program)?)
            }
            _ => None,
        };
        let broker = Rc::new(Shared {
            socket: settings.socket.clone(),
            start: settings.start_broker,
            service: settings.service.clone(),
            pid: Cell::new(None),
            starting: Mutex::new(()),
            lost: Cell::new(false),
            journal: Rc::clone(&journal),
        });
        let no_epoll = settings.ghosts == Ghosts::NoEpoll;
        Ok(Self {
            timeline: Timeline::new(settings.timing.clone(), GenerationId(saved.next.max(1))),
            epoch: Instant::now(),
            settings: Rc::new(settings),
            directory: Rc::new(directory),
            sender,
            generations: BTreeMap::new(),
            starts: Starts::new(saved.inherited.is_some(), no_epoll, version),
            handover: Handover::new()?,
            leases: Leases { broker, ours: saved.ours.clone() },
            requests: Requests::default(),
            report: Report::new(journal),
            upgrade: Upgrade::new(control, saved.upgrades),
            ending: None,
        })
    }

    /// Gives an event to the timeline and performs what it says.
    pub(super) fn feed(&mut self, event: Event) {
        for action in self.timeline.on(self.epoch.elapsed(), event) {
            self.perform(action);
        }
    }

    /// Sends an event to ourselves, to be taken after what is being done.
    pub(super) fn later(&self, event: Event) {
        let _ = self.sender.send(Message::Event(event));
    }

    /// Records what happens to a generation, in the words of the log.
    pub(super) fn record(&self, id: GenerationId, kind: event::Kind, text: impl Into<String>) {
        self.report.record(id, self.generations.get(&id).map(Generation::pid), kind, text);
    }
}
