//! What the loop does about intercepted calls: a bind(2) becomes a claim of the program's
//! generation, and a listen(2) shows its readiness.
//!
//! A program is ready when it is about to listen on the last listener that the older generation got
//! for its bind(2) or, if the last is not known, when it has listened on no more for [`SETTLES`].
//! In the first case the call has not returned yet, so the SIGSTOP arrives before the program can
//! accept. The calling thread gets its own signal: another thread may take that of the process, and
//! be scheduled later.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bindonce_core::event;
use bindonce_core::generation::{GenerationId, State};
use bindonce_core::intercept::{Failure, Own};
use bindonce_sys::intercept::Intercept;
use tokio::sync::oneshot;

use super::calls_seen::CallsSeen;
use super::requests::{Given, Listens, Want};
use crate::broker::lease::LeaseUpdate;
use crate::generations::generation::Generation;
use crate::generations::listeners::HeldListener;
use crate::generations::watching;
use crate::message::Message;
use crate::program::Readiness;
use crate::supervisor::Supervisor;

/// How long a program may take from one listen(2) to the next, if the last one is not known.
const SETTLES: Duration = Duration::from_millis(200);

/// How long a claim may take, including the search for a lost broker. A little longer than the
/// broker may take to answer, since its answer tells more.
const CLAIM: Duration = Duration::from_secs(32);

impl Supervisor {
    /// Begins to answer the calls of a generation.
    pub(crate) fn intercepts(&mut self, id: GenerationId, calls: Arc<Intercept>) {
        // Without a generation, the calls fail when `calls` is dropped.
        if let Some(generation) = self.generations.get_mut(&id) {
            let of = self.timeline.configuration_of(id);
            let prepared = of.and_then(|of| self.starts.prepared(of).cloned());
            if self.cx.settings.kind.program().is_some() {
                generation.own.calls = Some(CallsSeen::default());
            }
            super::serve(&self.cx, generation, calls, prepared);
            self.handover.keep_calls(&self.cx, generation);
        }
    }

    /// Drops all copies of the descriptor for calls that can no longer be answered: the calls then
    /// fail.
    pub(crate) fn unanswerable(&mut self, id: GenerationId) {
        self.handover.forget_calls(id);
        if let Some(generation) = self.generations.get_mut(&id) {
            generation.own.intercept = None;
        }
    }

    /// A generation's calls cannot be seen: what it binds itself is looked for when it is ready.
    pub(crate) fn unseen(&mut self, id: GenerationId, why: &str) {
        if !std::mem::replace(&mut self.report.unseen, true) {
            tracing::info!(
                generation = id.0,
                "haproxy's bind() cannot be seen here ({why}): what it binds by itself is looked for \
                 when it is ready"
            );
        }
    }

    /// Notes an address that haproxy is about to bind itself.
    pub(crate) fn binds(&mut self, id: GenerationId, inode: Option<u64>, own: Own) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let address = match own {
            Own::At(address) => Some(address.to_string()),
            Own::Unknown => None,
            Own::Nothing => return,
        };
        match (inode, &mut generation.own.seen) {
            (Some(inode), Some(seen)) => drop(seen.insert(inode, address)),
            (None, seen) => *seen = None,
            (Some(_), None) => {}
        }
    }

    /// Claims an intercepted address that a program wants to bind.
    pub(crate) fn wants(&mut self, id: GenerationId, want: Want) {
        let Want { mut listener, line, moved, reply } = want;
        let key = listener.key();
        let drains = self.timeline.state_of(id) == Some(State::Draining);
        let Some(generation) = self.generations.get_mut(&id).filter(|_| !drains) else {
            let why = "its generation has been told to stop".to_owned();
            return drop(reply.send(Err((Failure::InUse, why))));
        };
        generation.own.lines.extend(line);
        // If the program has removed the file of a path, no client reaches its socket, and the
        // broker binds another one.
        let has = |held: &&Rc<HeldListener>| {
            let is_it = held.listener.key() == key || held.bound == listener.address;
            is_it && held.leads_here()
        };
        // The program may want another mode for the file now.
        let mode = listener.options.mode;
        let is_as_it_was =
            |held: &&Rc<HeldListener>| has(held) && held.listener.options.mode == mode;
        if let Some(held) = generation.listeners.iter().find(is_as_it_was) {
            let held = Rc::clone(held);
            return drop(reply.send(Ok(Given { held, alone: false })));
        }
        let news = generation.lease.news.clone();
        let alone = !self.generations.listeners().any(|held| has(&held));
        // If another generation has the socket, the flag stays as that generation needs it.
        listener.options.blocking &= alone;
        let (send, claimed) = oneshot::channel();
        let known = self.generations.descriptors();
        // The receiving task lives as long as the generation.
        let _ = news.send(LeaseUpdate::Claim { listener: Box::new(listener), known, reply: send });
        let cx = self.cx.clone();
        crate::tasks::spawn(async move {
            let gone = || Err((Failure::InUse, "its generation has ended".to_owned()));
            let silent = || Err((Failure::Unavailable, "the broker does not answer".to_owned()));
            let claimed = match bindonce_sys::patience::timeout(CLAIM, claimed).await {
                Ok(claimed) => claimed.unwrap_or_else(|_| gone()),
                Err(_) => silent(),
            };
            let given = match claimed {
                Ok(held) => {
                    cx.send(Message::Claimed(id, Rc::clone(&held), moved));
                    Ok(Given { held, alone })
                }
                Err(refused) => Err(refused),
            };
            let _ = reply.send(given);
        });
    }

    /// Adds a listener to a generation. It exists because of this service if it was bound for it,
    /// or has `moved`.
    pub(crate) fn claimed(&mut self, id: GenerationId, held: Rc<HeldListener>, moved: bool) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let (label, created) = (held.label.clone(), held.created);
        if generation.listeners.iter().any(|known| known.inode == held.inode) {
            return;
        }
        generation.listeners.push(held);
        if self.timeline.serving() == Some(id) {
            watching::watch_serving(&self.cx, generation);
        }
        if created || moved {
            self.leases.add([label.clone()]);
        }
        if created {
            self.record(id, event::Kind::ListenerBound, format!("bound: {label}"));
        }
        self.save();
    }

    /// Handles a listen(2) that a program is about to make. The call continues after this.
    pub(crate) fn listening(&mut self, id: GenerationId, listens: &Listens) {
        let Some(program) = self.cx.settings.kind.program() else { return };
        let option = match program.readiness {
            Readiness::Listen | Readiness::Notify => "",
            Readiness::Check(_) => "--ready-check",
            Readiness::Delay(_) => "--ready-delay",
        };
        if !option.is_empty() {
            if !std::mem::replace(&mut self.report.listens, true) {
                tracing::info!(
                    generation = id.0,
                    "it listens: without {option} that would show readiness, and no wait would be needed"
                );
            }
            return;
        }
        let older = self.timeline.accepting(id);
        let older = older.iter().filter_map(|id| self.generations.get(id));
        let served: BTreeSet<u64> = older.flat_map(Generation::listens_on).collect();
        let Some(generation) = self.generations.get_mut(&id) else { return };
        generation.readiness.listening.insert(listens.inode);
        if generation.readiness.ready {
            return;
        }
        let listening = &generation.readiness.listening;
        if !served.is_empty() && served.is_subset(listening) {
            self.ready(id, "it listens on all that is served now");
            if self.generations.get(&id).is_some_and(|generation| generation.readiness.stopped) {
                listens.stop();
            }
            return;
        }
        let (cx, count) = (self.cx.clone(), listening.len());
        crate::tasks::spawn(async move {
            tokio::time::sleep(SETTLES).await;
            cx.send(Message::Settled(id, count));
        });
    }

    /// Handles the end of the time in which a program with `count` listening sockets could listen
    /// on more.
    pub(crate) fn settled(&mut self, id: GenerationId, count: usize) {
        let generation = self.generations.get(&id);
        if generation.is_some_and(|generation| generation.readiness.listening.len() == count) {
            self.ready(id, "it listens");
        }
    }
}
