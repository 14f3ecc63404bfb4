//! The steps of a handover as they are done: readiness, the proof that nobody accepts, and what
//! a stop leaves behind. Whether a generation has stopped is in [`super::watching`].

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::event;
use bindonce_core::generation::{Event, GenerationId, Handover};
use bindonce_sys::aside;
use bindonce_sys::ghosts::{self, Ghost};
use bindonce_sys::process::Pidfd;
use nix::libc::EPERM;

use super::generation::Generation;
use super::listeners::tcp_addresses;
use super::proof::{Older, Proof};
use super::report::Story;
use super::watchdog::{Duty, Named};
use super::{Error, Ghosts, Kind, Message, Settings, Supervisor};

/// How long looking for ghosts, or removing them, may take.
const LOOKS: Duration = Duration::from_secs(10);

/// How much longer than it should a pause may last before the watchdog ends it.
const GRACE: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Tells the timeline that a generation is ready, once.
    pub(super) fn ready(&mut self, id: GenerationId, how: &'static str) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        if std::mem::replace(&mut generation.ready, true) {
            return;
        }
        if let Err(error) = self.compare_with_served(id) {
            return self.refuse(
                id,
                Story { text: error.to_string(), hint: error.hint(), ..Story::default() },
            );
        }
        let held = self.generations.get(&id).is_some_and(|generation| generation.hold.is_some());
        let first = self.timeline.accepting(id).is_empty();
        // One that is not held accepts already, beside an older one: nothing may delay the handover.
        if !((held || first) && self.compare(id, how, first)) {
            self.take_over_now(id, how);
        }
    }

    /// Begins the handover to a generation that is ready.
    pub(super) fn take_over_now(&mut self, id: GenerationId, how: &'static str) {
        let Some(pid) = self.generations.get(&id).map(Generation::pid) else { return };
        let older = self.timeline.accepting(id);
        let held = self.generations.get(&id).is_some_and(|generation| generation.hold.is_some());
        let handover = match &self.settings.kind {
            Kind::Program(_) => Handover::StopFirst,
            Kind::Haproxy(_) if self.can_pause(&older) => Handover::Pause,
            Kind::Haproxy(_) if held => Handover::StopFirst,
            Kind::Haproxy(_) => Handover::SoftStop,
        };
        // Before the first signal: whatever becomes of us now, somebody will serve.
        let within = self.settings.timing.retire_timeout + GRACE;
        let named = |id: &GenerationId| Named::of(self.generations.get(id)?.pid());
        let generations = older.iter().filter_map(|id| self.generations.get(id));
        let listeners: BTreeSet<_> =
            generations.flat_map(|older| older.listeners.iter().map(|held| held.inode)).collect();
        let older = older.iter().filter_map(named).collect();
        let retire = self.settings.kind.retire();
        let duty = Named::of(pid).map(|newer| Duty::Finish {
            within,
            retire,
            newer,
            older,
            listeners: listeners.into_iter().collect(),
        });
        self.tell_watchdog(&duty.unwrap_or(Duty::None));
        // Should we die now it goes on: the next supervisor must not take it for one that starts.
        self.save();
        tracing::info!(generation = id.0, pid, "ready: {how}");
        self.record(id, event::Kind::GenerationReady, how);
        self.measured.ready = Some(Instant::now());
        self.feed(Event::Ready(id, handover));
    }

    /// Whether these generations can be paused without harm to the shared sockets, so that the
    /// accept queues prove it.
    fn can_pause(&self, older: &[GenerationId]) -> bool {
        let older: Vec<_> = older.iter().filter_map(|id| self.generations.get(id)).collect();
        let pauses = |generation: &&Generation| {
            let version = generation.version.or(self.version).unwrap_or_default();
            !generation.listeners.is_empty()
                && generation.listeners.iter().all(|held| held.can_pause(version))
                && !generation.has_master()
        };
        older.iter().all(pauses)
    }

    /// Begins to watch the accept queues of the older generations' listeners.
    pub(super) fn prove(&mut self, newer: GenerationId, older: &[GenerationId]) {
        self.proving = Some(newer);
        let taken =
            tcp_addresses(self.generations.values().flat_map(|generation| &generation.listeners));
        let find = |id: &GenerationId| Some((*id, self.generations.get(id)?));
        let older: Vec<_> = older.iter().filter_map(find).collect();
        let mut listeners = BTreeMap::new();
        let of_older = older.iter().flat_map(|(_, generation)| &generation.listeners);
        // An older one may be gone by now: what the new one has of the same counts too.
        let newer_has = self.generations.get(&newer).into_iter().flat_map(|g| &g.listeners);
        for held in of_older.chain(newer_has.filter(|held| !held.created)) {
            if held.has_queue() {
                listeners.entry(held.inode).or_insert_with(|| Rc::clone(held));
            }
        }
        let older = older.into_iter().map(|(id, generation)| Older {
            id,
            admin: generation.admin.clone(),
            inodes: generation.listeners.iter().map(|held| held.inode).collect(),
        });
        let proof = Proof {
            older: older.collect(),
            listeners: listeners.into_values().collect(),
            probe: self.settings.probe,
            taken,
        };
        let sender = self.sender.clone();
        let task = super::spawn(async move {
            let begun = Instant::now();
            let watched = proof.watch(|event| drop(sender.send(Message::Event(event)))).await;
            let took = begun.elapsed();
            match watched {
                Ok(shown) => tracing::debug!(
                    generation = newer.0,
                    probes = shown.probes,
                    unseen = shown.unseen,
                    ?took,
                    "nobody accepts any more, as far as the queues show it"
                ),
                Err(error) => tracing::error!(generation = newer.0, %error, "proof not possible"),
            }
        });
        self.proof = Some(task.abort_handle());
    }

    /// A generation has closed its listeners: removes what it left in its epoll sets, where each
    /// entry would wake it for every new connection.
    pub(super) fn detach(&mut self, id: GenerationId) {
        let Some(generation) = self.generations.get(&id) else { return };
        let pid = generation.pid();
        tracing::info!(generation = id.0, pid, "stopped accepting");
        self.record(id, event::Kind::GenerationDraining, "stopped accepting");
        if matches!(self.settings.ghosts, Ghosts::Ignore) {
            return drop(self.sender.send(Message::Closed(id)));
        }
        let listeners = generation.listeners.clone();
        let pidfd = Rc::clone(&generation.pidfd);
        let settings = Rc::clone(&self.settings);
        let sender = self.sender.clone();
        super::spawn(async move {
            let inodes: Vec<_> = listeners.iter().map(|held| held.inode).collect();
            let found = find(Rc::clone(&settings), pid, inodes.clone()).await;
            if found.is_empty() {
                return drop(sender.send(Message::Closed(id)));
            }
            let ours = listeners
                .iter()
                .filter(|held| found.iter().any(|ghost| ghost.inode == held.inode))
                .map(|held| Ok((held.inode, held.fd.try_clone()?)))
                .collect::<std::io::Result<Vec<_>>>();
            let ghosts = found.clone();
            let removed = aside::within(LOOKS, move || {
                let ours = ours.map_err(Error::system("copy a listener's descriptor"))?;
                let ours: Vec<_> = ours.iter().map(|(inode, fd)| (*inode, fd.as_fd())).collect();
                let mut removed = 0;
                for of_one in ghosts.chunk_by(|a, b| a.pid == b.pid) {
                    let Some(first) = of_one.first() else { continue };
                    let pidfd =
                        Pidfd::open(first.pid).map_err(Error::system("open a generation"))?;
                    removed += ghosts::detach(&pidfd, of_one, &ours)?;
                }
                Ok::<_, Error>(removed)
            })
            .await;
            drop(pidfd); // Not reaped before: the pid was its own until here.
            let message = match removed {
                Ok(Ok(removed)) => {
                    let left = find(settings, pid, inodes).await.len();
                    Message::Detached(id, Detached { removed, left, refused: false })
                }
                Ok(Err(error)) => {
                    let refused =
                        matches!(&error, Error::Sys(error) if error.errno() == Some(EPERM));
                    tracing::debug!(generation = id.0, pid, %error, "ghosts not removed");
                    Message::Detached(id, Detached { removed: 0, left: found.len(), refused })
                }
                Err(error) => {
                    return tracing::warn!(generation = id.0, pid, %error, "ghosts not removed");
                }
            };
            let _ = sender.send(message);
            let _ = sender.send(Message::Closed(id));
        });
    }

    /// What came of removing ghosts.
    pub(super) fn detached(&mut self, id: GenerationId, detached: Detached) {
        let Detached { removed, left, refused } = detached;
        let Some(pid) = self.generations.get(&id).map(Generation::pid) else { return };
        self.counts.ghosts_removed += removed as u64;
        if removed > 0 {
            tracing::info!(generation = id.0, pid, removed, "removed ghosts from its epoll sets");
            let text = format!("removed {removed} ghosts from its epoll sets");
            self.record(id, event::Kind::GhostsRemoved, text);
        }
        if left == 0 {
            return;
        }
        let first = !std::mem::replace(&mut self.ghosts_told, true);
        let is_haproxy = self.settings.kind.haproxy().is_some();
        if refused && is_haproxy && matches!(self.settings.ghosts, Ghosts::Auto) {
            self.no_epoll = true;
        }
        if first {
            let then = if self.no_epoll {
                "from now on generations start without epoll (-de)"
            } else if is_haproxy {
                "run as root or with CAP_SYS_PTRACE, or choose --ghosts noepoll"
            } else {
                "run as root or with CAP_SYS_PTRACE, or let the program not use epoll"
            };
            let text = format!(
                "this generation is woken for connections that it cannot accept, and burns CPU \
                 until it has drained; the kernel did not let us remove it from its epoll sets; {then}"
            );
            tracing::warn!(generation = id.0, pid, ghosts = left, "{text}");
            self.record(id, event::Kind::GhostsLeft, text);
        }
    }
}

/// What came of removing the ghosts of one generation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Detached {
    removed: usize,
    left: usize,
    /// The kernel does not permit it.
    refused: bool,
}

async fn find(settings: Rc<Settings>, pid: i32, inodes: Vec<u64>) -> Vec<Ghost> {
    let processes = settings.kind.processes(pid);
    let find = move || processes.iter().flat_map(|p| ghosts::find(*p, &inodes)).collect();
    aside::within(LOOKS, find).await.unwrap_or_default()
}
