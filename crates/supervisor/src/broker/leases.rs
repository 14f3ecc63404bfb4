//! The listeners that the broker holds because of this service, and how they are released.
//!
//! A listener that no generation needs any more is released as soon as the generations that had it
//! have closed it, not only when the last of them is gone. Until the broker closes it, clients wait
//! in a queue from which no process accepts; plain haproxy would refuse them.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bindonce::ErrorCode;
use bindonce::aio::Client;
use bindonce_core::event;
use bindonce_core::generation::GenerationId;
use bindonce_daemon::{Happening, Journal};
use tokio::sync::{mpsc, oneshot};

use crate::broker;
use crate::broker::lease::{Broker, Keeper, LeaseUpdate};
use crate::context::Context;
use crate::generations::generation::Generation;
use crate::generations::listeners::HeldListener;
use crate::message::Message;
use crate::settings::Settings;

/// How long the broker may take to learn that leases have ended.
const GIVEN_BACK: Duration = Duration::from_secs(2);

pub(crate) struct Leases {
    pub(crate) broker: Rc<Broker>,
    /// Names of the listeners that exist because of this service.
    pub(crate) ours: BTreeSet<String>,
    /// Listeners of which a draining haproxy master keeps a copy. They are shut down when the
    /// broker has released them, or clients would wait there until that master is gone.
    pub(crate) open: Vec<Rc<HeldListener>>,
    /// Names of the listeners that the broker is about to release.
    leaving: BTreeSet<String>,
    /// Callers that wait until these are released, or until it is known that they stay.
    awaited: Vec<(BTreeSet<String>, oneshot::Sender<()>)>,
    /// The newest generation that has served and is gone, with the names of its listeners.
    last: (GenerationId, BTreeSet<String>),
}

impl Leases {
    pub(crate) fn new(settings: &Settings, ours: BTreeSet<String>, journal: Rc<Journal>) -> Self {
        let last = (GenerationId(0), BTreeSet::new());
        let broker = Rc::new(Broker::new(settings, journal));
        let (open, leaving, awaited) = (Vec::new(), BTreeSet::new(), Vec::new());
        Self { broker, ours, open, leaving, awaited, last }
    }

    /// Names of the listeners that stay bound when the service ends, including those bound before
    /// it.
    pub(crate) fn staying(&self) -> BTreeSet<String> {
        self.ours.union(&self.last.1).cloned().collect()
    }

    /// Starts to keep the leases of one generation, until the returned sender is dropped.
    pub(crate) fn keep(
        &self,
        id: GenerationId,
        pid: i32,
        listeners: Vec<Rc<HeldListener>>,
        lease: Option<Client>,
    ) -> mpsc::UnboundedSender<LeaseUpdate> {
        let (news, updates) = mpsc::unbounded_channel();
        let keeper = Keeper { broker: Rc::clone(&self.broker), id, pid, listeners };
        crate::tasks::spawn(keeper.keep(lease, updates));
        news
    }

    /// Notes listeners that exist because of this service: its claims made the broker bind them, or
    /// they were not released.
    pub(crate) fn add(&mut self, labels: impl IntoIterator<Item = String>) {
        self.ours.extend(labels);
    }

    /// Called when a generation is gone: ends its leases. `used` are the listeners of the others.
    pub(crate) fn gone(&mut self, cx: &Context, gone: &Generation, used: &BTreeSet<String>) {
        if gone.lease.served {
            if gone.id >= self.last.0 {
                let names = gone.listeners.iter().map(|held| held.label.clone());
                self.last = (gone.id, names.collect());
            }
            return release_after(cx, vec![gone.leave()]);
        }
        // Listeners bound for it were tentative, and ended with its connection to the broker.
        let created = gone.listeners.iter().filter(|held| held.created);
        for label in created.map(|held| &held.label).filter(|label| !used.contains(*label)) {
            self.ours.remove(label);
        }
    }

    /// Takes the listeners of this service that no generation uses and that must be released, and
    /// all listeners in [`Self::open`].
    pub(crate) fn take_unused(
        &mut self,
        used: &BTreeSet<String>,
    ) -> (Vec<String>, Vec<Rc<HeldListener>>) {
        // The bare address would also name the listener there that is for IPv6 alone. The broker
        // never has both.
        let replaced = |label: &String| used.contains(&format!("{label},v6only"));
        let unused = self.ours.difference(used).filter(|label| !replaced(label));
        let unused: Vec<_> = unused.cloned().collect();
        self.ours.retain(|label| used.contains(label));
        self.leaving.extend(unused.iter().cloned());
        (unused, std::mem::take(&mut self.open))
    }

    /// The receiver closes when no listener of this service but the `used` ones is left. None if
    /// that is so already.
    pub(crate) fn await_release(
        &mut self,
        used: &BTreeSet<String>,
    ) -> Option<oneshot::Receiver<()>> {
        let all = self.ours.union(&self.leaving);
        let left: BTreeSet<_> = all.filter(|label| !used.contains(*label)).cloned().collect();
        (!left.is_empty()).then(|| {
            let (done, released) = oneshot::channel();
            self.awaited.push((left, done));
            released
        })
    }

    /// Notes that the broker has released the `asked` listeners except those `kept`.
    pub(crate) fn released(&mut self, asked: &[String], kept: BTreeSet<String>) {
        self.add(kept);
        for label in asked {
            self.leaving.remove(label);
            for (left, _) in &mut self.awaited {
                left.remove(label);
            }
        }
        // Dropping the sender wakes the caller that waits.
        self.awaited.retain(|(left, done)| !left.is_empty() && !done.is_closed());
    }
}

/// Has the loop release unused listeners, once the broker knows that these leases have ended.
pub(crate) fn release_after(cx: &Context, given_back: Vec<oneshot::Receiver<()>>) {
    let cx = cx.clone();
    crate::tasks::spawn(async move {
        for lease in given_back {
            let _ = bindonce_sys::patience::timeout(GIVEN_BACK, lease).await;
        }
        cx.send(Message::GivenBack);
    });
}

/// Releases these listeners. Those in use stay, and the loop learns which. A released listener in
/// `open` is shut down, so it refuses clients.
pub(crate) fn release(cx: &Context, unused: Vec<String>, mut open: Vec<Rc<HeldListener>>) {
    let cx = cx.clone();
    open.retain(|held| unused.contains(&held.label));
    crate::tasks::spawn(async move {
        let kept = try_release(&cx.settings.broker.socket, &cx.journal, unused.clone()).await;
        open.iter().filter(|held| !kept.contains(&held.label)).for_each(|held| held.shut_down());
        cx.send(Message::Released { asked: unused, kept });
    });
}

/// Gives the names of the listeners that are still used, or could not be released.
async fn try_release(socket: &Path, journal: &Journal, unused: Vec<String>) -> BTreeSet<String> {
    let mut client = match broker::connect(socket).await {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(listeners = unused.join(" "), "not released: {error}");
            return unused.into_iter().collect();
        }
    };
    let mut released = Vec::new();
    let mut kept = BTreeSet::new();
    // The broker releases all or none. If one is in use, release the others one by one.
    match client.release(&unused).await {
        Ok(all) => released = all,
        Err(_) => {
            for label in unused {
                let error = match client.release(&[&label]).await {
                    Ok(one) => {
                        released.extend(one);
                        continue;
                    }
                    Err(error) => error,
                };
                let gone =
                    error.refusal().is_some_and(|refusal| refusal.code == ErrorCode::NOT_FOUND);
                if !gone {
                    tracing::warn!(listener = label, "not released: {error}");
                    kept.insert(label);
                }
            }
        }
    }
    if !released.is_empty() {
        let listeners = released.join(" ");
        tracing::info!(listeners, "released: no longer in the configuration");
        let text = format!("no longer in the configuration: {listeners}");
        journal.record(Happening::new(event::Kind::ListenerReleased, text));
    }
    kept
}
