//! The loop handles signals, messages and deadlines, one at a time. It owns all parts, so nothing
//! happens between two steps of a decision.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::generation::{Event, GenerationId, State};
use bindonce_daemon::{Journal, Reporter};
use bindonce_sys::signals::{self, Signal, SignalFd};
use bindonce_sys::watch::Watch;
use bindonce_sys::worker;
use tokio::sync::mpsc;

use crate::adopt::Taken;
use crate::broker;
use crate::context::Context;
use crate::control;
use crate::control::ending::Ended;
use crate::control::gate::Gate;
use crate::control::leave;
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

/// How many signals are taken before all else has its turn: more than can be pending at once.
const SIGNALS: usize = 32;

/// How long the last answers may take once nothing is left to do.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

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
    let open = || Directory::open(&settings.broker.socket, &settings.service);
    let mut directory = open();
    if matches!(directory, Err(Error::AlreadySupervised { .. })) && leave::ask(&settings).await {
        directory = open();
    }
    let directory = directory?;
    let saved = directory.load()?;
    // A full directory could not take a newer state, or it was not saved yet.
    let is_known = saved.as_ref().is_some_and(Saved::may_be_the_last);
    let is_read = saved.is_some();
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
    // What an earlier image of this process has left is its last state.
    if !is_known && left.control.is_none() {
        match recovery::look(&settings, &directory, &journal, saved.clone()).await {
            Ok(found) => saved = found,
            Err(error) if is_read => {
                tracing::warn!("what may have been started later was not looked for: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    passed.keep(&settings.master_cli, &settings.broker.socket).await;
    let (sender, inbox) = mpsc::unbounded_channel();
    let mut master = Master::open(&settings, &saved, &mut left, &passed).await?;
    let is_upgrade = left.control.is_some();
    let control = match left.control.take() {
        Some(control) => control,
        None => control::bind(&directory.file(place::CONTROL))?,
    };
    directory.has_control();
    let (asks, gate) = (sender.clone(), Gate::default());
    let control = control::begin(control, &reporter, &gate, move |ask| {
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
    let replaced = replaced(&settings, &saved, &passed).await?;
    let cx = Context::new(settings, directory, reporter, Rc::new(passed), gate, sender);
    master.serve(&cx)?;
    spawn(removed::watch(cx.clone()));
    let mut supervisor = Supervisor::new(cx, &saved, control, master)?;
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

/// The haproxys that the first generation replaces; the broker has their listeners then. None for
/// an upgrade in place, where the service began earlier.
async fn replaced(settings: &Settings, saved: &Saved, passed: &Passed) -> Result<Taken, Error> {
    let replaced = settings.first.replaced.clone();
    let begins = saved.inherited.is_none() && !replaced.pids.is_empty();
    let Some(haproxy) = settings.kind.haproxy().filter(|_| begins).cloned() else {
        return Ok(Taken::default());
    };
    let (listeners, passed) = (settings.listeners.clone(), passed.known.clone());
    let known: Vec<i32> =
        saved.generations.iter().map(|generation| generation.process.pid).collect();
    let socket = settings.broker.socket.clone();
    let taken = worker::within(settings.timing.ready_timeout, move || {
        replaced.take(&socket, &known, &|| haproxy.listeners(&listeners, &passed))
    });
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
        let mut more_signals = false;
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
            if self.end.leaves.is_some() {
                return Ok(self.left(Ended::Shutdown));
            }
            if let Some(ending) = self.end.decided {
                // The requests in it are refused.
                drop(inbox);
                self.answer_the_last().await;
                let how = self.end.how(ending, &self.report.failure);
                return Ok(if self.generations.iter().next().is_some() {
                    self.left(how)
                } else {
                    self.ended(how)
                });
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
                ready = signalled.readable(), if !more_signals => {
                    ready.map_err(Error::system("wait for signals"))?;
                    more_signals = true;
                }
                Some(message) = inbox.recv() => self.take(message),
                () = due => {
                    if self.timeline.deadline().is_some_and(|at| at <= self.cx.now()) {
                        self.feed(Event::Tick);
                    }
                }
                () = keep_alive => {}
                // Tasks and timers have their turn too.
                () = tokio::task::yield_now(), if more_signals => {}
            }
            if more_signals {
                more_signals = self.take_signals(&signals)?;
            }
        }
    }

    /// Takes the signals that are pending. Whether there may be more: a process can send them
    /// faster than they are taken.
    fn take_signals(&mut self, signals: &SignalFd) -> Result<bool, Error> {
        for _ in 0..SIGNALS {
            match signals.read().map_err(Error::system("read a signal"))? {
                Some(signal) => self.signal(signal),
                None => return Ok(false),
            }
        }
        Ok(true)
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
            tracing::info!(
                "the broker keeps the addresses bound, and clients wait there until something serves \
                 them again; {}",
                how_to_free(&staying)
            );
        }
    }

    /// Lets each client have its answer: the end of the last generation is what some wait for.
    async fn answer_the_last(&mut self) {
        self.cx.gate.close();
        self.refuse_upgrade();
        self.control.answered(LAST_ANSWERS).await;
    }

    /// Nothing is left.
    fn ended(self, how: Ended) -> Ended {
        let state = Saved { ended: true, ..self.saved(None) };
        let saved = self.cx.directory.save(state).map_err(|error| error.to_string());
        let cleared = self.cx.directory.clear().map_err(|error| error.to_string());
        if let Err(error) = saved.and(cleared) {
            tracing::warn!(error, "the service's directory could not be left in order");
        }
        if !matches!(how, Ended::NeverServed { .. }) {
            self.say_what_stays();
        }
        how
    }
}

/// The command that frees these listeners, or, if they are many, how to find their names.
fn how_to_free(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => format!("to free them: bindonce release {}", shown.join(" ")),
        more => format!(
            "to free them, give `bindonce release` their names, which `bindonce list` shows: {} and {more} more",
            shown.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_only_if_it_is_whole() {
        let names = |count: u32| -> BTreeSet<String> {
            (1..=count).map(|number| format!("l{number}")).collect()
        };
        assert_eq!(how_to_free(&names(4)), "to free them: bindonce release l1 l2 l3 l4");
        let many = how_to_free(&names(7));
        assert!(!many.contains("bindonce release l1"), "{many}");
        assert!(many.ends_with(": l1, l2, l3, l4 and 3 more"), "{many}");
    }
}
