//! What a message or a signal makes the loop do, one at a time: it changes the parts that it concerns, and becomes an event for
//! the timeline.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::generation::{Caller, Event, GenerationId, State};
use bindonce_core::{duration, event};
use bindonce_daemon::Happening;
use bindonce_haproxy::config::{Binding, Rendering};
use bindonce_sys::clock;
use bindonce_sys::hold::Hold;
use bindonce_sys::process::Exit;
use bindonce_sys::signals::Received;
use bindonce_wire::{ErrorCode, RpcError};

use crate::broker::leases;
use crate::context::Context;
use crate::control::requests::{Client, Retirement};
use crate::control::signals::{self, Wanted};
use crate::control::{Command, retire};
use crate::generations::admin::Admin;
use crate::generations::generation::{Generation, GivenBack, Start};
use crate::generations::own;
use crate::generations::process::{self, Process};
use crate::generations::progress;
use crate::generations::since::Since;
use crate::generations::start::Launched;
use crate::handover::readiness;
use crate::intercept;
use crate::message::Message;
use crate::program::Readiness;
use crate::report::cause::{Cause, nothing_to_listen_on};
use crate::supervisor::Supervisor;

/// The answer to a client whose command cannot be started.
fn refused(error: &crate::error::Error) -> RpcError {
    RpcError::new(ErrorCode::INVALID_PARAMS, error.to_string())
}

/// The answer to a client who wants idle connections closed of what has no admin connection.
fn no_admin() -> RpcError {
    let text = "idle connections cannot be closed: only haproxy tells which they are, on its private admin socket";
    RpcError::new(ErrorCode::INVALID_PARAMS, text)
        .with_hint("leave out --drain-idle, or --no-admin of `bindonce run`")
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
            Message::Listens(id, missing, proof) => self.listens(id, missing.as_deref(), proof),
            Message::Launched(id, launched) => self.launched(id, *launched),
            Message::Preset(id, preset) => {
                // One that was called off will count nothing.
                if self.starts.is_in_progress(id) {
                    self.counting.preset(id, preset);
                }
            }
            Message::NotLaunched(id, error) => {
                self.starts.end(id);
                self.counting.gone(id);
                let text = error.to_string();
                self.record(id, event::Kind::GenerationFailed, format!("not started: {text}"));
                self.report.failed(Cause::new(text, error.hint()));
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
                self.starts.watched.seen = Some(contents);
                tracing::info!("reload: the files that are watched have changed");
                self.reload(None, "the files that are watched have changed", None);
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
                    generation.connections = Some(connections);
                }
                self.feed(Event::Connections(id, connections));
            }
            Message::CannotTell(id) => {
                if let Some(generation) = self.generations.get_mut(&id)
                    && !generation.pidfd.has_ended()
                {
                    generation.connections = None;
                }
            }
            Message::Counts(id, counts, drains) => {
                if let Some(generation) = self.generations.get_mut(&id)
                    && let Some(before) = generation.drain.counted.replace(counts)
                {
                    let more = counts.less(before);
                    // It was one before an upgrade, too.
                    let drains = drains || generation.drain.since.is_some();
                    if drains {
                        generation.drain.since.get_or_insert_default().add(more);
                    }
                    self.report.served(more, drains);
                }
            }
            Message::IdleClosed(id, count) => {
                if let Some(generation) = self.generations.get_mut(&id) {
                    generation.drain.idle_closed += count;
                    self.report.idle_closed(count);
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
            Message::NotReleased(kept) => self.leases.add(kept),
            Message::Detached(id, detached) => {
                if let Some(pid) = self.generations.pid(id) {
                    self.report.ghosts_removed(detached.removed);
                    self.handover.ghosts.ended(&self.cx, id, pid, detached);
                }
            }
            // Its count, and what was said at it: no client waits for the disk.
            Message::Answered => self.save(),
            Message::Foreign(id, addresses, unseen) => self.found_foreign(id, addresses, &unseen),
            Message::Proved(proved) => self.upgrade_now(proved),
            Message::Scraped(reply) => self.scraped(reply),
            Message::Page(reply) => self.answer_scrape(reply),
            Message::Counted(id, told) => {
                // One that is gone has told before.
                if self.generations.get(&id).is_some() {
                    self.counting.told(id, told);
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
                if let Some((haproxy, caller)) = self.cx.settings.kind.haproxy().zip(how.caller) {
                    match haproxy.of(caller) {
                        Ok(haproxy) => self.starts.want(haproxy),
                        Err(error) => return drop(reply.send(Err(refused(&error)))),
                    }
                }
                if how.allow_empty {
                    self.requests.allow_empty();
                }
                if how.at_once {
                    self.master.hard = true;
                }
                let drained = how.wait_drained_ms.map(Duration::from_millis);
                let drain_idle = how.drain_idle_ms.map(Duration::from_millis);
                if drain_idle.is_some() && !self.cx.settings.kind.has_admin() {
                    return drop(reply.send(Err(no_admin())));
                }
                let drain_timeout = how.drain_timeout_ms.map(Duration::from_millis);
                let client = Client { reply, drained, drain_idle, drain_timeout };
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
                let connections = known.and_then(|generation| generation.connections);
                tracing::info!(generation = id.0, pid, connections, sender = by, "asked to end it");
                self.requests.await_end(Retirement { id, pid, connections, reply });
                self.feed(Event::Retire(id));
            }
            Command::Upgrade(reply) => self.upgrade.want(reply),
            Command::Status(reply) => self.view().tell_status(reply),
            Command::State(reply) => self.view().tell_state(reply),
            Command::Ping(reply) => self.view().tell_alive(reply),
        }
    }

    /// A generation that starts makes progress: it has more time.
    fn progress(&mut self, id: GenerationId) {
        self.report.announcer.more_time(self.cx.settings.timing.ready_timeout);
        self.feed(Event::Progress(id));
    }

    /// Begins a reload, for this reason, and for the client that waits for it.
    pub(crate) fn reload(&mut self, client: Option<Client>, why: &str, pid: Option<i32>) -> Caller {
        self.cx.journal.record(Happening::new(event::Kind::ReloadAsked, why).pid(pid));
        let caller = self.requests.reload(client);
        self.feed(Event::Reload(caller));
        if self.timeline.is_idle()
            && let Some(due) = self.timeline.reload_due()
        {
            let due = duration::format(due.saturating_sub(self.epoch.elapsed()));
            let waiting = self.timeline.reloads_waiting();
            tracing::info!(waiting, "the reload begins in {due} (--min-interval)");
        }
        caller
    }

    /// Does what a signal to the supervisor asks for.
    pub(crate) fn signal(&mut self, signal: Received) {
        let (name, pid) = (signal.signo.as_str(), signal.pid);
        let is_shutting_down = self.timeline.is_shutting_down();
        let Context { settings, reporter, .. } = &self.cx;
        match signals::read(signal, settings, &self.generations, reporter, is_shutting_down) {
            Wanted::Nothing => {}
            Wanted::Reload => {
                if let Some(left_out) = reporter.refused(signal.uid, name) {
                    tracing::info!(signal = name, sender = pid, left_out, "reload asked for");
                }
                self.reload(None, name, Some(pid));
            }
            Wanted::Shutdown => self.shut_down(name, signal),
            Wanted::End(by) => {
                let haproxy = self.cx.settings.kind.haproxy();
                let is_master = haproxy.is_some_and(|it| it.command.role.master.is_some())
                    || self.starts.newest().is_some_and(|rendering| rendering.is_master);
                self.ended_by.get_or_insert((by, is_master));
                self.shut_down(name, signal);
                // The second one ends what drains.
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
                self.wants_address(id, signal, "has given up on the address that it cannot bind");
            }
        }
    }

    fn shut_down(&mut self, name: &'static str, signal: Received) {
        let Received { pid, uid, .. } = signal;
        if let Some(left_out) = self.cx.reporter.refused(uid, name) {
            tracing::info!(signal = name, sender = pid, left_out, "shutdown asked for");
        }
        let text = format!("shutdown asked for: {name}");
        let happening = Happening::new(event::Kind::SupervisorEnding, text);
        self.cx.journal.record(happening.pid(pid));
        self.report.announcer.stopping();
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

    /// The generation that serves will soon stop, or another worker of it serves: a generation of ours takes over in order,
    /// with the files as they are now.
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

    /// A process was started for a generation.
    pub(crate) fn launched(&mut self, id: GenerationId, launched: Launched) {
        let Some(starting) = self.starts.end(id) else {
            // It was called off while the process was on its way to us.
            return process::end_quietly(launched.pidfd);
        };
        let rendering = launched.prepared.rendering();
        let master_worker = rendering.is_some_and(|rendering| rendering.master_worker);
        let devices = rendering.map(Rendering::haproxys_devices).unwrap_or_default();
        // A path stays: the process that made the socket made the path too.
        let bindings = rendering.map(|rendering| rendering.bindings.as_slice()).unwrap_or_default();
        let goes = |binding: &Binding| {
            binding.inherited.is_some() && !matches!(binding.listener.address, Address::Unix(_))
        };
        let passed = bindings.iter().zip(&launched.listeners).filter(|(binding, _)| goes(binding));
        let passed: Vec<_> = passed.map(|(_, held)| held.label.clone()).collect();
        self.starts.started_on(id, launched.prepared);
        let admin =
            launched.admin.map(|path| Admin::connect(path, process::on_answer(&self.cx, id)));
        let process = Process {
            pidfd: launched.pidfd,
            admin,
            stderr: launched.stderr.map(|stderr| (stderr, launched.messages)),
            master_worker,
            listeners: launched.listeners,
            lease: Some(launched.lease),
            started: clock::now(),
        };
        let created = process.listeners.iter().filter(|held| held.created);
        let created: Vec<_> = created.map(|held| held.label.clone()).collect();
        let (pid, listeners) = (process.pidfd.pid(), process.listeners.len());
        let mut generation = match process::take_on(&self.cx, &self.leases, id, process) {
            Ok(generation) => generation,
            Err(error) => {
                let name = self.cx.settings.kind.name();
                let text = format!("{name}, pid {pid}, cannot be watched: {error}");
                self.report.failed(Cause::new(text, None));
                return self.feed(Event::StartFailed(id));
            }
        };
        generation.start = Start::Begun(starting.begun);
        generation.drain.counted = Some(Since::default());
        generation.own.devices = devices;
        // What it was given at its start it does not say that it listens on.
        generation.readiness.listening.extend(generation.inodes());
        if let Some(shim) = launched.shim {
            intercept::begin(&self.cx, self.handover.watchdog(), id, shim);
        }
        readiness::await_ready(&self.cx, &mut generation, launched.notifications);
        progress::watch(&self.cx, &generation);
        self.generations.insert(generation);
        self.feed(Event::Progress(id));
        self.leases.add(created.iter().cloned().chain(passed));
        self.save();
        tracing::info!(generation = id.0, pid, listeners, "started");
        process::warn_of_limit(listeners);
        self.record(id, event::Kind::GenerationStarted, format!("started; listeners: {listeners}"));
        if !created.is_empty() {
            self.record(id, event::Kind::ListenerBound, format!("bound: {}", created.join(" ")));
        }
    }

    /// A new generation has bound everything, and is held.
    pub(crate) fn held(&mut self, id: GenerationId, hold: Rc<Hold>) {
        match self.generations.get_mut(&id) {
            Some(generation) if !generation.readiness.ready => {
                generation.hold(hold);
            }
            // It has become ready by another sign, or is gone.
            _ => return hold.release(),
        }
        self.ready(id, "it has bound everything, and is held");
    }

    pub(crate) fn exited(&mut self, id: GenerationId, exit: Option<Exit>) {
        let how = exit.map_or_else(|| "no known exit code".to_owned(), |exit| exit.to_string());
        let cut = self.generations.get_mut(&id).map_or(0, Generation::cut);
        self.cut(id, cut);
        if let Some(generation) = self.generations.get(&id) {
            let pid = generation.pid();
            let state = self.timeline.state_of(id);
            let drained = generation.lease.served && state == Some(State::Draining);
            if !drained && self.cx.settings.kind.haproxy().is_some() {
                let left = process::kill_holders(pid, &generation.inodes());
                if left > 0 {
                    tracing::warn!(
                        generation = id.0,
                        pid,
                        left,
                        "killed what it left with its listeners open"
                    );
                }
            }
            let (kind, text) = match state {
                Some(State::Draining) => (event::Kind::GenerationGone, "gone"),
                Some(State::Serving) => (event::Kind::GenerationDied, "died while it served"),
                _ => (event::Kind::GenerationFailed, "did not come up"),
            };
            let cut = match (cut, generation.output.tail.cut()) {
                (0, _) => String::new(),
                (cut, 0) => format!("; connections cut: {cut}"),
                (cut, _) => format!("; connections cut (hard-stop-after): {cut}"),
            };
            let text = format!("{text}: {how}{cut}");
            match kind {
                event::Kind::GenerationGone => tracing::info!(generation = id.0, pid, "{text}"),
                _ => tracing::error!(generation = id.0, pid, "{text}"),
            }
            self.record(id, kind, text);
            self.master.failing = Some((id, generation.output.tail.clone()));
            let words = generation.output.tail.text();
            let name = self.cx.settings.kind.name();
            let text = if words.is_empty() {
                format!("{name}, pid {pid}, ended with {how} and said nothing")
            } else {
                format!("{name}, pid {pid}, ended with {how}:\n{words}")
            };
            let hint = generation.own.wanted.map(|_| {
                let serving = self.timeline.serving();
                let any = [Some(id), serving].into_iter().flatten();
                let mut renderings = any.filter_map(|id| self.rendering(id));
                let no_reuse_port = renderings.any(|rendering| rendering.no_reuse_port);
                own::address_hint(self.can_let_go(id), no_reuse_port)
            });
            let refused = generation.readiness.refused.clone();
            let in_its_words = !words.is_empty() && hint.is_none();
            let program = self.cx.settings.kind.program();
            let unseen = program.is_some_and(|it| it.readiness == Readiness::Listen)
                && generation.readiness.listening.is_empty();
            let hint = hint.or_else(|| nothing_to_listen_on(&words));
            let cause = Cause { in_its_words, unseen, ..Cause::new(text, hint) };
            self.report.failed(refused.unwrap_or(cause));
        }
        self.feed(Event::Exited(id));
    }

    fn found_foreign(
        &mut self,
        id: GenerationId,
        addresses: BTreeSet<String>,
        unseen: &BTreeSet<String>,
    ) {
        let rendering = self.timeline.configuration_of(id).and_then(|of| self.starts.rendering(of));
        if let Some(generation) = self.generations.get_mut(&id) {
            generation.own.bound = addresses;
            generation.own.unseen.clone_from(unseen);
            let fixed = own::cannot_let_go(generation, self.starts.version);
            self.report.foreign.tell(&self.cx, generation, rendering, fixed, unseen);
        }
    }

    /// Ends the leases of generations that have closed their listeners, on those that no generation needs that accepts or is about
    /// to; then has the listeners released.
    pub(crate) fn give_back(&mut self) {
        if self.timeline.serving().is_none() {
            // Clients wait in the queues for whatever serves next.
            return;
        }
        let given_back = self.generations.give_back(&self.timeline);
        if !given_back.is_empty() {
            // The next supervisor must not claim them again for a generation that drains.
            self.save();
        }
        let mut ended = Vec::new();
        for GivenBack { known, of_master } in given_back {
            ended.push(known);
            self.leases.left_open(of_master);
        }
        leases::release_after(&self.cx, ended);
    }

    /// Releases the listeners that exist because of this service and that no generation has.
    fn release_unused(&mut self) {
        if self.timeline.serving().is_none() || self.starts.in_progress() {
            // What is being started may claim them in this moment; there is a next time.
            return;
        }
        let (unused, open) = self.leases.take_unused(&self.generations.used());
        if !unused.is_empty() {
            self.save();
            leases::release(&self.cx, unused, open);
        }
    }
}
