//! The parts of a supervisor. Each part owns its data and offers verbs. Code that needs several
//! parts is here, in [`crate::inbox`] (messages and signals), in [`crate::perform`] (decisions of
//! the timeline), and in the `steps` of generations, handover and intercept.

use std::io;
use std::rc::Rc;

use bindonce_core::event;
use bindonce_core::generation::{Event, GenerationId, State, Timeline};

use crate::adopt::Taken;
use crate::broker::leases::Leases;
use crate::context::Context;
use crate::control::Control;
use crate::control::ending::End;
use crate::control::requests::Requests;
use crate::control::upgrades::Upgrade;
use crate::disk::directory::{COUNTERS, KEPT};
use crate::disk::saved::{Inherited, Saved, SavedGeneration, SavedOwn};
use crate::error::Error;
use crate::generations::Generations;
use crate::generations::admin::Admin;
use crate::generations::drain::milliseconds;
use crate::generations::first::First;
use crate::generations::own_addresses;
use crate::generations::since::SavedLately;
use crate::generations::starts::Starts;
use crate::handover::Handover;
use crate::kind::Haproxy;
use crate::master_cli::Master;
use crate::report::Report;
use crate::report::view::View;
use bindonce_haproxy::config::Rendering;

pub(crate) struct Supervisor {
    pub(crate) cx: Context,
    /// Makes the decisions; the other parts carry them out.
    pub(crate) timeline: Timeline,
    pub(crate) generations: Generations,
    pub(crate) starts: Starts,
    pub(crate) handover: Handover,
    pub(crate) leases: Leases,
    pub(crate) control: Control,
    pub(crate) requests: Requests,
    pub(crate) report: Report,
    pub(crate) upgrade: Upgrade,
    pub(crate) master: Master,
    pub(crate) first: First,
    pub(crate) end: End,
}

impl Supervisor {
    pub(crate) fn new(
        cx: Context,
        saved: &Saved,
        control: Control,
        master: Master,
    ) -> Result<Self, Error> {
        let settings = &cx.settings;
        let version = settings.kind.haproxy().map(Haproxy::version).transpose()?.flatten();
        let next = GenerationId(saved.next.max(1));
        let mut starts = Starts::new(saved.inherited.is_some(), version);
        // The caller's command replaces this process's own command line. It is kept only across an
        // upgrade in place.
        let caller = saved.caller.as_ref().filter(|_| saved.inherited.is_some());
        if let (Some(haproxy), Some(caller)) = (settings.kind.haproxy(), caller) {
            starts.given = Some(haproxy.of(caller.clone())?);
        }
        Ok(Self {
            timeline: Timeline::new(settings.timing.clone(), next),
            generations: Generations::default(),
            starts,
            handover: Handover::new(settings.handover.ghosts, &cx.directory.file(KEPT))?,
            leases: Leases::new(settings, saved.ours.clone(), Rc::clone(&cx.journal)),
            control,
            requests: Requests::default(),
            report: Report::new(settings, cx.directory.file(COUNTERS), &saved.lately),
            upgrade: Upgrade::new(saved.upgrades),
            master,
            first: First { replaced: Taken::default(), starter: settings.first.starter.clone() },
            end: End::default(),
            cx,
        })
    }

    /// Feeds an event to the timeline and performs the resulting actions.
    pub(crate) fn feed(&mut self, event: Event) {
        for action in self.timeline.on(self.cx.now(), event) {
            self.perform(action);
        }
    }

    /// Records an event of a generation, in the same words as the log.
    pub(crate) fn record(&self, id: GenerationId, kind: event::Kind, text: impl Into<String>) {
        self.cx.record(id, self.generations.pid(id), kind, text);
    }

    /// The configuration of a generation, as it was read.
    pub(crate) fn rendering(&self, id: GenerationId) -> Option<&Rendering> {
        self.starts.rendering(self.timeline.configuration_of(id)?)
    }

    /// Whether the older generations can let go of an address that `newer` cannot bind, as far as
    /// the supervisor knows.
    pub(crate) fn can_let_go(&self, newer: GenerationId) -> bool {
        let no_reuse_port =
            |id| self.rendering(id).is_some_and(|rendering| rendering.no_reuse_port);
        let of_newer = no_reuse_port(newer);
        let older = self.timeline.accepting(newer).into_iter();
        let older: Vec<_> = older
            .filter_map(|id| Some((self.generations.get(&id)?, of_newer || no_reuse_port(id))))
            .collect();
        own_addresses::can_let_go(&older, self.starts.version)
    }

    /// The data that status and metrics show.
    pub(crate) fn view(&self) -> View<'_> {
        View {
            cx: &self.cx,
            timeline: &self.timeline,
            generations: &self.generations,
            report: &self.report,
            rendering: self.timeline.serving().and_then(|id| self.rendering(id)),
            upgrades: self.upgrade.count,
            broker_is_lost: self.leases.broker.is_lost(),
        }
    }

    /// Saves the state for the next supervisor.
    pub(crate) fn save(&mut self) {
        if let Err(error) = self.cx.directory.save(self.saved(None)) {
            if error.kind() == io::ErrorKind::NotFound && self.cx.directory.ours().is_err() {
                // This call saves the state, or logs why it cannot.
                self.mend_directory();
                return;
            }
            let what = self.cx.directory.remedy(&error);
            tracing::error!(%error, "the state could not be saved: {what}");
        }
    }

    pub(crate) fn saved(&self, inherited: Option<Inherited>) -> Saved {
        // Recent counts are saved only for this process's next image: another supervisor may start
        // much later.
        let itself = inherited.is_some();
        let generations = self.generations.iter().map(|generation| SavedGeneration {
            id: generation.id.0,
            process: generation.named,
            state: self.timeline.state_of(generation.id).unwrap_or(State::Draining).to_string(),
            // If this process dies before the handover to it begins, it is ended. A refused one
            // never serves.
            ready: generation.start.begun.is_none() && generation.readiness.refused.is_none(),
            master_worker: generation.cli.master_worker,
            configuration: self.timeline.configuration_of(generation.id).unwrap_or(generation.id).0,
            since: generation.start.at.0,
            listeners: generation.listeners.iter().map(|h| h.listener.to_string()).collect(),
            own: SavedOwn {
                own_devices: generation.own.devices.clone(),
                own_lines: generation.own.lines.clone(),
            },
            reloads_before: generation.cli.reloads_before,
            start_ms: generation.start.took.and_then(milliseconds),
            drain: generation
                .drain
                .saved(itself, generation.cli.admin.as_ref().map_or(0, Admin::received)),
        });
        Saved {
            next: self.timeline.next_id().0,
            generations: generations.collect(),
            ours: self.leases.ours.clone(),
            inherited,
            upgrades: self.upgrade.count,
            history: self.master.history.saved(),
            passed: self.cx.passed.listeners(),
            lately: if itself { self.report.saved_lately() } else { SavedLately::default() },
            caller: self.starts.caller().cloned(),
            worked: self.timeline.worked().map(|of| of.0),
            watched: self.starts.watched.read,
            ended: false,
        }
    }
}
