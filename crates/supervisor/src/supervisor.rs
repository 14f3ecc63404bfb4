//! The parts of a supervisor, each with its own data. The loop in [`crate::main_loop`] owns them all.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use bindonce_core::event;
use bindonce_core::generation::{Ending, Event, GenerationId, Timeline};
use bindonce_daemon::Journal;
use tokio::sync::{Mutex, mpsc};

use crate::broker::lease::{Leases, Shared};
use crate::control::requests::Requests;
use crate::control::upgrades::Upgrade;
use crate::disk::directory::{Directory, Saved};
use crate::error::Error;
use crate::generations::generation::Generation;
use crate::generations::starts::Starts;
use crate::handover::Handover;
use crate::kind::Haproxy;
use crate::message::Message;
use crate::report::Report;
use crate::settings::{Ghosts, Settings};

pub(crate) struct Supervisor {
    pub(crate) settings: Rc<Settings>,
    pub(crate) directory: Rc<Directory>,
    /// Decides; what the others do is what it says.
    pub(crate) timeline: Timeline,
    /// What the timeline counts time from.
    pub(crate) epoch: Instant,
    pub(crate) sender: mpsc::UnboundedSender<Message>,
    pub(crate) generations: BTreeMap<GenerationId, Generation>,
    pub(crate) starts: Starts,
    pub(crate) handover: Handover,
    pub(crate) leases: Leases,
    pub(crate) requests: Requests,
    pub(crate) report: Report,
    pub(crate) upgrade: Upgrade,
    pub(crate) ending: Option<Ending>,
}

impl Supervisor {
    pub(crate) fn new(
        settings: Settings,
        directory: Directory,
        saved: &Saved,
        control: OwnedFd,
        sender: mpsc::UnboundedSender<Message>,
        journal: Rc<Journal>,
    ) -> Result<Self, Error> {
        let haproxy = settings.kind.haproxy();
        let version = haproxy.map(Haproxy::version).transpose()?.flatten();
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
    pub(crate) fn feed(&mut self, event: Event) {
        for action in self.timeline.on(self.epoch.elapsed(), event) {
            self.perform(action);
        }
    }

    /// Sends an event to ourselves, to be taken after what is being done.
    pub(crate) fn later(&self, event: Event) {
        let _ = self.sender.send(Message::Event(event));
    }

    /// Records what happens to a generation, in the words of the log.
    pub(crate) fn record(&self, id: GenerationId, kind: event::Kind, text: impl Into<String>) {
        self.report.record(id, self.generations.get(&id).map(Generation::pid), kind, text);
    }
}
