//! What waits for the first generation to serve: haproxys without bindonce that it replaces, and
//! the process that has put this supervisor into the background.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bindonce_sys::worker;
use tokio::task::JoinHandle;

use crate::adopt::{self, ServedNow, Taken};
use crate::context::Context;
use crate::generations::generation::Generation;
use crate::report::starter;

/// Additional time for the look at all processes when a haproxy is ended.
const LOOK: Duration = Duration::from_secs(5);

/// What waits for the first generation to serve.
pub(crate) struct First {
    /// The haproxys without bindonce that it replaces.
    pub(crate) replaced: Taken,
    /// The descriptor from which the waiting process reads.
    pub(crate) starter: Option<Rc<OwnedFd>>,
}

impl First {
    /// Called when it serves: ends the haproxys that it replaces and then informs the waiting
    /// process, in a task of its own. For a service in the foreground, gives `written` back for the
    /// caller to await.
    pub(crate) fn serves(
        &mut self,
        cx: &Context,
        generation: Option<&Generation>,
        written: Option<JoinHandle<bool>>,
    ) -> Option<JoinHandle<bool>> {
        let ended = self.end_replaced(cx, generation);
        let starter = self.starter.take();
        let (written, left) = if starter.is_some() { (written, None) } else { (None, written) };
        crate::tasks::spawn(async move {
            let alone = ended.await;
            if let Some(starter) = starter {
                starter::tell(starter, written, alone).await;
            }
        });
        left
    }

    /// Informs the waiting process that a start has failed while a generation of an earlier
    /// supervisor still serves.
    pub(crate) fn serves_on(&mut self) {
        if let Some(starter) = self.starter.take() {
            crate::tasks::spawn(starter::tell(starter, None, false));
        }
    }

    /// Ends the haproxys that this generation replaces, if any. True when none of them accepts any
    /// more.
    fn end_replaced(
        &mut self,
        cx: &Context,
        generation: Option<&Generation>,
    ) -> impl Future<Output = bool> + use<> {
        let pids = std::mem::take(&mut self.replaced.pids);
        let generation = generation.filter(|_| !pids.is_empty());
        let listeners = generation.into_iter().flat_map(|generation| &generation.listeners);
        let served: ServedNow =
            listeners.map(|held| (held.bound.clone(), held.inode, Arc::clone(&held.fd))).collect();
        let limit = cx.settings.timing.retire_timeout;
        let at_once = cx.settings.first.replaced.at_once;
        async move {
            let mut alone = true;
            for pid in pids {
                let served = served.clone();
                let ended = worker::within(2 * limit + LOOK, move || {
                    adopt::end(pid, &served, at_once, limit)
                });
                let ended = ended.await.map_err(|error| error.to_string());
                match ended.and_then(|ended| ended.map_err(|error| error.to_string())) {
                    Ok(_) => {
                        tracing::info!(pid, "the haproxy that was replaced has stopped accepting");
                    }
                    Err(error) => {
                        alone = false;
                        tracing::error!(
                            pid,
                            "the haproxy that is replaced may still accept: {error}"
                        );
                    }
                }
            }
            alone
        }
    }
}
