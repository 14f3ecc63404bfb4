//! The parts of a supervisor. Each owns its data and offers verbs; what needs several of them is here, in
//! [`crate::inbox`] (messages and signals), [`crate::perform`] (decisions of the timeline) and
//! [`crate::handover::steps`].

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::event;
use bindonce_core::generation::{Ending, Event, GenerationId, State, Timeline, WORKED_AFTER};

use crate::broker::leases::Leases;
use crate::context::Context;
use crate::control::requests::Requests;
use crate::control::upgrades::Upgrade;
use crate::disk::directory::{Inherited, Saved, SavedGeneration};
use crate::error::Error;
use crate::generations::Generations;
use crate::generations::admin::Admin;
use crate::generations::counting::Counting;
use crate::generations::own;
use crate::generations::since::SavedLately;
use crate::generations::starts::Starts;
use crate::handover::Handover;
use crate::kind::Haproxy;
use crate::master_cli::Master;
use crate::report::Report;
use crate::report::view::View;
use bindonce_haproxy::config::Rendering;
use bindonce_sys::signals::Signal;

pub(crate) struct Supervisor {
    pub(crate) cx: Context,
    /// Decides; what the others do is what it says.
    pub(crate) timeline: Timeline,
    /// What the timeline counts time from.
    pub(crate) epoch: Instant,
    pub(crate) generations: Generations,
    pub(crate) counting: Counting,
    pub(crate) starts: Starts,
    pub(crate) handover: Handover,
    pub(crate) leases: Leases,
    pub(crate) requests: Requests,
    pub(crate) report: Report,
    pub(crate) upgrade: Upgrade,
    pub(crate) master: Master,
    pub(crate) ending: Option<Ending>,
    /// The haproxys without bindonce that the first generation replaces.
    pub(crate) replaced: Vec<i32>,
    /// Who waits for the first generation to serve.
    pub(crate) starter: Option<Rc<OwnedFd>>,
    /// The signal that ends this process at once, and whether haproxy would have a master.
    pub(crate) ended_by: Option<(Signal, bool)>,
}

impl Supervisor {
    pub(crate) fn new(
        cx: Context,
        saved: &Saved,
        control: OwnedFd,
        master: Master,
    ) -> Result<Self, Error> {
        let settings = &cx.settings;
        let version = settings.kind.haproxy().map(Haproxy::version).transpose()?.flatten();
        let next = GenerationId(saved.next.max(1));
        let mut starts = Starts::new(saved.inherited.is_some(), version);
        // Another process has the command that it is started with.
        let caller = saved.caller.as_ref().filter(|_| saved.inherited.is_some());
        if let (Some(haproxy), Some(caller)) = (settings.kind.haproxy(), caller) {
            starts.was_given(haproxy.of(caller.clone())?);
        }
        Ok(Self {
            timeline: Timeline::new(settings.timing.clone(), next),
            // A minute ago: a generation that is taken over has served for a while already.
            epoch: Instant::now().checked_sub(6 * WORKED_AFTER).unwrap_or_else(Instant::now),
            generations: Generations::default(),
            counting: Counting::resume(cx.directory.counters()),
            starts,
            handover: Handover::new(settings.ghosts, &cx.directory.kept())?,
            leases: Leases::new(settings, saved.ours.clone(), Rc::clone(&cx.journal)),
            requests: Requests::default(),
            report: Report::new(settings, &saved.lately),
            upgrade: Upgrade::new(control, saved.upgrades),
            master,
            ending: None,
            replaced: Vec::new(),
            starter: settings.starter.clone(),
            ended_by: None,
            cx,
        })
    }

    /// Gives an event to the timeline and performs what it says.
    pub(crate) fn feed(&mut self, event: Event) {
        for action in self.timeline.on(self.epoch.elapsed(), event) {
            self.perform(action);
        }
    }

    /// Records what happens to a generation, in the words of the log.
    pub(crate) fn record(&self, id: GenerationId, kind: event::Kind, text: impl Into<String>) {
        self.cx.record(id, self.generations.pid(id), kind, text);
    }

    /// The configuration of a generation, as it was read.
    pub(crate) fn rendering(&self, id: GenerationId) -> Option<&Rendering> {
        self.starts.rendering(self.timeline.configuration_of(id)?)
    }

    /// Whether the older generations can let go of an address that `newer` cannot bind, as far as is known.
    pub(crate) fn can_let_go(&self, newer: GenerationId) -> bool {
        let no_reuse_port =
            |id| self.rendering(id).is_some_and(|rendering| rendering.no_reuse_port);
        let of_newer = no_reuse_port(newer);
        let older = self.timeline.accepting(newer).into_iter();
        let older: Vec<_> = older
            .filter_map(|id| Some((self.generations.get(&id)?, of_newer || no_reuse_port(id))))
            .collect();
        own::can_let_go(&older, self.starts.version)
    }

    /// What status and metrics show.
    pub(crate) fn view(&self) -> View<'_> {
        View {
            cx: &self.cx,
            timeline: &self.timeline,
            generations: &self.generations,
            report: &self.report,
            rendering: self.timeline.serving().and_then(|id| self.rendering(id)),
            upgrades: self.upgrade.count,
            broker_is_lost: self.leases.broker().is_lost(),
        }
    }

    /// Saves what the next supervisor must know.
    pub(crate) fn save(&mut self) {
        if let Err(error) = self.cx.directory.save(self.saved(None)) {
            tracing::error!(%error, "the state could not be saved: free space in the run directory");
        }
    }

    pub(crate) fn saved(&self, inherited: Option<Inherited>) -> Saved {
        // What another supervisor finds may be long ago by then.
        let itself = inherited.is_some();
        let generations = self.generations.iter().map(|generation| SavedGeneration {
            id: generation.id.0,
            pid: generation.pid(),
            start_time: generation.named.start_time,
            state: self.timeline.state_of(generation.id).unwrap_or(State::Draining).to_string(),
            ready: generation.readiness.ready,
            master_worker: generation.cli.master_worker,
            configuration: self.timeline.configuration_of(generation.id).unwrap_or(generation.id).0,
            since: generation.started.0,
            listeners: generation.listeners.iter().map(|h| h.listener.to_string()).collect(),
            own_devices: generation.own.devices.clone(),
            own_lines: generation.own.lines.clone(),
            reloads_before: generation.reloads_before,
            start_ms: generation.start.took().and_then(milliseconds),
            drain_idle_ms: generation.drain.idle.get().and_then(milliseconds),
            drain_timeout_ms: generation.drain.timeout.and_then(milliseconds),
            counted: generation.drain.counted.filter(|_| itself),
            told: generation.cli.admin.as_ref().filter(|_| itself).map_or(0, Admin::told),
            after: generation.drain.since.filter(|_| itself),
            idle_closed: generation.drain.idle_closed,
        });
        Saved {
            next: self.timeline.next_id().0,
            generations: generations.collect(),
            ours: self.leases.ours().clone(),
            inherited,
            upgrades: self.upgrade.count,
            began: self.master.began.0,
            reloads: self.master.reloads,
            failed_reloads: self.master.failed,
            startup_logs: self.master.startup.text(),
            passed: self.cx.passed.listeners(),
            lately: if itself { self.report.saved_lately() } else { SavedLately::default() },
            caller: self.starts.caller().cloned(),
            worked: self.timeline.worked().map(|of| of.0),
            watched: self.starts.watched.read,
        }
    }
}

fn milliseconds(time: Duration) -> Option<u64> {
    u64::try_from(time.as_millis()).ok()
}
