//! A handover: the steps from a ready generation to the proof that it alone accepts.
//!
//! At no moment are two configurations left accepting, whichever process dies. [`steps`] has the
//! order: [`readiness`]; the comparison with the serving generation's listeners ([`promise`]) and
//! with the claimed ones ([`compare`], [`listening`]); the [`proof`] that no older generation
//! accepts; listeners [`leaving`] the configuration; QUIC connections that are still [`opening`];
//! and the removal of [`ghosts`] from epoll sets. The [`watchdog`] is the process that finishes a
//! handover if the supervisor dies in it: its [`duty`]. It passes its [`descriptor_store`] to the
//! next supervisor.

pub(crate) mod compare;
pub(crate) mod descriptor_store;
pub(crate) mod duty;
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
use std::os::fd::{AsFd as _, OwnedFd};
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
use crate::handover::duty::{Duty, ProcessRef};
use crate::handover::ghosts::Removal;
use crate::handover::leaving::Leaving;
use crate::handover::proof::{Older, Proof};
use crate::handover::watchdog::Watchdog;
use crate::settings::Ghosts;

/// How much longer than intended a pause may last before the watchdog ends it.
const GRACE: Duration = Duration::from_secs(10);

/// The state of a handover, apart from the generations themselves.
pub(crate) struct Handover {
    /// The generation that takes over if the proof succeeds, and the task that watches the queues.
    proof: Option<(GenerationId, AbortHandle)>,
    watchdog: Rc<RefCell<Watchdog>>,
    /// The listeners hidden for the latest handover, until it is settled.
    leaving: Option<Leaving>,
    pub(crate) ghosts: Removal,
}

impl Handover {
    /// The next supervisor asks at the socket `kept` for the descriptors that the watchdog keeps.
    pub(crate) fn new(ghosts: Ghosts, kept: &Path) -> Result<Self, Error> {
        let watchdog = Rc::new(RefCell::new(Watchdog::start(open_kept(kept))?));
        Ok(Self { proof: None, watchdog, leaving: None, ghosts: Removal::new(ghosts) })
    }

    /// Binds that socket again where its path was removed.
    pub(crate) fn bind_kept_again(&self, kept: &Path) {
        if !kept.exists()
            && let Some(socket) = open_kept(kept)
        {
            self.watchdog.borrow_mut().keep_at(socket);
        }
    }

    /// Begins to watch the accept queues of the older generations' listeners.
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
        // An older generation may be gone by now, so the new generation's share of the same
        // listeners counts too.
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
                Err(error) => tracing::error!(
                    generation = newer.0,
                    %error,
                    "cannot prove from the accept queues that no older process accepts; older generations that have \
                     not confirmed their stop within --retire-timeout are ended"
                ),
            }
        });
        self.proof = Some((newer, task.abort_handle()));
    }

    /// Ends the watch, whatever its result.
    pub(crate) fn end_watch(&mut self) {
        if let Some((_, task)) = self.proof.take() {
            task.abort();
        }
    }

    /// The generation for which the queues are being watched.
    pub(crate) fn newer(&self) -> Option<GenerationId> {
        self.proof.as_ref().map(|(newer, _)| *newer)
    }

    /// The watchdog has nothing to do if this process dies now: no handover is in progress.
    pub(crate) fn is_over(&self) {
        self.watchdog.borrow_mut().tell(Duty::None);
    }

    /// The same, if the last duty was about this new generation, which is gone. The next handover
    /// may have begun, and gives the watchdog another duty only when there is a process.
    pub(crate) fn is_over_for(&self, newer: &Generation) {
        self.watchdog.borrow_mut().forget(newer.named);
    }

    /// Tells the watchdog to finish this handover if this process dies or the older generations
    /// stay paused for too long.
    pub(crate) fn finish_without_us(
        &self,
        cx: &Context,
        newer: &Generation,
        older: &[&Generation],
    ) {
        let listeners: BTreeSet<_> = older.iter().flat_map(|older| older.inodes()).collect();
        self.watchdog.borrow_mut().tell(Duty::Finish {
            within: cx.settings.timing.retire_timeout + GRACE,
            retire: cx.settings.kind.retire() as i32,
            resume: cx.settings.kind.haproxy().is_some(),
            newer: newer.named,
            older: older.iter().map(|older| older.signalled()).collect(),
            listeners: listeners.into_iter().collect(),
        });
        older.iter().for_each(|older| self.keep(older));
    }

    /// Hides listeners that leave the configuration and that a remaining listener covers. The
    /// returned future ends when the older generations have accepted the connections waiting there.
    pub(crate) fn hide_leaving(
        &mut self,
        newer: &Generation,
        older: &[&Generation],
        ours: &BTreeSet<String>,
    ) -> Option<impl Future<Output = ()> + use<>> {
        self.leaving = Leaving::hide(newer, older, ours);
        self.leaving.as_ref().map(Leaving::drained)
    }

    /// Shows the hidden listeners again, because this generation does not take over.
    pub(crate) fn show_leaving(&mut self, newer: Option<GenerationId>) {
        let of_newer = |leaving: &mut Leaving| newer.is_none_or(|newer| leaving.newer == newer);
        self.leaving.take_if(of_newer).into_iter().for_each(Leaving::show);
    }

    /// The broker has released the listeners of `asked` that are not in `kept`.
    pub(crate) fn released(&mut self, asked: &[String], kept: &BTreeSet<String>) {
        self.leaving.iter_mut().for_each(|leaving| leaving.released(asked, kept));
    }

    /// Gives the watchdog the admin connections of a generation that accepts no new ones, for the
    /// next supervisor.
    pub(crate) fn keep(&self, generation: &Generation) {
        for (name, connection) in generation.cli.connections() {
            self.watchdog.borrow().keep(generation.id, &name, connection.as_fd());
        }
    }

    /// Gives the watchdog a copy of the descriptor for the generation's intercepted calls, if it
    /// has one.
    pub(crate) fn keep_calls(&self, cx: &Context, generation: &Generation) {
        let Some(calls) = &generation.own.intercept else { return };
        self.watchdog.borrow_mut().keep_calls(generation.id, how(cx), calls);
    }

    /// Gives the watchdog the descriptors that an earlier supervisor's watchdog kept. That watchdog
    /// is no longer needed then.
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

    /// The calls of a generation can no longer be answered: they fail from now on.
    pub(crate) fn forget_calls(&self, id: GenerationId) {
        self.watchdog.borrow_mut().forget_calls(id);
    }

    /// Tells the watchdog which generation to end, and which to resume, if this process dies now.
    /// One that is about to take over does so all the same, unless it is refused.
    pub(crate) fn guard(&self, newer: &Generation, paused: Vec<ProcessRef>) {
        let mut watchdog = self.watchdog.borrow_mut();
        if newer.readiness.refused.is_some() || !watchdog.duty().lets_in(newer.named) {
            watchdog.tell(Duty::End { newer: newer.named, paused });
        }
    }

    /// The watchdog, for tasks that give it duties.
    pub(crate) fn watchdog(&self) -> Rc<RefCell<Watchdog>> {
        Rc::clone(&self.watchdog)
    }
}

/// The socket at which the next supervisor asks, if it can be bound.
fn open_kept(path: &Path) -> Option<OwnedFd> {
    let opened = descriptor_store::open(path);
    let text = "if this supervisor is killed, the next one will not reach the admin sockets of draining generations";
    opened.inspect_err(|error| tracing::warn!(%error, "{text}")).ok()
}

/// How the watchdog answers a generation's calls without a supervisor.
fn how(cx: &Context) -> Unattended {
    match cx.settings.kind.program() {
        Some(_) => Unattended::Fail,
        None => Unattended::GoOn,
    }
}
