//! Upgrades of this process in place: the one that is wanted, and those that were done. How one is done is in
//! [`crate::control::upgrade`].

use std::os::fd::OwnedFd;

use bindonce_daemon::reexec;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::control::Answer;

/// Upgrades of this process: the one that is wanted, and those that were done.
pub(crate) struct Upgrade {
    /// The listening control socket, for the next image of this process.
    pub(crate) control: OwnedFd,
    /// What accepts from it.
    accepting: AbortHandle,
    /// Who wants one.
    wanted: Option<oneshot::Sender<Answer>>,
    /// The new binary is proving itself.
    proving: bool,
    /// How often this process has become another binary.
    pub(crate) count: u64,
}

impl Upgrade {
    pub(crate) fn new(control: OwnedFd, accepting: AbortHandle, count: u64) -> Self {
        Self { control, accepting, wanted: None, proving: false, count }
    }

    /// There is another control socket; who is connected stays so.
    pub(crate) fn listen_anew(&mut self, control: OwnedFd, accepting: AbortHandle) {
        self.control = control;
        std::mem::replace(&mut self.accepting, accepting).abort();
    }

    /// Somebody wants one, when nothing else is in progress; answered only if it fails.
    pub(crate) fn want(&mut self, reply: oneshot::Sender<Answer>) {
        if let Some(earlier) = self.wanted.replace(reply) {
            let _ = earlier.send(Err(reexec::failed("another upgrade was asked for meanwhile")));
        }
    }

    /// Whether one is wanted and not yet begun; it begins now.
    pub(crate) fn begin(&mut self) -> bool {
        self.wanted.is_some() && !std::mem::replace(&mut self.proving, true)
    }

    /// The proof is over: who is answered if it has failed.
    pub(crate) fn end(&mut self) -> Option<oneshot::Sender<Answer>> {
        self.proving = false;
        self.wanted.take()
    }
}
