//! Listeners that leave the configuration while the new generation has a listener that covers them,
//! as when `127.0.0.1:80` goes and `*:80` stays or arrives.
//!
//! After the pause, a client of such an address would wait in a queue from which no process
//! accepts, and be reset when the listener closes. So the listener is
//! [hidden](bindonce_sys::hidden) before the pause: new connections go to the covering listener,
//! and the older generations accept the earlier ones. The listener is shown again if the new
//! generation does not take over, and by the next claim of it. So hiding does no harm if this
//! process dies at any moment.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::generation::GenerationId;
use bindonce_sys::hidden::Hiding;
use bindonce_sys::watch::Ticks;

use crate::generations::generation::Generation;
use crate::generations::listeners::HeldListener;

/// How long older generations may take to accept the connections waiting in these listeners. Their
/// other listeners accept meanwhile.
const DRAINED: Duration = Duration::from_millis(50);
/// Between two looks at the queues.
const LOOK: Duration = Duration::from_millis(1);
/// The queues must be empty at this many looks in a row: a connection that the kernel is just about
/// to queue arrives between two looks.
const EMPTY: u32 = 2;

/// Listeners hidden for one handover, until the broker has released them.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) newer: GenerationId,
    listeners: Vec<Rc<HeldListener>>,
}

impl Leaving {
    /// Hides listeners that older generations have, that the newer one covers, and that no
    /// generation will have afterwards. Only listeners that exist because of this service (`ours`)
    /// are hidden. None if there is no such listener, or hiding is not permitted.
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

    /// A future that ends when the older generations have accepted all earlier connections, or the
    /// time for that is over.
    pub(crate) fn drained(&self) -> impl Future<Output = ()> + use<> {
        let listeners = self.listeners.clone();
        async move {
            let until = Instant::now() + DRAINED;
            // Without a timer there is no wait.
            let Ok(mut ticks) = Ticks::every(LOOK) else { return };
            let mut empty = 0;
            while empty < EMPTY && Instant::now() < until && ticks.tick().await.is_ok() {
                let waits = listeners.iter().any(|held| held.queue() > 0);
                empty = if waits { 0 } else { empty + 1 };
            }
        }
    }

    /// Whether this listener is hidden. A hidden listener shows nothing about who accepts, since no
    /// client reaches it.
    pub(crate) fn has(&self, listener: &HeldListener) -> bool {
        self.listeners.iter().any(|held| held.inode == listener.inode)
    }

    /// Shows the listeners again, because the new generation does not take over.
    pub(crate) fn show(self) {
        self.listeners.iter().for_each(|held| show(held));
    }

    /// The broker has released the listeners of `asked` that are not in `kept` because others have
    /// them.
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
        tracing::error!(
            listener,
            hint = "reload with a configuration that has it: a broker with CAP_NET_RAW \
                    shows it when it is claimed",
            "listener {listener} stays hidden from new connections: showing it needs CAP_NET_RAW, and \
             its interface where it has one"
        );
    }
}
