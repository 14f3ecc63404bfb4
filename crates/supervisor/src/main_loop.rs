//! The loop: signals, messages and deadlines, one at a time. It owns all parts, so nothing happens between
//! two steps of a decision.

use std::rc::Rc;

use bindonce_core::event;
use bindonce_core::generation::Event;
use bindonce_daemon::Journal;
use bindonce_sys::signals::{self, Signal, SignalFd};
use bindonce_sys::watch::Watch;
use tokio::sync::mpsc;

use crate::broker;
use crate::control::{self, Ask};
use crate::disk::directory::{Directory, Saved};
use crate::disk::take_over::Inheritance;
use crate::disk::{files, found};
use crate::error::Error;
use crate::generations::process::Ended;
use crate::generations::reaper;
use crate::message::Message;
use crate::report::Cause;
use crate::report::metrics;
use crate::settings::Settings;
use crate::supervisor::Supervisor;
use crate::tasks::spawn;

/// Supervises one service, from what an earlier supervisor has left.
pub(crate) async fn begin(settings: Settings) -> Result<Ended, Error> {
    // Blocked before any thread exists, so that none of them is interrupted.
    let mut taken = signals::JOB_CONTROL.to_vec();
    taken.extend([Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2]);
    taken.extend([Signal::SIGTERM, Signal::SIGINT]);
    let signals = SignalFd::new(&taken).map_err(Error::system("take signals over"))?;
    let directory = Directory::open(&settings.socket, &settings.service)?;
    let saved = directory.load();
    // One that names only processes that are gone may be older than the last start: a directory that
    // was full took no newer one.
    let is_known = saved.as_ref().is_some_and(Saved::may_be_the_last);
    let mut saved = saved.unwrap_or_default();
    let mut left = Inheritance::take(&saved)?;
    let journal = Journal::open(&directory.events(), Some(settings.service.as_str()));
    journal.record(left.began());
    broker::ensure(&settings.socket, settings.start_broker, &journal).await?;
    if !is_known {
        let found = found::look(&settings, &directory, &journal).await?;
        saved = Saved { next: found.next.max(saved.next), generations: found.generations, ..saved };
    }
    let (sender, inbox) = mpsc::unbounded_channel();
    let control = match left.control.take() {
        Some(control) => control,
        None => control::bind(&directory.control())?,
    };
    let listener = control
        .try_clone()
        .map(std::os::unix::net::UnixListener::from)
        .and_then(tokio::net::UnixListener::from_std)
        .map_err(Error::system("serve the control socket"))?;
    let asks = sender.clone();
    spawn(control::serve(listener, Rc::clone(&journal), move |ask| {
        // The supervisor's loop ends only with the process.
        let _ = asks.send(Message::Asked(ask));
    }));
    if !settings.watch.is_empty() {
        // Before anything is read for the first generation.
        let files = files::Files::watch(settings.watch.clone())?;
        let changes = sender.clone();
        // The supervisor's loop ends only with the process.
        spawn(files.follow(move || drop(changes.send(Message::Changed))));
    }
    if reaper::is_needed() {
        spawn(reaper::reap());
    }
    let (address, socket) = (settings.metrics.clone(), settings.socket.clone());
    spawn(metrics::keep(directory.metrics(), address, socket, sender.clone()));
    let mut supervisor = Supervisor::new(settings, directory, &saved, control, sender, journal)?;
    supervisor.take_over(&saved, left).await?;
    supervisor.supervise(signals, inbox).await
}

impl Supervisor {
    async fn supervise(
        mut self,
        signals: SignalFd,
        mut inbox: mpsc::UnboundedReceiver<Message>,
    ) -> Result<Ended, Error> {
        let signalled = Watch::new(&signals).map_err(Error::system("watch for signals"))?;
        if self.timeline.serving().is_none() {
            self.reload(None, "the service begins", None);
        }
        loop {
            self.report.announcer.alive();
            self.maybe_upgrade();
            if let Some(ending) = self.ending {
                return Ok(self.end(ending));
            }
            let deadline = self.timeline.deadline().map(|at| self.epoch + at);
            let keep_alive = async {
                match self.report.announcer.keep_alive() {
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
                () = due => self.feed(Event::Tick),
                () = keep_alive => {}
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Event(proof @ (Event::Proved | Event::ProvedInPart { .. })) => {
                self.proved(proof);
            }
            Message::Event(event) => self.feed(event),
            Message::Compared(id, how, seen) => self.compared(id, how, &seen),
            Message::Listens(id, deaf, proof) => self.listens(id, deaf.as_deref(), proof),
            Message::Launched(id, launched) => self.launched(id, *launched),
            Message::NotLaunched(id, error) => {
                self.starts.end(id);
                let text = error.to_string();
                self.record(id, event::Kind::GenerationFailed, format!("not started: {text}"));
                self.report.failure = Cause { text, hint: error.hint(), ..Cause::default() };
                self.feed(Event::StartFailed(id));
            }
            Message::Answers(id, info) => {
                if let Some(generation) = self.generations.get_mut(&id) {
                    generation.version = Some(info.version);
                    generation.answers = info.pid;
                    self.ready(id, "its admin socket answers");
                }
            }
            Message::Changed => {
                tracing::info!("reload: the files that are watched have changed");
                self.reload(None, "the files that are watched have changed", None);
            }
            Message::Leaves(id, how) => self.leaves(id, how),
            Message::Ready(id, how) => self.ready(id, how),
            Message::StillPaused(id) => self.still_paused(id),
            Message::Exited(id, exit) => self.exited(id, exit),
            Message::Asked(Ask::Reload { allow_empty, reply, pid }) => {
                if allow_empty {
                    self.requests.allow_empty();
                }
                self.reload(Some(reply), "a client asked for it", Some(pid));
            }
            Message::Asked(Ask::Retire(id, reply, pid)) => self.retire(id, reply, pid),
            Message::Asked(Ask::Upgrade(reply)) => self.upgrade.want(reply),
            Message::Held(id, hold) => self.held(id, hold),
            Message::Left(id, connections) => {
                if let Some(generation) = self.generations.get_mut(&id) {
                    generation.connections = Some(connections);
                }
                self.feed(Event::Connections(id, connections));
            }
            Message::Closed(id) => self.closed(id),
            Message::GivenBack => self.release_unused(),
            Message::NotReleased(kept) => self.leases.ours.extend(kept),
            Message::Detached(id, detached) => self.detached(id, detached),
            Message::Foreign(id, addresses) => self.found_foreign(id, &addresses),
            Message::Proved(proved) => self.upgrade_now(proved),
            // Who has gone away meanwhile misses nothing.
            Message::Scraped(reply) => drop(reply.send(self.metrics())),
            Message::Asked(Ask::Status(reply)) => self.tell_status(reply),
            Message::Asked(Ask::Ping(reply)) => self.tell_alive(reply),
        }
    }
}
