//! What the service has of the broker: the listeners that exist because of it, and how they go again.
//!
//! A listener that no generation needs any more is released as soon as the generations that had it have closed it, not only
//! when the last of them is gone. Until the broker closes it, clients would wait in a queue from which nobody accepts,
//! where plain haproxy refuses them.

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

/// How long the broker may take to know that leases have ended.
const GIVEN_BACK: Duration = Duration::from_secs(2);

/// What the service has of the broker.
pub(crate) struct Leases {
    pub(crate) broker: Rc<Broker>,
    /// Names of the listeners that exist because of this service.
    pub(crate) ours: BTreeSet<String>,
    /// Listeners of which a draining master of haproxy's own keeps a copy: when the broker has released them they are
    /// shut down, else clients would wait there until that master is gone.
    pub(crate) open: Vec<Rc<HeldListener>>,
    /// Names of the listeners that the broker is about to release.
    leaving: BTreeSet<String>,
    /// Who waits until these are released, or it is known that they stay.
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

    /// Names of the listeners that stay bound when the service ends, also those that were bound before it.
    pub(crate) fn staying(&self) -> BTreeSet<String> {
        self.ours.union(&self.last.1).cloned().collect()
    }

    /// Keeps the leases of one generation for as long as what this gives lives.
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

    /// These listeners exist because of this service: its claims made the broker bind them, or they were not released.
    pub(crate) fn add(&mut self, labels: impl IntoIterator<Item = String>) {
        self.ours.extend(labels);
    }

    /// A generation is gone, and its leases are about to end. `used` are the listeners of the others.
    pub(crate) fn gone(&mut self, cx: &Context, gone: &Generation, used: &BTreeSet<String>) {
        if gone.lease.served {
            if gone.id >= self.last.0 {
                let names = gone.listeners.iter().map(|held| held.label.clone());
                self.last = (gone.id, names.collect());
            }
            return release_after(cx, vec![gone.leave()]);
        }
        // What was bound for it was tentative, and ended with its connection to the broker.
        let created = gone.listeners.iter().filter(|held| held.created);
        for label in created.map(|held| &held.label).filter(|label| !used.contains(*label)) {
            self.ours.remove(label);
        }
    }

    /// Takes the listeners that exist because of this service and that no generation uses: they are to be released. With
    /// those of all that are left open.
    pub(crate) fn take_unused(
        &mut self,
        used: &BTreeSet<String>,
    ) -> (Vec<String>, Vec<Rc<HeldListener>>) {
        // An address alone would stand for the one there that is for IPv6 alone; the broker never has both.
        let replaced = |label: &String| used.contains(&format!("{label},v6only"));
        let unused = self.ours.difference(used).filter(|label| !replaced(label));
        let unused: Vec<_> = unused.cloned().collect();
        self.ours.retain(|label| used.contains(label));
        self.leaving.extend(unused.iter().cloned());
        (unused, std::mem::take(&mut self.open))
    }

    /// What this gives ends when none of the listeners that exist because of this service is left but the `used` ones. None if
    /// that is so.
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

    /// The broker has released those of `asked` that it has not `kept`.
    pub(crate) fn released(&mut self, asked: &[String], kept: BTreeSet<String>) {
        self.add(kept);
        for label in asked {
            self.leaving.remove(label);
            for (left, _) in &mut self.awaited {
                left.remove(label);
            }
        }
        // The end of its channel tells it.
        self.awaited.retain(|(left, done)| !left.is_empty() && !done.is_closed());
    }
}

/// Has the loop release what is not used, once the broker knows that these leases have ended.
pub(crate) fn release_after(cx: &Context, given_back: Vec<oneshot::Receiver<()>>) {
    let cx = cx.clone();
    crate::tasks::spawn(async move {
        for lease in given_back {
            let _ = bindonce_sys::patience::timeout(GIVEN_BACK, lease).await;
        }
        cx.send(Message::GivenBack);
    });
}

/// Releases these listeners; those that are used stay, and the loop learns which. What is `open` elsewhere refuses clients
/// from then on.
pub(crate) fn release(cx: &Context, unused: Vec<String>, mut open: Vec<Rc<HeldListener>>) {
    let cx = cx.clone();
    open.retain(|held| unused.contains(&held.label));
    crate::tasks::spawn(async move {
        let kept = try_release(&cx.settings.broker.socket, &cx.journal, unused.clone()).await;
        open.iter().filter(|held| !kept.contains(&held.label)).for_each(|held| held.shut_down());
        cx.send(Message::Released { asked: unused, kept });
    });
}

/// Gives the names of those that are used.
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
    // All or none: where one stands in the way the others must not suffer.
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
        tracing::info!(listeners, "released: the configuration names them no more");
        let text = format!("the configuration names them no more: {listeners}");
        journal.record(Happening::new(event::Kind::ListenerReleased, text));
    }
    kept
}
