//! What a new generation must keep of the promise that exit 0 of `reload` is, before the older one is
//! touched for it: that somebody serves afterwards.

use std::collections::BTreeSet;

use bindonce_core::generation::GenerationId;
use bindonce_sys::signals::Signal as Number;
use bindonce_sys::tree;

use crate::error::Error;
use crate::generations::starts::Kept;
use crate::report::Cause;
use crate::supervisor::Supervisor;
use bindonce_haproxy::config::Rendering;

impl Supervisor {
    /// Ends a generation that is not to take over, for this reason.
    pub(crate) fn refuse(&mut self, id: GenerationId, story: Cause) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        generation.refused = Some(Cause { ours: true, ..story });
        // Held or not: it has served nobody, and must not.
        tree::signal_all(generation.pid(), Number::SIGKILL);
    }

    /// The listeners that serve now.
    pub(crate) fn served(&self) -> Vec<String> {
        let serving = self.timeline.serving().and_then(|id| self.generations.get(&id));
        let listeners = serving.into_iter().flat_map(|generation| &generation.listeners);
        listeners.map(|held| held.label.clone()).collect()
    }

    /// Compares a generation that is ready with the one that serves. Why it must not take over, if it
    /// must not.
    pub(crate) fn compare_with_served(&mut self, id: GenerationId) -> Result<(), Error> {
        let served = self.served();
        let Some(generation) = self.generations.get(&id) else { return Ok(()) };
        let has: BTreeSet<_> = generation.listeners.iter().map(|held| &held.label).collect();
        let left: Vec<_> = served.iter().filter(|label| !has.contains(label)).cloned().collect();
        if has.is_empty() && self.starts.may_be_empty != Some(id) {
            nobody_would_accept(served)?;
        }
        let none = !left.is_empty() && left.len() == self.served().len();
        if none {
            tracing::warn!(
                generation = id.0,
                listeners = left.join(" "),
                "the configuration names none of the listeners that served: they will be closed"
            );
        }
        self.starts.kept = Kept { left, none };
        Ok(())
    }
}

/// Refuses a configuration on which haproxy would start for its admin socket alone, while others serve.
pub(crate) fn keeps_something(rendering: &Rendering, served: Vec<String>) -> Result<(), Error> {
    match rendering.bindings.is_empty() && rendering.has_stats_socket() {
        true => nobody_would_accept(served),
        false => Ok(()),
    }
}

fn nobody_would_accept(served: Vec<String>) -> Result<(), Error> {
    match served.is_empty() {
        true => Ok(()),
        false => Err(Error::NothingLeft { served }),
    }
}
