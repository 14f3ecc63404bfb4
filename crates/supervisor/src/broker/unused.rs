//! Listeners that no generation needs any more: given back as soon as whoever had them has closed them,
//! not only when the last of those generations is gone. Until the broker closes them clients would wait
//! in a queue that nobody takes from, where plain haproxy refuses them.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bindonce::ErrorCode;
use bindonce_core::event;
use bindonce_core::generation::{GenerationId, State};
use bindonce_daemon::{Happening, Journal};
use tokio::sync::oneshot;

use crate::broker;
use crate::generations::generation::Generation;
use crate::generations::listeners::Known;
use crate::message::Message;
use crate::supervisor::Supervisor;

/// How long the broker may take to know that leases have ended.
const GIVEN_BACK: Duration = Duration::from_secs(2);

impl Supervisor {
    /// A generation has closed its listeners, and nothing of them is left in its epoll sets.
    pub(crate) fn closed(&mut self, id: GenerationId) {
        if let Some(generation) = self.generations.get_mut(&id) {
            generation.closed = true;
            self.give_back();
        }
    }

    /// Lets go of what generations had and have closed, where none needs it that accepts or is about
    /// to; then has it released.
    pub(crate) fn give_back(&mut self) {
        if self.timeline.serving().is_none() {
            // Clients wait in the queues for whatever serves next.
            return;
        }
        let states: BTreeSet<_> = self.timeline.generations().collect();
        let needs = |(id, generation): (&GenerationId, &Generation)| {
            let drains = states.contains(&(*id, State::Draining));
            (!(drains && generation.closed)).then(|| generation.inodes())
        };
        let needed: BTreeSet<u64> = self.generations.iter().filter_map(needs).flatten().collect();
        let drain = |id: &GenerationId| states.contains(&(*id, State::Draining));
        let closed = self.generations.iter_mut().filter(|(id, g)| g.closed && drain(id));
        let told: Vec<_> =
            closed.filter_map(|(_, generation)| generation.keep_only(&needed)).collect();
        if !told.is_empty() {
            // What drains and is found by the next supervisor must not claim them again.
            self.save();
        }
        self.release_after(told);
    }

    /// A generation is gone, and its leases are about to end.
    pub(crate) fn leases_end(&mut self, gone: &mut Generation) {
        if gone.served {
            let told = gone.leave();
            self.release_after(vec![told]);
        } else {
            // What was bound for it ended with its connection to the broker.
            self.forget(gone);
        }
    }

    /// Releases what is not used, once the broker knows of these leases' end.
    fn release_after(&self, told: Vec<oneshot::Receiver<()>>) {
        let sender = self.sender.clone();
        crate::tasks::spawn(async move {
            for told in told {
                let _ = tokio::time::timeout(GIVEN_BACK, told).await;
            }
            let _ = sender.send(Message::GivenBack);
        });
    }

    /// Listeners of a generation that never served were tentative.
    fn forget(&mut self, gone: &Generation) {
        let used = self.used();
        let created = gone.listeners.iter().filter(|held| held.created);
        let unused: Vec<_> =
            created.map(|held| held.label.clone()).filter(|label| !used.contains(label)).collect();
        self.leases.ours.retain(|label| !unused.contains(label));
    }

    /// The descriptors of all listeners that generations have, by inode.
    pub(crate) fn descriptors(&self) -> Known {
        let all = self.generations.values().flat_map(|generation| &generation.listeners);
        all.map(|held| (held.inode, Arc::clone(&held.fd))).collect()
    }

    /// The names of the listeners that some generation has.
    fn used(&self) -> BTreeSet<String> {
        let all = self.generations.values().flat_map(|generation| &generation.listeners);
        all.map(|held| held.label.clone()).collect()
    }

    /// Releases the listeners that exist because of this service and that no generation has.
    pub(crate) fn release_unused(&mut self) {
        if self.timeline.serving().is_none() || self.starts.in_progress() {
            // What is being started may claim them in this moment; there is a next time.
            return;
        }
        let used = self.used();
        let unused: Vec<_> = self.leases.ours.difference(&used).cloned().collect();
        if unused.is_empty() {
            return;
        }
        self.leases.ours.retain(|label| used.contains(label));
        self.save();
        let (socket, journal) = (self.settings.socket.clone(), Rc::clone(&self.report.journal));
        let sender = self.sender.clone();
        crate::tasks::spawn(async move {
            let kept = release(&socket, &journal, unused).await;
            let _ = sender.send(Message::NotReleased(kept));
        });
    }
}

/// Releases them; gives those that somebody uses.
async fn release(socket: &Path, journal: &Journal, unused: Vec<String>) -> BTreeSet<String> {
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
