//! The handover in progress: the watch of the accept queues, and the process that finishes it if this one
//! dies in it.

pub(crate) mod compare;
pub(crate) mod ghosts;
pub(crate) mod hears;
pub(crate) mod promise;
pub(crate) mod proof;
pub(crate) mod readiness;
pub(crate) mod ready;
pub mod watchdog;

use std::cell::RefCell;
use std::rc::Rc;

use bindonce_core::generation::GenerationId;
use tokio::task::AbortHandle;

use crate::error::Error;
use crate::handover::ghosts::Removal;
use crate::handover::watchdog::{Duty, Watchdog};
use crate::settings::Ghosts;

/// What a handover needs beside the generations themselves.
pub(crate) struct Handover {
    /// The generation that takes over if the proof succeeds, and the task that watches the queues.
    proof: Option<(GenerationId, AbortHandle)>,
    watchdog: Rc<RefCell<Watchdog>>,
    pub(crate) ghosts: Removal,
}

impl Handover {
    pub(crate) fn new(ghosts: Ghosts) -> Result<Self, Error> {
        let watchdog = Rc::new(RefCell::new(Watchdog::start()?));
        Ok(Self { proof: None, watchdog, ghosts: Removal::new(ghosts) })
    }

    /// The accept queues are watched, for a generation that is to take over.
    pub(crate) fn watch(&mut self, newer: GenerationId, task: AbortHandle) {
        self.proof = Some((newer, task));
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

    /// For what tells it from a task.
    pub(crate) fn watchdog(&self) -> Rc<RefCell<Watchdog>> {
        Rc::clone(&self.watchdog)
    }
}
