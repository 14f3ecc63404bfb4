//! Upgrades of this process in place: the requested one, and the number done.
//! [`crate::control::upgrade`] performs them.

use bindonce_core::generation::GenerationId;
use bindonce_daemon::reexec::Installed;
use tokio::sync::oneshot;

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
    /// The clients that wait for the upgrade; some may have gone away.
    callers: Vec<oneshot::Sender<Answer>>,
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
    pub(crate) fn new(count: u64) -> Self {
        Self { callers: Vec::new(), begun: false, ready: None, resuming: None, count }
    }

    /// Requests an upgrade for when nothing else is in progress. Answered only if it fails.
    pub(crate) fn want(&mut self, reply: oneshot::Sender<Answer>) {
        self.callers.push(reply);
    }

    /// Whether an upgrade is requested.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.callers.is_empty()
    }

    /// Whether an upgrade is requested and not yet begun; marks it as begun.
    pub(crate) fn begin(&mut self) -> bool {
        self.is_wanted() && !std::mem::replace(&mut self.begun, true)
    }

    /// Lets the upgrade begin again.
    pub(crate) fn put_off(&mut self) {
        self.begun = false;
    }

    /// Takes the request back, with the answer for every client that waits. A proof that has begun
    /// goes on for nothing.
    pub(crate) fn refuse(&mut self, answer: &Answer) {
        for caller in self.callers.drain(..) {
            // The client may have gone away.
            let _ = caller.send(answer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use bindonce_daemon::reexec;

    use super::*;

    #[test]
    fn all_that_wait_for_one_upgrade_have_its_answer() {
        let mut upgrade = Upgrade::new(0);
        assert!(!upgrade.begin());
        let mut asked = [(); 2].map(|()| {
            let (reply, answer) = oneshot::channel();
            upgrade.want(reply);
            answer
        });
        assert!(upgrade.begin() && !upgrade.begin());
        for answer in &mut asked {
            assert!(answer.try_recv().is_err(), "the upgrade follows");
        }
        let failed = reexec::failed("broken");
        upgrade.refuse(&Err(failed.clone()));
        for answer in &mut asked {
            assert_eq!(answer.try_recv().expect("an answer"), Err(failed.clone()));
        }
        upgrade.put_off();
        assert!(!upgrade.begin(), "nobody wants it any more");
    }
}
