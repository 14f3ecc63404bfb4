//! Processes of generations: taken on, watched, saved for the next supervisor, and let go.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bindonce_core::event;
use bindonce_core::generation::{Event, GenerationId, State};
use bindonce_sys::hold::Hold;
use bindonce_sys::process::{self, Exit, Pidfd};
use bindonce_sys::signals::Signal as Number;
use bindonce_sys::watch::Watch;
use bindonce_sys::{spawn, tree};
use tokio::sync::mpsc;

use crate::broker::lease::Keeper;
use crate::disk::directory::{Inherited, Saved, SavedGeneration};
use crate::generations::admin::Admin;
use crate::generations::generation::Generation;
use crate::generations::listeners::Held;
use crate::generations::output::{self, Tail};
use crate::generations::start::Launched;
use crate::handover::watchdog::Duty;
use crate::message::Message;
use crate::report::{Cause, milliseconds};
use crate::supervisor::Supervisor;
use bindonce_haproxy::cli::Info;
use bindonce_haproxy::config::Messages;

/// How long to wait for the last words of a process that has ended: a child of it may still hold
/// its standard error open.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How a supervisor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, and every generation is gone.
    Shutdown,
    /// The first generation failed; this is its story.
    NeverServed(String),
}

/// A process, and what belongs to it, on its way to become a [`Generation`].
pub(crate) struct Process {
    pub(crate) pidfd: Pidfd,
    pub(crate) admin: Option<Admin>,
    /// The reading end of its standard error, and what translates what comes through it.
    pub(crate) stderr: Option<(OwnedFd, Messages)>,
    /// As in [`Generation`].
    pub(crate) master_worker: bool,
    pub(crate) listeners: Vec<Rc<Held>>,
    pub(crate) lease: Option<bindonce::aio::Client>,
    pub(crate) started: SystemTime,
}

impl Supervisor {
    /// A process was started for a generation.
    pub(crate) fn launched(&mut self, id: GenerationId, launched: Launched) {
        if self.starts.end(id).is_none() {
            // It was called off while the process was on its way to us.
            return end_quietly(launched.pidfd);
        }
        let rendering = launched.prepared.rendering();
        let master_worker = rendering.is_some_and(|rendering| rendering.master_worker);
        self.starts.configurations.insert(id, launched.prepared);
        let admin = launched.admin.map(|path| Admin::connect(path, self.on_answer(id)));
        let process = Process {
            pidfd: launched.pidfd,
            admin,
            stderr: launched.stderr.map(|stderr| (stderr, launched.messages)),
            master_worker,
            listeners: launched.listeners,
            lease: Some(launched.lease),
            started: SystemTime::now(),
        };
        let created = process.listeners.iter().filter(|held| held.created);
        let created: Vec<_> = created.map(|held| held.label.clone()).collect();
        let (pid, listeners) = (process.pidfd.pid(), process.listeners.len());
        if let Err(error) = self.take_on(id, process) {
            let name = self.settings.kind.name();
            let text = format!("{name}, pid {pid}, cannot be watched: {error}");
            self.report.failure = Cause { text, hint: None, ..Cause::default() };
            return self.feed(Event::StartFailed(id));
        }
        tracing::info!(generation = id.0, pid, listeners, "started");
        warn_of_limit(listeners);
        self.record(id, event::Kind::GenerationStarted, format!("started; listeners: {listeners}"));
        if !created.is_empty() {
            self.record(id, event::Kind::ListenerBound, format!("bound: {}", created.join(" ")));
        }
        self.leases.ours.extend(created);
        if let Some(shim) = launched.shim {
            self.hold(id, shim);
        }
        self.await_ready(id, launched.notifications);
    }

    /// Waits for a new generation to say that it is ready, and holds it there. Where the kernel does
    /// not let us, its signal arrives as any other, and it is stopped as soon as we hear of it.
    fn hold(&self, id: GenerationId, shim: OwnedFd) {
        let (sender, watchdog) = (self.sender.clone(), self.handover.watchdog());
        crate::tasks::spawn(async move {
            let Some(listener) = spawn::receive_hold(shim).await else { return };
            watchdog.borrow().share(listener.as_fd());
            let hold = match Hold::new(listener) {
                Ok(hold) => Rc::new(hold),
                Err(error) => return tracing::warn!(generation = id.0, %error, "it is not held"),
            };
            match hold.called().await {
                Ok(Some(_)) => drop(sender.send(Message::Held(id, hold))),
                // It has ended without having said it.
                Ok(None) => {}
                Err(error) => tracing::warn!(generation = id.0, %error, "it is not held"),
            }
        });
    }

    /// A new generation has bound everything, and is held.
    pub(crate) fn held(&mut self, id: GenerationId, hold: Rc<Hold>) {
        match self.generations.get_mut(&id) {
            Some(generation) if !generation.ready => generation.hold = Some(hold),
            // It has become ready by another sign, or is gone.
            _ => return drop(hold.release()),
        }
        self.ready(id, "it has bound everything, and is held");
    }

    /// What to call when the admin socket of a generation first answers.
    pub(crate) fn on_answer(&self, id: GenerationId) -> impl FnOnce(Info) + 'static {
        let sender = self.sender.clone();
        move |info| drop(sender.send(Message::Answers(id, info)))
    }

    /// Begins to watch a process. One that cannot be watched is ended.
    pub(crate) fn take_on(&mut self, id: GenerationId, process: Process) -> std::io::Result<()> {
        let pidfd = Rc::new(process.pidfd);
        let pid = pidfd.pid();
        let ended = Watch::new(&*pidfd).inspect_err(|_| drop(pidfd.send(Number::SIGKILL)))?;
        let tail = Tail::default();
        let mut copy = None;
        let words = process.stderr.map(|(stderr, messages)| {
            copy = stderr.try_clone().ok();
            crate::tasks::spawn(output::pass_on(stderr, messages, tail.clone()))
        });
        let (sender, watched) = (self.sender.clone(), Rc::clone(&pidfd));
        let is_program = self.settings.kind.program().is_some();
        let start_time = process::start_time(pid).unwrap_or_default();
        crate::tasks::spawn(async move {
            let exit = match ended.readable().await {
                Ok(()) => {
                    // Before it is reaped: its pid still names its session, and nothing else.
                    if is_program {
                        let left = tree::kill_orphans(pid, start_time);
                        if left > 0 {
                            tracing::warn!(
                                generation = id.0,
                                pid,
                                left,
                                "its first process has ended; the others were killed"
                            );
                        }
                    }
                    watched.try_wait().ok().flatten()
                }
                Err(_) => None,
            };
            if let Some(words) = words {
                let _ = tokio::time::timeout(LAST_WORDS, words).await;
            }
            let _ = sender.send(Message::Exited(id, exit));
        });
        let (states, told) = mpsc::unbounded_channel();
        let keeper = Keeper {
            shared: Rc::clone(&self.leases.broker),
            id,
            pid,
            listeners: process.listeners.clone(),
        };
        crate::tasks::spawn(keeper.keep(process.lease, told));
        let generation = Generation {
            pidfd,
            admin: process.admin,
            version: None,
            answers: None,
            master_worker: process.master_worker,
            listeners: process.listeners,
            tail,
            stderr: copy,
            started: process.started,
            hold: None,
            wants_address: None,
            own: BTreeSet::new(),
            ready: false,
            refused: None,
            listens: false,
            closed: false,
            served: false,
            connections: None,
            states,
            watch: None,
            resumes: None,
        };
        drop(generation.tell(State::Starting));
        self.generations.insert(id, generation);
        self.save();
        Ok(())
    }

    pub(crate) fn exited(&mut self, id: GenerationId, exit: Option<Exit>) {
        let how = exit.map_or_else(|| "no known exit code".to_owned(), |exit| exit.to_string());
        if let Some(generation) = self.generations.get(&id) {
            let pid = generation.pid();
            match self.state_of(id) {
                Some(State::Draining) => {
                    tracing::info!(generation = id.0, pid, "gone: {how}");
                    self.record(id, event::Kind::GenerationGone, format!("gone: {how}"));
                }
                Some(State::Serving) => {
                    tracing::error!(generation = id.0, pid, "died while it served: {how}");
                    self.record(
                        id,
                        event::Kind::GenerationDied,
                        format!("died while it served: {how}"),
                    );
                }
                _ => {
                    tracing::error!(generation = id.0, pid, "did not come up: {how}");
                    self.record(
                        id,
                        event::Kind::GenerationFailed,
                        format!("did not come up: {how}"),
                    );
                }
            }
            let words = generation.tail.text();
            let name = self.settings.kind.name();
            let text = if words.is_empty() {
                format!("{name}, pid {pid}, ended with {how} and said nothing")
            } else {
                format!("{name}, pid {pid}, ended with {how}:\n{words}")
            };
            let hint = generation.wants_address.map(|_| self.address_hint(id));
            self.report.failure =
                generation.refused.clone().unwrap_or(Cause { text, hint, ..Cause::default() });
        }
        self.feed(Event::Exited(id));
    }

    pub(crate) fn state_of(&self, id: GenerationId) -> Option<State> {
        let mut known = self.timeline.generations();
        known.find(|(known, _)| *known == id).map(|(_, state)| state)
    }

    /// A generation is gone: its connection to the broker goes with it, and so do its leases.
    pub(crate) fn gone(&mut self, id: GenerationId) {
        if let Some(mut generation) = self.generations.remove(&id) {
            self.leases_end(&mut generation);
        }
        self.give_back();
        self.directory.remove_admin(id);
        self.requests.gone(id);
        self.save();
        self.keep_configurations();
        if self.timeline.is_idle() {
            self.handover.tell(&Duty::None);
        }
    }

    /// Removes the rendered configurations that nobody runs and that will not be started again.
    pub(crate) fn keep_configurations(&mut self) {
        let keep: Vec<_> = self.timeline.configurations().collect();
        self.starts.configurations.retain(|of, _| keep.contains(of));
        if let Err(error) = self.directory.keep_configurations(&keep) {
            tracing::warn!(%error, "old rendered configurations could not be removed");
        }
    }

    /// Saves what the next supervisor must know.
    pub(crate) fn save(&mut self) {
        let saved = self.saved(None);
        if let Err(error) = self.directory.save(&saved) {
            tracing::error!(%error, "the state could not be saved: free space in the run directory");
        }
    }

    pub(crate) fn saved(&self, inherited: Option<Inherited>) -> Saved {
        let generations = self.generations.iter().map(|(id, generation)| SavedGeneration {
            id: id.0,
            pid: generation.pid(),
            start_time: process::start_time(generation.pid()).unwrap_or_default(),
            state: self.state_of(*id).unwrap_or(State::Draining).to_string(),
            ready: generation.ready,
            master_worker: generation.master_worker,
            configuration: self.timeline.configuration_of(*id).unwrap_or(*id).0,
            since: milliseconds(generation.started),
            listeners: generation.listeners.iter().map(|h| h.listener.to_string()).collect(),
        });
        Saved {
            next: self.timeline.next_id().0,
            generations: generations.collect(),
            ours: self.leases.ours.clone(),
            inherited,
            upgrades: self.upgrade.count,
        }
    }

    /// The addresses stay bound when a supervisor ends: clients wait for the next one. Not all expect it.
    fn say_what_stays(&self) {
        if !self.leases.ours.is_empty() {
            let listeners = some_of(&self.leases.ours);
            tracing::info!(
                "the broker keeps the addresses bound, and clients wait there until something serves \
                 them again; to free them: bindonce release {listeners}"
            );
        }
    }

    pub(crate) fn end(self, ending: bindonce_core::generation::Ending) -> Ended {
        if let Err(error) = self.directory.clear() {
            tracing::warn!(%error, "the service's directory could not be cleared");
        }
        match ending {
            bindonce_core::generation::Ending::Shutdown => {
                self.say_what_stays();
                Ended::Shutdown
            }
            bindonce_core::generation::Ending::NeverServed => {
                Ended::NeverServed(self.report.failure.whole())
            }
        }
    }
}

/// The first few names, and how many more.
fn some_of(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(" "),
        more => format!("{} ... ({more} more)", shown.join(" ")),
    }
}

/// Ends a process that is no generation, and reaps it.
fn end_quietly(pidfd: Pidfd) {
    tree::signal_all(pidfd.pid(), Number::SIGKILL);
    let Ok(ended) = Watch::new(&pidfd) else { return };
    crate::tasks::spawn(async move {
        if ended.readable().await.is_ok() {
            let _ = pidfd.try_wait();
        }
    });
}

/// A reload has each listener twice for a moment: once of the older generation, and once as the broker
/// gives it.
fn warn_of_limit(listeners: usize) {
    /// What a supervisor has open besides: connections, pipes, admin sockets.
    const BESIDES: u64 = 256;
    let (limit, _) = bindonce_sys::limits::nofile();
    let needed = 2 * listeners as u64 + BESIDES;
    if needed > limit {
        tracing::warn!(
            listeners,
            limit,
            "a reload needs about {needed} descriptors, and RLIMIT_NOFILE allows this supervisor \
             fewer: raise its hard limit (LimitNOFILE=, `ulimit -Hn`) and start it again"
        );
    }
}
