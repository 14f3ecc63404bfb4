//! A handover: from a generation that is ready to the proof that it alone accepts.
//!
//! At no moment are two configurations left accepting, whatever dies. [`steps`] has the order: [`readiness`], the
//! comparison with what the serving generation has ([`promise`]) and with what was claimed ([`compare`], [`listening`]), the [`proof`] that
//! no older generation accepts, what is [`leaving`] the configuration, the connections that it is still [`opening`], and the removal of what it leaves in epoll sets ([`ghosts`]). The [`watchdog`] is the
//! process that finishes a handover if this one dies in it; what it has in its [`descriptor_store`] then is the next supervisor's.

pub(crate) mod compare;
pub(crate) mod descriptor_store;
pub(crate) mod ghosts;
pub(crate) mod leaving;
pub(crate) mod listening;
pub(crate) mod opening;
pub(crate) mod promise;
pub(crate) mod proof;
pub(crate) mod readiness;
pub(crate) mod steps;
pub mod watchdog;
mod watchdog_inbox;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::generation::GenerationId;
use bindonce_sys::intercept::Unattended;
use bindonce_sys::tree::Stopping;
use tokio::task::AbortHandle;

use crate::context::Context;
use crate::error::Error;
use crate::generations::Generations;
use crate::generations::generation::Generation;
use crate::handover::descriptor_store::Stored;
use crate::handover::ghosts::Removal;
use crate::handover::leaving::Leaving;
use crate::handover::proof::{Older, Proof};
use crate::handover::watchdog::{Duty, ProcessRef, Watchdog};
use crate::settings::Ghosts;

/// How much longer than it should a pause may last before the watchdog ends it.
const GRACE: Duration = Duration::from_secs(10);

/// What a handover needs beside the generations themselves.
pub(crate) struct Handover {
    /// The generation that takes over if the proof succeeds, and the task that watches the queues.
    proof: Option<(GenerationId, AbortHandle)>,
    watchdog: Rc<RefCell<Watchdog>>,
    /// What was hidden for the latest handover, as long as it is open.
    leaving: Option<Leaving>,
    pub(crate) ghosts: Removal,
}

impl Handover {
    /// What the watchdog keeps for the next supervisor is asked for at `kept`.
    pub(crate) fn new(ghosts: Ghosts, kept: &Path) -> Result<Self, Error> {
        let kept = descriptor_store::open(kept).inspect_err(|error| {
            let text = "if this supervisor is killed, the next one will not reach the admin sockets of draining generations";
            tracing::warn!(%error, "{text}");
        });
        let watchdog = Watchdog::start(kept.ok())?;
        let watchdog = Rc::new(RefCell::new(watchdog));
        Ok(Self { proof: None, watchdog, leaving: None, ghosts: Removal::new(ghosts) })
    }

    /// Begins to watch the queues of the older generations' listeners.
    pub(crate) fn prove(
        &mut self,
        cx: &Context,
        generations: &Generations,
        newer: GenerationId,
        older: &[GenerationId],
    ) {
        let older: Vec<_> = older.iter().filter_map(|id| generations.get(id)).collect();
        let mut listeners = BTreeMap::new();
        let of_older = older.iter().flat_map(|generation| &generation.listeners);
        // An older one may be gone by now: what the new one has of the same counts too.
        let newer_has = generations.get(&newer).into_iter().flat_map(|g| &g.listeners);
        for held in of_older.chain(newer_has.filter(|held| !held.created)) {
            let is_hidden = self.leaving.as_ref().is_some_and(|leaving| leaving.has(held));
            if held.has_queue() && !is_hidden {
                listeners.entry(held.inode).or_insert_with(|| Rc::clone(held));
            }
        }
        let older = older.into_iter().map(|generation| Older {
            id: generation.id,
            admin: generation.cli.admin.clone(),
            inodes: generation.inodes().into_iter().collect(),
        });
        let newer_runs = generations.get(&newer).filter(|newer| !newer.is_held());
        let proof = Proof {
            stopping: newer_runs.map(|newer| Stopping::of(newer.pid())),
            older: older.collect(),
            listeners: listeners.into_values().collect(),
            probe: cx.settings.handover.probe,
            taken: generations.listeners().map(|held| held.bound.clone()).collect(),
        };
        let cx = cx.clone();
        let task = crate::tasks::spawn(async move {
            let begun = Instant::now();
            let watched = proof.watch(&cx).await;
            let took = begun.elapsed();
            match watched {
                Ok(shown) => tracing::debug!(
                    generation = newer.0,
                    probes = shown.probes,
                    unseen = shown.unseen,
                    ?took,
                    "no process accepts any more, as far as the accept queues show"
                ),
                Err(error) => tracing::error!(generation = newer.0, %error, "proof not possible"),
            }
        });
        self.proof = Some((newer, task.abort_handle()));
    }

    /// The watch is over, whatever it has found.
    pub(crate) fn end_watch(&mut self) {
        if let Some((_, task)) = self.proof.take() {
            task.abort();
        }
    }

    /// The generation for which the queues are watched.
    pub(crate) fn newer(&self) -> Option<GenerationId> {
        self.proof.as_ref().map(|(newer, _)| *newer)
    }

    /// Tells the watchdog what is to be done if this process dies now.
    pub(crate) fn tell(&self, duty: &Duty) {
        self.watchdog.borrow_mut().tell(duty);
    }

    /// Tells the watchdog to finish this handover, should we die or the older ones stay paused for too long.
    pub(crate) fn finish_without_us(
        &self,
        cx: &Context,
        newer: &Generation,
        older: &[&Generation],
    ) {
        let listeners: BTreeSet<_> = older.iter().flat_map(|older| older.inodes()).collect();
        self.tell(&Duty::Finish {
            within: cx.settings.timing.retire_timeout + GRACE,
            retire: cx.settings.kind.retire() as i32,
            newer: newer.named,
            older: older.iter().map(|older| older.named).collect(),
            listeners: listeners.into_iter().collect(),
        });
        older.iter().for_each(|older| self.keep(older));
    }

    /// Hides what leaves the configuration and is covered by what stays. What is given ends when the older generations have accepted
    /// what waits there.
    pub(crate) fn hide_leaving(
        &mut self,
        newer: &Generation,
        older: &[&Generation],
        ours: &BTreeSet<String>,
    ) -> Option<impl Future<Output = ()> + use<>> {
        self.leaving = Leaving::hide(newer, older, ours);
        self.leaving.as_ref().map(Leaving::drained)
    }

    /// This generation does not take over: what was hidden for it is found again.
    pub(crate) fn show_leaving(&mut self, newer: Option<GenerationId>) {
        let of_newer = |leaving: &mut Leaving| newer.is_none_or(|newer| leaving.newer == newer);
        self.leaving.take_if(of_newer).into_iter().for_each(Leaving::show);
    }

    /// The broker has released those of `asked` that it has not `kept`.
    pub(crate) fn released(&mut self, asked: &[String], kept: &BTreeSet<String>) {
        self.leaving.iter_mut().for_each(|leaving| leaving.released(asked, kept));
    }

    /// Gives the watchdog the admin connections of a generation that accepts no others, for the next supervisor.
    pub(crate) fn keep(&self, generation: &Generation) {
        for (name, connection) in generation.cli.connections() {
            self.watchdog.borrow().keep(generation.id, &name, connection.as_fd());
        }
    }

    /// Gives the watchdog a copy of what the calls of a generation come from, if it is asked about any.
    pub(crate) fn keep_calls(&self, cx: &Context, generation: &Generation) {
        let Some(calls) = &generation.own.intercept else { return };
        self.watchdog.borrow_mut().keep_calls(generation.id, how(cx), calls);
    }

    /// Gives the watchdog what that of an earlier supervisor has kept, which is not needed any more then.
    pub(crate) fn keep_on(&self, cx: &Context, kept: &Stored) {
        let watchdog = self.watchdog.borrow();
        for (id, copies) in &kept.calls {
            watchdog.keep_copies(*id, how(cx), copies.each_ref().map(|copy| copy.as_fd()));
        }
        for (id, connections) in &kept.connections {
            for (name, connection) in connections {
                watchdog.keep(*id, name, connection.as_fd());
            }
        }
        kept.are_taken();
    }

    /// They can be answered no more: they fail from now on.
    pub(crate) fn forget_calls(&self, id: GenerationId) {
        self.watchdog.borrow_mut().forget_calls(id);
    }

    /// Tells the watchdog which generation to end and which resume, should we end now.
    pub(crate) fn guard(&self, newer: ProcessRef, paused: Vec<ProcessRef>) {
        self.tell(&Duty::End { newer, paused });
    }

    /// For what tells it from a task.
    pub(crate) fn watchdog(&self) -> Rc<RefCell<Watchdog>> {
        Rc::clone(&self.watchdog)
    }
}

/// How the calls of a generation are answered without a supervisor.
fn how(cx: &Context) -> Unattended {
    match cx.settings.kind.program() {
        Some(_) => Unattended::Fail,
        None => Unattended::GoOn,
    }
}
