//! What the loop does on a message or a signal, one at a time: it changes the parts concerned and
//! feeds the timeline an event.

use std::ffi::OsStr;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::generation::{Caller, Event, GenerationId};
use bindonce_core::{duration, event};
use bindonce_daemon::Happening;
use bindonce_sys::hold::Hold;
use bindonce_sys::signals::Received;
use bindonce_wire::{ErrorCode, RpcError};

use crate::context::Context;
use crate::control::requests::{Client, Options, Retirement};
use crate::control::signals::{self, Wanted};
use crate::control::{Command, retire};
use crate::generations::generation::Generation;
use crate::message::Message;
use crate::report::cause::Cause;
use crate::supervisor::Supervisor;

/// The answer to a client whose command line is refused.
fn refused(error: &crate::error::Error) -> RpcError {
    RpcError::new(ErrorCode::INVALID_PARAMS, error.to_string())
}

/// The answer to a client that wants idle connections closed on generations without an admin
/// connection.
fn no_admin() -> RpcError {
    let text = "idle connections cannot be closed: only haproxy tells which they are, on its private admin socket";
    RpcError::new(ErrorCode::INVALID_PARAMS, text)
        .with_hint("leave out --drain-idle, or --no-admin of `bindonce run`")
}

/// The answer to a client whose command line names another socket of the master CLI.
fn no_master_cli(socket: &OsStr) -> RpcError {
    let text = format!(
        "cannot open -S {} while the service runs: stop it in order (SIGUSR1), then start it with this command, which \
         takes over what still drains",
        socket.display()
    );
    RpcError::new(ErrorCode::INVALID_PARAMS, text)
}

impl Supervisor {
    pub(crate) fn take(&mut self, message: Message) {
        match message {
            Message::Event(proof @ (Event::Proved | Event::ProvedInPart { .. })) => {
                self.proved(proof);
            }
            Message::Event(Event::Progress(id)) => self.progress(id),
            Message::Event(event) => self.feed(event),
            Message::Compared(id, how, seen) => self.compared(id, how, &seen),
            Message::Listens(id, seen, proof) => self.listens(id, &seen, proof),
            Message::Launched(id, launched) => self.launched(id, *launched),
            Message::Preset(id, preset) => {
                // A start that was called off will count nothing.
                if self.starts.is_in_progress(id) {
                    self.report.counting.preset(id, preset);
                }
            }
            Message::NotLaunched(id, error) => {
                self.starts.end(id);
                self.report.counting.gone(id);
                let text = error.to_string();
                self.record(id, event::Kind::GenerationFailed, format!("not started: {text}"));
                self.report.failure = Cause::new(text, error.hint());
                self.feed(Event::StartFailed(id));
            }
            Message::Answers(id, info) => {
                if let Some(generation) = self.generations.get_mut(&id) {
                    generation.cli.version = Some(info.version);
                    generation.cli.release = Some(info.release);
                    generation.cli.answers = info.pid;
                    self.ready(id, "its admin socket answers");
                }
            }
            Message::Changed(contents) => {
                let watched = &mut self.starts.watched;
                watched.seen = Some(contents);
                let why = match watched.read {
                    // The first contents, which came late.
                    Some(read) if read == contents => return,
                    Some(_) => "the files that are watched have changed",
                    None => "the files may have changed while they were not watched",
                };
                tracing::info!("reload: {why}");
                self.reload(None, why, None);
            }
            Message::Removed(reply) => {
                // The watch asks again where the repair failed.
                let _ = reply.send(self.mend_directory());
            }
            Message::Leaves(id, how) => self.leaves(id, how),
            Message::Ready(id, how) => self.ready(id, how),
            Message::StillPaused(id) => self.still_paused(id),
            Message::Exited(id, exit) => self.exited(id, exit),
            Message::Held(id, hold) => self.held(id, hold),
            Message::Intercepts(id, calls) => self.intercepts(id, calls),
            Message::Unanswerable(id) => self.unanswerable(id),
            Message::Unseen(id, why) => self.unseen(id, &why),
            Message::Binds(id, inode, own) => self.binds(id, inode, own),
            Message::Wants(id, want) => self.wants(id, want),
            Message::Claimed(id, held, moved) => self.claimed(id, held, moved),
            Message::Listening(id, listens) => self.listening(id, &listens),
            Message::Settled(id, count) => self.settled(id, count),
            Message::Left(id, connections) => {
                if let Some(generation) = self.generations.get_mut(&id) {
                    generation.drain.connections = Some(connections);
                }
                self.feed(Event::Connections(id, connections));
            }
            Message::CannotTell(id) => {
                if let Some(generation) = self.generations.get_mut(&id)
                    && !generation.pidfd.has_ended()
                {
                    generation.drain.connections = None;
                }
            }
            Message::Counts(id, counts, drains) => {
                if let Some(generation) = self.generations.get_mut(&id)
                    && let Some((more, drains)) = generation.drain.count(counts, drains)
                {
                    self.report.served(more, drains);
                }
            }
            Message::IdleClosed(id, count) => {
                if let Some(generation) = self.generations.get_mut(&id) {
                    generation.drain.idle_closed += count;
                    self.report.counts.idle_closed += count;
                    self.requests.idle_closed(id, count);
                }
            }
            Message::Closed(id) => {
                if let Some(generation) = self.generations.get_mut(&id) {
                    generation.lease.closed = true;
                    self.give_back();
                }
            }
            Message::GivenBack => self.release_unused(),
            Message::Released { asked, kept } => {
                self.handover.released(&asked, &kept);
                self.leases.released(&asked, kept);
            }
            Message::Detached(id, detached) => {
                if let Some(pid) = self.generations.pid(id) {
                    self.report.counts.ghosts_removed += detached.removed as u64;
                    // At the last stop no generation is left that could start otherwise.
                    let is_last = self.timeline.is_shutting_down();
                    self.handover.ghosts.ended(&self.cx, (id, pid), detached, is_last);
                }
            }
            // Saves the reload's counters and startup messages after the answer, so that no client
            // waits for the disk.
            Message::Answered => {
                self.requests.answered();
                self.save();
            }
            Message::Foreign(id, addresses, unseen) => self.found_foreign(id, addresses, &unseen),
            Message::Proved(proved) => self.binary_proved(proved),
            Message::Quiet(binary) => self.upgrade.ready = Some(binary),
            Message::Scraped(reply) => self.scraped(reply),
            Message::Page(reply) => self.answer_scrape(reply),
            Message::Counted(id, counters) => {
                // A generation that is gone has already reported its last counters.
                if self.generations.get(&id).is_some() {
                    self.report.counting.update(id, counters);
                }
            }
            Message::LetGo(id) => self.let_go(id),
            // A client that has gone away misses nothing.
            Message::LookedAt(reply) => drop(reply.send(self.view().status_page())),
            Message::Command(ask) => self.answer_client(ask),
            Message::Master(ask) => self.answer_master_cli(ask),
        }
    }

    fn answer_client(&mut self, ask: Command) {
        match ask {
            Command::Reload { how, reply, pid } => {
                if how.drain_idle_ms.is_some() && !self.cx.settings.kind.has_admin() {
                    return drop(reply.send(Err(no_admin())));
                }
                let given = self.cx.settings.kind.haproxy().zip(how.caller);
                let command = match given.map(|(haproxy, caller)| haproxy.of(caller)).transpose() {
                    Ok(command) => command,
                    Err(error) => return drop(reply.send(Err(refused(&error)))),
                };
                let lacks = command.as_ref().and_then(|it| self.master.lacks(&it.command));
                // A service that is being shut down is started with it.
                if let Some(socket) = lacks.filter(|_| !self.timeline.is_shutting_down()) {
                    return drop(reply.send(Err(no_master_cli(socket))));
                }
                let options = Options {
                    command,
                    allow_empty: how.allow_empty,
                    drained: how.wait_drained_ms.map(Duration::from_millis),
                    drain_idle: how.drain_idle_ms.map(Duration::from_millis),
                    drain_timeout: how.drain_timeout_ms.map(Duration::from_millis),
                    at_once: how.at_once,
                };
                let client = Client { reply, options };
                self.reload(Some(client), "a client asked for it", Some(pid));
            }
            Command::Retire(wanted, reply, by) => {
                let wanted = wanted.map(GenerationId);
                let id = match retire::choose(&self.cx.settings.service, &self.timeline, wanted) {
                    Ok(id) => id,
                    Err(error) => return drop(reply.send(Err(error))),
                };
                let known = self.generations.get(&id);
                let pid = known.map(Generation::pid);
                let connections = known.and_then(|generation| generation.drain.connections);
                tracing::info!(
                    generation = id.0,
                    pid,
                    connections,
                    sender = by,
                    "retire requested"
                );
                self.requests.retirements.push(Retirement { id, pid, connections, reply });
                self.feed(Event::Retire(id));
            }
            Command::Upgrade(reply) => self.want_upgrade(reply),
            Command::Leave(reply, by) => self.want_leave(reply, by),
            Command::Status(reply) => self.view().tell_status(reply),
            Command::State(reply) => self.view().tell_state(reply),
            Command::Ping(reply) => self.view().tell_alive(reply),
        }
    }

    /// A starting generation makes progress, which extends its deadline.
    fn progress(&mut self, id: GenerationId) {
        self.report.announcer.more_time(self.cx.settings.timing.ready_timeout);
        self.feed(Event::Progress(id));
    }

    /// Begins a reload, with its reason, the client that waits for it, and the pid that asked.
    pub(crate) fn reload(&mut self, client: Option<Client>, why: &str, pid: Option<i32>) -> Caller {
        self.cx.journal.record(Happening::new(event::Kind::ReloadAsked, why).pid(pid));
        let running = self.timeline.callers();
        let apart = client.as_ref().is_some_and(|client| self.requests.is_apart(client, running));
        let caller = self.requests.reload(client);
        self.feed(if apart { Event::ReloadApart(caller) } else { Event::Reload(caller) });
        if self.timeline.is_idle()
            && let Some(due) = self.timeline.reload_due()
        {
            let due = duration::format(due.saturating_sub(self.cx.now()));
            let waiting = self.timeline.reloads_waiting();
            tracing::info!(waiting, "the reload begins in {due} (--min-interval)");
        }
        caller
    }

    /// Carries out what a signal to the supervisor asks for.
    pub(crate) fn signal(&mut self, signal: Received) {
        let (name, pid) = (signal.signo.as_str(), signal.pid);
        let is_shutting_down = self.timeline.is_shutting_down();
        let Context { settings, reporter, .. } = &self.cx;
        match signals::read(signal, settings, &self.generations, reporter, is_shutting_down) {
            Wanted::Nothing => {}
            Wanted::Reload => {
                if let Some(left_out) = reporter.refused(signal.uid, name) {
                    tracing::info!(signal = name, sender = pid, left_out, "reload requested");
                }
                self.reload(None, name, Some(pid));
            }
            Wanted::Shutdown => self.shut_down(name, signal),
            Wanted::End(by) => {
                let haproxy = self.cx.settings.kind.haproxy();
                let is_master = haproxy.is_some_and(|it| it.command.role.master.is_some())
                    || self.starts.newest().is_some_and(|rendering| rendering.mode.is_master);
                self.end.at_once(by, is_master);
                self.shut_down(name, signal);
                // A second shutdown event ends the draining generations.
                self.feed(Event::Shutdown);
            }
            Wanted::Ready(id) => self.ready(id, "it has bound everything"),
            Wanted::Address(id) => {
                if self.can_let_go(id) {
                    self.feed(Event::AddressInUse(id));
                }
                let text = "cannot bind an address; it asks the older haproxy to let go of it";
                self.wants_address(id, signal, text);
            }
            Wanted::NoAddress(id) => {
                self.feed(Event::GaveUp(id));
                // haproxy sends it at the end of every start that fails once all is bound.
                if self.generations.get(&id).is_some_and(|one| one.own.wanted.is_some()) {
                    let text = "has given up on the address that it cannot bind";
                    self.wants_address(id, signal, text);
                }
            }
        }
    }

    fn shut_down(&mut self, name: &'static str, signal: Received) {
        let Received { pid, uid, .. } = signal;
        if let Some(left_out) = self.cx.reporter.refused(uid, name) {
            tracing::info!(signal = name, sender = pid, left_out, "shutdown requested");
        }
        let text = format!("shutdown requested: {name}");
        let happening = Happening::new(event::Kind::SupervisorEnding, text);
        self.cx.journal.record(happening.pid(pid));
        self.report.announcer.stopping();
        self.refuse_upgrade();
        self.feed(Event::Shutdown);
    }

    fn wants_address(&mut self, id: GenerationId, signal: Received, text: &str) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        if generation.own.wanted.replace(signal.signo) != Some(signal.signo)
            && let Some(left_out) = self.cx.reporter.refused(signal.uid, signal.signo.as_str())
        {
            tracing::warn!(generation = id.0, sender = signal.pid, left_out, "{text}");
        }
    }

    /// The serving generation will soon stop, or another worker of its own master serves. A
    /// generation of ours takes over in order, with the current files.
    pub(crate) fn leaves(&mut self, id: GenerationId, how: &'static str) {
        if self.timeline.serving() != Some(id) {
            return;
        }
        tracing::warn!(generation = id.0, "{how}: reloading, since only that replaces it in order");
        let why = Happening::new(event::Kind::ReloadAsked, how);
        self.cx.journal.record(why);
        let caller = self.requests.reload(None);
        self.feed(Event::ReloadAtOnce(caller));
    }

    /// A new generation has bound everything and is held at its readiness.
    pub(crate) fn held(&mut self, id: GenerationId, hold: Rc<Hold>) {
        match self.generations.get_mut(&id) {
            Some(generation) if !generation.readiness.ready => {
                generation.hold(hold);
            }
            // The generation was ready by another sign already, or is gone.
            _ => return hold.release(),
        }
        self.ready(id, "it has bound everything, and is held");
    }
}
