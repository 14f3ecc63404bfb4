//! Performing what the timeline says.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bindonce_core::generation::{
    Action, Configuration, Ending, Event, GenerationId, Handover, Outcome, Reason, Signal, State,
};
use bindonce_sys::process::Exit;
use bindonce_sys::signals::Signal as Number;
use bindonce_sys::watch::Watch;
use bindonce_sys::{holders, process};
use tokio::sync::mpsc;

use super::admin::{Admin, NoAnswer};
use super::directory::{Saved, SavedGeneration};
use super::generation::Generation;
use super::output::{self, Tail};
use super::proof::Proof;
use super::start::{self, Launched};
use super::{Ended, Message, Supervisor, broker};

/// Between two looks at a generation that was told to stop.
const STOP_LOOK: Duration = Duration::from_millis(20);
/// Between two looks at one that drains: at first, and later.
const DRAIN_LOOK: Duration = Duration::from_millis(100);
const DRAIN_LOOK_LATER: Duration = Duration::from_secs(1);
/// How long an answer of the admin socket may take.
const ANSWER: Duration = Duration::from_secs(1);
/// How long to wait for the last words of a process that has ended: a child of it may still hold
/// its standard error open.
const LAST_WORDS: Duration = Duration::from_millis(200);

impl Supervisor {
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Start { id, configuration, older_alive } => {
                self.start(id, configuration, older_alive);
            }
            Action::Signal { id, signal, reason } => self.send_signal(id, signal, reason),
            Action::Prove { newer, older } => self.prove(newer, &older),
            Action::EndProof => {
                if let Some(proof) = self.proof.take() {
                    proof.abort();
                }
            }
            Action::WatchStop(id) => self.watch_stop(id),
            Action::Detach(id) => self.detach(id),
            Action::LetGo(id) => {
                if let Some(generation) = self.generations.get(&id) {
                    if let Some(admin) = &generation.admin {
                        admin.close();
                    }
                    tracing::info!(generation = id.0, pid = generation.pid(), "drained");
                }
            }
            Action::Answer(callers, outcome) => self.answer(&callers, &outcome),
            Action::Serving(id) => self.serving(id),
            Action::Gone(id) => self.gone(id),
            Action::Restart { died, configuration, after, rollback } => {
                self.counts.restarts += 1;
                let wait = bindonce_core::duration::format(after);
                if rollback {
                    tracing::error!(
                        "the newest configuration (generation {died}) keeps dying; going back to \
                         the last one that worked (generation {configuration}) in {wait}: correct \
                         the files, then run `bindonce reload`"
                    );
                } else {
                    tracing::warn!(configuration = configuration.0, "starting again in {wait}");
                }
            }
            Action::Exit(ending) => self.ending = Some(ending),
        }
    }

    fn start(&mut self, id: GenerationId, configuration: Configuration, older_alive: bool) {
        self.save(id.0 + 1);
        let known = match configuration {
            Configuration::Fresh => None,
            Configuration::Of(of) => self.configurations.get(&of).cloned(),
        };
        let settings = Rc::clone(&self.settings);
        let directory = Rc::clone(&self.directory);
        let sender = self.sender.clone();
        let task = tokio::task::spawn_local(async move {
            let prepared = match known {
                Some(prepared) => Ok(prepared),
                None => start::prepare(&settings, &directory, id).await.map(Rc::new),
            };
            let launched = match prepared {
                Ok(prepared) => {
                    start::launch(&settings, &directory, id, prepared, older_alive).await
                }
                Err(error) => Err(error),
            };
            // No await between the start of the process and this: an abort loses no process.
            let message = match launched {
                Ok(launched) => Message::Launched(id, Box::new(launched)),
                Err(error) => Message::NotLaunched(id, error),
            };
            let _ = sender.send(message);
        });
        self.starting.insert(id, task.abort_handle());
    }

    pub(super) fn launched(&mut self, id: GenerationId, launched: Launched) {
        let aborted = self.starting.remove(&id).is_none();
        let pid = launched.pidfd.pid();
        let pidfd = Rc::new(launched.pidfd);
        let ended = match Watch::new(&*pidfd) {
            Ok(ended) => ended,
            Err(error) => {
                // Unwatched it would be lost to us: end it.
                let _ = pidfd.send(Number::SIGKILL);
                self.failure = format!("haproxy, pid {pid}, cannot be watched: {error}");
                return self.feed(Event::StartFailed(id));
            }
        };
        tracing::info!(generation = id.0, pid, listeners = launched.listeners.len(), "started");
        let tail = Tail::default();
        let words = launched.stderr.map(|stderr| {
            tokio::task::spawn_local(output::pass_on(stderr, launched.paths, tail.clone()))
        });
        let sender = self.sender.clone();
        let watched = Rc::clone(&pidfd);
        tokio::task::spawn_local(async move {
            let exit = match ended.readable().await {
                Ok(()) => watched.try_wait().ok().flatten(),
                Err(_) => None,
            };
            if let Some(words) = words {
                let _ = tokio::time::timeout(LAST_WORDS, words).await;
            }
            let _ = sender.send(Message::Exited(id, exit));
        });
        let admin = launched.admin.map(|path| {
            let sender = self.sender.clone();
            Admin::connect(path, move |info| {
                let _ = sender.send(Message::Answers(id, info));
            })
        });
        let (states, mut told) = mpsc::unbounded_channel();
        let mut lease = launched.lease;
        let service = self.settings.service.clone();
        tokio::task::spawn_local(async move {
            while let Some(state) = told.recv().await {
                if let Err(error) = broker::join(&mut lease, &service, id, Some(pid), state).await {
                    tracing::warn!(generation = id.0, pid, "the broker was not told: {error}");
                    return;
                }
            }
        });
        self.configurations.insert(id, launched.prepared);
        let generation = Generation {
            pidfd,
            admin,
            version: None,
            listeners: launched.listeners,
            tail,
            started: SystemTime::now(),
            ready: false,
            connections: None,
            states,
            watch: None,
        };
        generation.tell(State::Starting);
        if aborted {
            let _ = generation.pidfd.send(Number::SIGKILL);
        }
        self.generations.insert(id, generation);
        self.save(id.0 + 1);
    }

    /// Tells the timeline that a generation is ready, once.
    pub(super) fn ready(&mut self, id: GenerationId, how: &'static str) {
        let Some(generation) = self.generations.get_mut(&id) else {
            return;
        };
        if std::mem::replace(&mut generation.ready, true) {
            return;
        }
        tracing::info!(generation = id.0, pid = generation.pid(), "ready: {how}");
        let handover = if self.can_pause(id) { Handover::Pause } else { Handover::SoftStop };
        self.feed(Event::Ready(id, handover));
    }

    /// Whether every older generation can be paused without harm to the shared sockets.
    fn can_pause(&self, newer: GenerationId) -> bool {
        let older = self.generations.range(..newer).map(|(_, generation)| generation);
        let mut listeners = older.clone().flat_map(|generation| &generation.listeners).peekable();
        !self.settings.command.master_worker
            && listeners.peek().is_some()
            && listeners.all(|held| held.can_pause())
            && older.filter_map(|generation| generation.version).all(|version| version.pauses())
            && self.generations.range(..newer).all(|(_, generation)| generation.version.is_some())
    }

    fn send_signal(&self, id: GenerationId, signal: Signal, reason: Reason) {
        let number = match signal {
            Signal::Stop => Number::SIGSTOP,
            Signal::Continue => Number::SIGCONT,
            Signal::Pause => Number::SIGTTOU,
            Signal::Resume => Number::SIGTTIN,
            Signal::SoftStop => Number::SIGUSR1,
            Signal::Terminate => Number::SIGTERM,
            Signal::Kill => Number::SIGKILL,
        };
        if let Some(task) = self.starting.get(&id) {
            // There is no process yet, and none must come.
            task.abort();
            return self.later(Event::StartFailed(id));
        }
        let Some(generation) = self.generations.get(&id) else {
            return;
        };
        let pid = generation.pid();
        let sent = match signal {
            // In master-worker mode the workers must not outlive the master.
            Signal::Kill => process::signal_group(pid, number),
            _ => generation.pidfd.send(number),
        };
        super::report::log_signal(id, pid, number, reason);
        if let Err(error) = sent {
            // It has just ended by itself; its end is on its way to us.
            tracing::debug!(generation = id.0, pid, %error, "signal not sent");
        }
    }

    fn prove(&mut self, newer: GenerationId, older: &[GenerationId]) {
        let older: BTreeMap<_, _> =
            older.iter().filter_map(|id| Some((*id, self.generations.get(id)?))).collect();
        let mut listeners = BTreeMap::new();
        for held in older.values().flat_map(|generation| &generation.listeners) {
            listeners.entry(held.inode).or_insert_with(|| Rc::clone(held));
        }
        let admins = older.iter().filter_map(|(id, g)| Some((*id, g.admin.clone()?))).collect();
        let proof = Proof {
            listeners: listeners.into_values().collect(),
            older: admins,
            probe: self.settings.probe,
        };
        let sender = self.sender.clone();
        let task = tokio::task::spawn_local(async move {
            let begun = std::time::Instant::now();
            let watched = proof.watch(|event| drop(sender.send(Message::Event(event)))).await;
            let took = begun.elapsed();
            match watched {
                Ok(cost) => tracing::debug!(
                    generation = newer.0,
                    probes = cost.probes,
                    ?took,
                    "nobody accepts any more"
                ),
                Err(error) => tracing::error!(generation = newer.0, %error, "proof not possible"),
            }
        });
        self.proof = Some(task.abort_handle());
    }

    fn watch_stop(&mut self, id: GenerationId) {
        let sender = self.sender.clone();
        let Some(generation) = self.generations.get_mut(&id) else {
            return;
        };
        generation.tell(State::Draining);
        let admin = generation.admin.clone();
        let pid = generation.pid();
        let inodes: Vec<_> = generation.listeners.iter().map(|held| held.inode).collect();
        if let Some(earlier) = generation.watch.take() {
            earlier.abort();
        }
        let task = tokio::task::spawn_local(async move {
            let tell = |event| drop(sender.send(Message::Event(event)));
            let admin = match admin {
                Some(admin) if stopped_says_admin(&admin).await => Some(admin),
                _ => {
                    // Without an admin socket its descriptors must show it.
                    while !holders::of_process(pid, &inodes).is_empty() {
                        tokio::time::sleep(STOP_LOOK).await;
                    }
                    None
                }
            };
            tell(Event::Stopped(id));
            let Some(admin) = admin else { return };
            for look in 0u32.. {
                match admin.info(ANSWER).await {
                    Ok(info) => tell(Event::Connections(id, info.connections)),
                    Err(NoAnswer::InTime) => {}
                    Err(NoAnswer::Closed) => return,
                }
                let wait = if look < 20 { DRAIN_LOOK } else { DRAIN_LOOK_LATER };
                tokio::time::sleep(wait).await;
            }
        });
        generation.watch = Some(task.abort_handle());
    }

    fn detach(&mut self, id: GenerationId) {
        if let Some(generation) = self.generations.get(&id) {
            tracing::info!(generation = id.0, pid = generation.pid(), "stopped accepting");
        }
    }

    fn serving(&mut self, id: GenerationId) {
        if let Some(generation) = self.generations.get(&id) {
            generation.tell(State::Serving);
            tracing::info!(generation = id.0, pid = generation.pid(), "serving");
        }
        let keep: Vec<_> = self.timeline.configurations().chain([id]).collect();
        self.configurations.retain(|of, _| keep.contains(of));
        if let Err(error) = self.directory.keep_configurations(&keep) {
            tracing::warn!(%error, "old rendered configurations could not be removed");
        }
    }

    pub(super) fn exited(&mut self, id: GenerationId, exit: Option<Exit>) {
        let how = exit.map_or_else(|| "ended".to_owned(), |exit| exit.to_string());
        if let Some(generation) = self.generations.get(&id) {
            let pid = generation.pid();
            let state = self.timeline.generations().find(|(known, _)| *known == id);
            match state.map(|(_, state)| state) {
                Some(State::Draining) => tracing::info!(generation = id.0, pid, "gone: {how}"),
                Some(State::Serving) => {
                    tracing::error!(generation = id.0, pid, "died while it served: {how}");
                }
                _ => tracing::error!(generation = id.0, pid, "did not come up: {how}"),
            }
            let words = generation.tail.text();
            self.failure = if words.is_empty() {
                format!("haproxy, pid {pid}, {how} and said nothing")
            } else {
                format!("haproxy, pid {pid}, {how}:\n{words}")
            };
        }
        self.feed(Event::Exited(id));
    }

    fn gone(&mut self, id: GenerationId) {
        // Its connection to the broker goes with it, and so do its leases.
        self.generations.remove(&id);
        self.directory.remove_admin(id);
        self.save(0);
    }

    /// Saves what the next supervisor must know; `next` is the least id it may use.
    fn save(&mut self, next: u64) {
        self.counts.next = self.counts.next.max(next);
        let generations = self.generations.iter().map(|(id, generation)| SavedGeneration {
            id: id.0,
            pid: generation.pid(),
            start_time: bindonce_sys::process::start_time(generation.pid()).unwrap_or_default(),
            draining: self
                .timeline
                .generations()
                .any(|(known, state)| known == *id && state == State::Draining),
        });
        let saved = Saved { next: self.counts.next, generations: generations.collect() };
        if let Err(error) = self.directory.save(&saved) {
            tracing::error!(%error, "the state could not be saved: free space in the run directory");
        }
    }

    pub(super) fn end(self, ending: Ending) -> Ended {
        if let Err(error) = self.directory.clear() {
            tracing::warn!(%error, "the service's directory could not be cleared");
        }
        match ending {
            Ending::Shutdown => Ended::Shutdown,
            Ending::NeverServed => Ended::NeverServed(self.failure.clone()),
        }
    }

    fn answer(&mut self, callers: &[bindonce_core::generation::Caller], outcome: &Outcome) {
        let answer = self.outcome(outcome);
        for caller in callers {
            if let Some(reply) = self.callers.remove(caller) {
                // Whoever asked may have gone away.
                let _ = reply.send(answer.clone());
            }
        }
    }
}

/// Waits until haproxy says that it is stopping; false if its connection ends first.
async fn stopped_says_admin(admin: &Admin) -> bool {
    loop {
        match admin.info(ANSWER).await {
            Ok(info) if info.stopping => return true,
            Ok(_) | Err(NoAnswer::InTime) => tokio::time::sleep(STOP_LOOK).await,
            Err(NoAnswer::Closed) => return false,
        }
    }
}
