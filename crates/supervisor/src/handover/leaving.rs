//! Listeners that leave the configuration while the new generation has one that covers them, as `127.0.0.1:80` goes and `*:80`
//! stays or comes.
//!
//! Who connects to such an address once the older generations are paused would wait in a queue from which nobody accepts
//! any more, and be reset when the listener is closed. So it is [hidden](bindonce_sys::hidden) before the pause: new connections go to the listener that covers it, and
//! the older generations accept what had come before. It is found again when the new generation does not take over, and
//! by whoever claims it next: so it does no harm if this process dies at whatever moment.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::generation::GenerationId;
use bindonce_sys::hidden::Hiding;
use bindonce_sys::watch::Ticks;

use crate::generations::generation::Generation;
use crate::generations::listeners::HeldListener;

/// How long older generations may take to accept what waits in these listeners. They accept from the others meanwhile.
const DRAINED: Duration = Duration::from_millis(50);
/// Between two looks at the queues.
const LOOK: Duration = Duration::from_millis(1);
/// So often in a row there must be nothing: what the kernel is just about to put there comes between two.
const EMPTY: u32 = 2;

/// The listeners that are hidden for one handover, until the broker has released them.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) newer: GenerationId,
    listeners: Vec<Rc<HeldListener>>,
}

impl Leaving {
    /// Hides what older generations have, the newer one covers, and nobody will have then: of those that exist because of this
    /// service (`ours`). None if there is nothing of this kind, or it is not permitted.
    pub(crate) fn hide(
        newer: &Generation,
        older: &[&Generation],
        ours: &BTreeSet<String>,
    ) -> Option<Self> {
        let kept: BTreeSet<_> = newer.listeners.iter().map(|held| &held.label).collect();
        let keys: Vec<_> = newer.listeners.iter().map(|held| held.listener.key()).collect();
        let leaves = |held: &&Rc<HeldListener>| {
            let key = held.listener.key();
            ours.contains(&held.label)
                && !kept.contains(&held.label)
                && keys.iter().any(|kept| kept.overlaps(&key))
        };
        let mut listeners: Vec<_> =
            older.iter().flat_map(|one| &one.listeners).filter(leaves).cloned().collect();
        listeners.sort_by_key(|held| held.inode);
        listeners.dedup_by_key(|held| held.inode);
        if listeners.is_empty() {
            return None;
        }
        let hiding = Hiding::here();
        listeners.retain(|held| hiding.as_ref().is_some_and(|it| held.hide(it)));
        (!listeners.is_empty()).then_some(Self { newer: newer.id, listeners })
    }

    /// What waits until the older generations have accepted all that had come before, or do not in time.
    pub(crate) fn drained(&self) -> impl Future<Output = ()> + use<> {
        let listeners = self.listeners.clone();
        async move {
            let until = Instant::now() + DRAINED;
            // Without a timer nothing is waited for.
            let Ok(mut ticks) = Ticks::every(LOOK) else { return };
            let mut empty = 0;
            while empty < EMPTY && Instant::now() < until && ticks.tick().await.is_ok() {
                let waits = listeners.iter().any(|held| held.queue() > 0);
                empty = if waits { 0 } else { empty + 1 };
            }
        }
    }

    /// Whether this is one of them. It shows nothing of who accepts: nobody comes to it.
    pub(crate) fn has(&self, listener: &HeldListener) -> bool {
        self.listeners.iter().any(|held| held.inode == listener.inode)
    }

    /// The new generation does not take over.
    pub(crate) fn show(self) {
        self.listeners.iter().for_each(|held| show(held));
    }

    /// The broker has released those of `asked` that it has not `kept` because others have them.
    pub(crate) fn released(&mut self, asked: &[String], kept: &BTreeSet<String>) {
        self.listeners.retain(|held| {
            if kept.contains(&held.label) {
                show(held);
            }
            !asked.contains(&held.label)
        });
    }
}

fn show(held: &HeldListener) {
    if !held.show() {
        let listener = &held.label;
        tracing::error!(listener, "no client reaches it: it is hidden, and CAP_NET_RAW is gone");
    }
}
