//! The loop handles signals, messages and deadlines, one at a time. It owns all parts, so nothing
//! happens between two steps of a decision.

use std::collections::BTreeSet;
use std::rc::Rc;

use bindonce_core::generation::{Ending, Event, GenerationId, State};
use bindonce_daemon::{Journal, Reporter};
use bindonce_sys::signals::{self, Signal, SignalFd};
use bindonce_sys::watch::Watch;
use bindonce_sys::worker;
use tokio::sync::mpsc;

use crate::broker;
use crate::context::Context;
use crate::control;
use crate::control::ending::Ended;
use crate::control::gate::Gate;
use crate::disk::directory::{Directory, KEPT, METRICS};
use crate::disk::saved::Saved;
use crate::disk::take_over::{Inheritance, take_over};
use crate::disk::{files, place, recovery, removed, unread};
use crate::error::Error;
use crate::generations::reaper;
use crate::generations::starts::Watched;
use crate::handover::descriptor_store;
use crate::master_cli::Master;
use crate::message::Message;
use crate::passed::Passed;
use crate::report::metrics;
use crate::settings::Settings;
use crate::supervisor::Supervisor;
use crate::tasks::spawn;

/// Supervises one service, starting from the state that an earlier supervisor left.
pub(crate) async fn begin(settings: Settings) -> Result<Ended, Error> {
    // Signals are blocked before any thread exists, so that no thread is interrupted.
    let mut taken = signals::JOB_CONTROL.to_vec();
    taken.extend([Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2]);
    taken.extend([Signal::SIGTERM, Signal::SIGINT, Signal::SIGALRM]);
    if settings.at_once {
        // haproxy only shrinks its memory pools on SIGQUIT, and continues.
        taken.push(Signal::SIGQUIT);
    }
    let signals = SignalFd::new(&taken).map_err(Error::system("take signals over"))?;
    let directory = Directory::open(&settings.broker.socket, &settings.service)?;
    let saved = directory.load();
    // A state that names only ended processes may predate the last start: a full directory could
    // not take a newer state.
    let is_known = saved.as_ref().is_some_and(Saved::may_be_the_last);
    let mut saved = saved.unwrap_or_default();
    let mut left = Inheritance::take(&saved)?;
    let kept = descriptor_store::fetch(&directory.file(KEPT));
    let mut passed = match settings.kind.haproxy() {
        Some(_) => Passed::take(&saved.passed, std::mem::take(&mut left.passed))?,
        None => Passed::default(),
    };
    let journal = Journal::open(&directory.file(place::EVENTS), Some(settings.service.as_str()));
    journal.record(left.began());
    let reporter = Reporter::new(Rc::clone(&journal), nix::unistd::getuid().as_raw());
    // After an upgrade in place the generations keep serving, whatever the broker does.
    if left.control.is_none() {
        broker::ensure(&settings.broker.socket, settings.broker_log(), &journal).await?;
    }
    if !is_known {
        let found = recovery::look(&settings, &directory, &journal).await?;
        saved = Saved { next: found.next.max(saved.next), generations: found.generations, ..saved };
    }
    passed.keep(&settings.master_cli, &settings.broker.socket).await;
    let (sender, inbox) = mpsc::unbounded_channel();
    let mut master = Master::open(&settings, &saved, &mut left, &passed)?;
    let is_upgrade = left.control.is_some();
    let control = match left.control.take() {
        Some(control) => control,
        None => control::bind(&directory.file(place::CONTROL))?,
    };
    directory.has_control();
    let (asks, gate) = (sender.clone(), Gate::default());
    let accepting = control::begin(&control, &reporter, &gate, move |ask| {
        // The loop ends only with the process.
        let _ = asks.send(Message::Command(ask));
    })?;
    let mut watched = Watched { seen: None, read: saved.watched };
    if !settings.watch.is_empty() {
        // The watch starts before anything is read for the first generation.
        let runs = saved.generations.iter().any(|one| one.process.is_there());
        let files = files::Watching::begin(settings.watch.clone(), runs).await?;
        watched.seen = files.contents();
        let changes = sender.clone();
        // The loop ends only with the process.
        spawn(files.follow(move |contents| drop(changes.send(Message::Changed(contents)))));
    }
    if reaper::is_needed() {
        spawn(reaper::reap());
    }
    let (at, socket) = (settings.metrics.clone(), settings.broker.socket.clone());
    let beside = (directory.file(METRICS), Rc::clone(&directory.made_anew));
    spawn(metrics::keep(beside, at, socket, sender.clone()));
    let replaced = replaced(&settings, &saved).await?;
    let cx = Context::new(settings, directory, reporter, Rc::new(passed), gate, sender);
    master.serve(&cx)?;
    spawn(removed::watch(cx.clone()));
    let mut supervisor = Supervisor::new(cx, &saved, (control, accepting), master)?;
    supervisor.first.replaced = replaced;
    supervisor.starts.watched = watched;
    supervisor.handover.keep_on(&supervisor.cx, &kept);
    let asked_about: Vec<_> = kept.calls.keys().copied().collect();
    left.add(kept);
    let changed = supervisor.adopt(&saved, left, is_upgrade).await?;
    for id in asked_about {
        // Nothing answers the calls of a process that outlived its generation: they fail.
        let is_answered =
            supervisor.generations.get(&id).is_some_and(|it| it.own.intercept.is_some());
        if !is_answered {
            supervisor.handover.forget_calls(id);
        }
    }
    supervisor.supervise(signals, inbox, changed).await
}

/// The pids of the haproxys that the first generation replaces; the broker has their listeners
/// then. Empty for an upgrade in place, where the service began earlier.
async fn replaced(settings: &Settings, saved: &Saved) -> Result<Vec<i32>, Error> {
    let replaced = settings.first.replaced.clone();
    if saved.inherited.is_some() || replaced.pids.is_empty() {
        return Ok(Vec::new());
    }
    let known: Vec<i32> =
        saved.generations.iter().map(|generation| generation.process.pid).collect();
    let socket = settings.broker.socket.clone();
    let taken =
        worker::within(settings.timing.ready_timeout, move || replaced.take(&socket, &known));
    taken.await.map_err(Error::system("take over from the haproxy that is replaced"))?
}

impl Supervisor {
    async fn supervise(
        mut self,
        signals: SignalFd,
        mut inbox: mpsc::UnboundedReceiver<Message>,
        changed: Option<String>,
    ) -> Result<Ended, Error> {
        let signalled = Watch::new(&signals).map_err(Error::system("watch for signals"))?;
        if self.timeline.serving().is_none() {
            self.master.begin();
            self.reload(None, "the service begins", None);
        } else if let Some(why) = changed {
            tracing::info!("reload: {why}");
            self.reload(None, &why, None);
        }
        loop {
            self.report.announcer.alive();
            // What is in the queue would be lost with this image.
            if inbox.is_empty() {
                self.maybe_upgrade();
            }
            if let Some(ending) = self.end.decided {
                return Ok(self.ended(ending));
            }
            let deadline = self.cx.next_look(self.timeline.deadline());
            let keep_alive = async {
                match self.report.announcer.keep_alive {
                    Some(interval) => tokio::time::sleep(interval).await,
                    None => std::future::pending().await,
                }
            };
            let due = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ready = signalled.readable() => {
                    ready.map_err(Error::system("wait for signals"))?;
                    while let Some(signal) = signals.read().map_err(Error::system("read a signal"))? {
                        self.signal(signal);
                    }
                }
                Some(message) = inbox.recv() => self.take(message),
                () = due => {
                    if self.timeline.deadline().is_some_and(|at| at <= self.cx.now()) {
                        self.feed(Event::Tick);
                    }
                }
                () = keep_alive => {}
            }
        }
    }

    /// Continues with the generations that an earlier supervisor left. Returns the reason to
    /// replace the serving generation at once, if there is one.
    async fn adopt(
        &mut self,
        saved: &Saved,
        left: Inheritance,
        is_upgrade: bool,
    ) -> Result<Option<String>, Error> {
        let (leases, starts) = (&self.leases, &mut self.starts);
        let found = take_over(&self.cx, leases, starts, &mut self.generations, saved, left).await?;
        self.report.counting.only(&found.iter().map(|found| found.id.0).collect());
        let mut changed = None;
        if !found.is_empty() {
            let serving = found.iter().filter(|found| found.state == State::Serving);
            if let Some(serving) = serving.max_by_key(|found| found.id) {
                changed = self.changed(serving.configuration, is_upgrade).await;
            }
            // The starter waits for the current files to be served.
            let starter = self.first.starter.take_if(|_| changed.is_some());
            let worked = saved.worked.map(GenerationId);
            for action in self.timeline.adopt(self.cx.now(), found, worked) {
                self.perform(action);
            }
            for id in self.draining() {
                let Some(draining) = self.generations.get(&id) else { continue };
                self.handover.keep(draining);
                if let Some(time) = draining.drain.timeout {
                    self.cx.later(Event::DrainTimeout(id, time));
                }
            }
            for generation in self.generations.iter() {
                self.handover.keep_calls(&self.cx, generation);
            }
            self.save();
            self.first.starter = starter.or(self.first.starter.take());
        }
        Ok(changed)
    }

    /// Why the serving generation must be replaced at once: an earlier supervisor, or an earlier
    /// image of this process, started it on files or a command that have changed since.
    async fn changed(&mut self, of: GenerationId, is_upgrade: bool) -> Option<String> {
        let watched = &mut self.starts.watched;
        // Without a first look, its contents are compared when they come.
        if let Some(seen) = watched.seen {
            if watched.read.is_some_and(|read| read != seen) {
                let why = "the files that are watched have changed since they were read";
                return Some(why.to_owned());
            }
            watched.read = Some(seen);
        }
        // Before an upgrade in place a person may have edited files that must not be loaded yet.
        let prepared = self.starts.prepared(of).filter(|_| !is_upgrade)?;
        unread::changed(&self.cx, prepared).await
    }

    /// Logs which addresses stay bound when the supervisor ends. Clients wait there for the next
    /// supervisor, which may surprise users.
    fn say_what_stays(&self) {
        let staying = self.leases.staying();
        if !staying.is_empty() {
            let listeners = some_of(&staying);
            tracing::info!(
                "the broker keeps the addresses bound, and clients wait there until something serves \
                 them again; to free them: bindonce release {listeners}"
            );
        }
    }

    fn ended(self, ending: Ending) -> Ended {
        if let Err(error) = self.cx.directory.clear() {
            tracing::warn!(%error, "the service's directory could not be cleared");
        }
        if matches!(ending, Ending::Shutdown) {
            self.say_what_stays();
        }
        self.end.how(ending, &self.report.failure)
    }
}

/// The first names, and the number of names left out.
fn some_of(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(" "),
        more => format!("{} ... ({more} more)", shown.join(" ")),
    }
}
