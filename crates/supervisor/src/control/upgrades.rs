//! Upgrades of this process in place: the requested one, and the number done.
//! [`crate::control::upgrade`] performs them.

use std::os::fd::OwnedFd;

use bindonce_core::generation::GenerationId;
use bindonce_daemon::reexec::{self, Installed};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::control::Answer;
use crate::disk::saved::Saved;

/// A binary that has proved that it reads this state.
#[derive(Debug)]
pub(crate) struct ProvedBinary {
    pub(crate) binary: Installed,
    pub(crate) state: Saved,
}

/// The requested upgrade, and the number of upgrades done.
pub(crate) struct Upgrade {
    /// The listening control socket, for the next image of this process.
    pub(crate) control: OwnedFd,
    /// The task that accepts from it.
    accepting: AbortHandle,
    /// The client that waits for an upgrade.
    wanted: Option<oneshot::Sender<Answer>>,
    /// The new binary proves itself, or is about to be executed.
    begun: bool,
    /// The binary that is to be executed as soon as no message waits for the loop.
    pub(crate) ready: Option<Box<ProvedBinary>>,
    /// The generation that had yet to confirm that it accepts again when its tasks were ended.
    pub(crate) resuming: Option<GenerationId>,
    /// Number of upgrades in place so far.
    pub(crate) count: u64,
}

impl Upgrade {
    pub(crate) fn new(control: OwnedFd, accepting: AbortHandle, count: u64) -> Self {
        let (wanted, begun, ready, resuming) = (None, false, None, None);
        Self { control, accepting, wanted, begun, ready, resuming, count }
    }

    /// Replaces the control socket; existing connections stay.
    pub(crate) fn listen_anew(&mut self, control: OwnedFd, accepting: AbortHandle) {
        self.control = control;
        std::mem::replace(&mut self.accepting, accepting).abort();
    }

    /// Requests an upgrade for when nothing else is in progress. Answered only if it fails.
    pub(crate) fn want(&mut self, reply: oneshot::Sender<Answer>) {
        if let Some(earlier) = self.wanted.replace(reply) {
            let _ = earlier.send(Err(reexec::failed("another upgrade was asked for meanwhile")));
        }
    }

    /// Whether an upgrade is requested and not yet begun; marks it as begun.
    pub(crate) fn begin(&mut self) -> bool {
        self.wanted.is_some() && !std::mem::replace(&mut self.begun, true)
    }

    /// Lets the upgrade begin again.
    pub(crate) fn put_off(&mut self) {
        self.begun = false;
    }

    /// Ends an upgrade that has failed. Returns the client to answer.
    pub(crate) fn end(&mut self) -> Option<oneshot::Sender<Answer>> {
        self.begun = false;
        self.wanted.take()
    }
}
