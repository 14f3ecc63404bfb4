//! What the loop does when the process of a generation has started, has ended, or is known to have
//! closed its listeners.
//!
//! Under the name of haproxy the log omits the messages of this module (`serve` in `cli/stand_in`):
//! haproxy prints its own.

use std::collections::BTreeSet;

use bindonce_core::address::Address;
use bindonce_core::event;
use bindonce_core::generation::{Event, GenerationId, State};
use bindonce_haproxy::config::{Binding, Rendering};
use bindonce_sys::clock;
use bindonce_sys::process::Exit;
use bindonce_sys::watch::Watch;

use crate::broker::leases;
use crate::error::Error;
use crate::generations::admin::Admin;
use crate::generations::drain::Drain;
use crate::generations::generation::{Generation, GivenBack};
use crate::generations::listeners::put_options_back;
use crate::generations::own_addresses;
use crate::generations::process::{self, Process};
use crate::generations::progress;
use crate::generations::start::Launched;
use crate::handover::readiness;
use crate::intercept;
use crate::program::Readiness;
use crate::report::cause::{Cause, Unseen, nothing_to_listen_on};
use crate::supervisor::Supervisor;

impl Supervisor {
    pub(crate) fn launched(&mut self, id: GenerationId, launched: Launched) {
        let Some(starting) = self.starts.end(id) else {
            // The start was called off while this message was on its way.
            return process::end_quietly(launched.pidfd);
        };
        // First, since a process that cannot be watched is ended: none may be left unknown.
        let ended = match Watch::new(&launched.pidfd) {
            Ok(ended) => ended,
            Err(error) => {
                let (name, pid) = (self.cx.settings.kind.name(), launched.pidfd.pid());
                let text = format!("{name}, pid {pid}, cannot be watched: {error}");
                let hint = Error::system("watch a process")(error).hint();
                self.report.failure = Cause::new(text, hint);
                process::end_quietly(launched.pidfd);
                return self.feed(Event::StartFailed(id));
            }
        };
        let rendering = launched.prepared.rendering();
        let master_worker = rendering.is_some_and(|rendering| rendering.mode.master_worker);
        let no_epoll = self.handover.ghosts.no_epoll()
            || rendering.is_some_and(|rendering| rendering.mode.no_epoll);
        let devices = rendering.map(Rendering::haproxys_devices).unwrap_or_default();
        // A path stays bound: the process that made the socket made the path too.
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
            ended,
            admin,
            stderr: launched.stderr.map(|stderr| (stderr, launched.messages)),
            master_worker,
            no_epoll,
            listeners: launched.listeners,
            lease: Some(launched.lease),
            started: clock::now(),
        };
        let created = process.listeners.iter().filter(|held| held.created);
        let created: Vec<_> = created.map(|held| held.label.clone()).collect();
        let (pid, listeners) = (process.pidfd.pid(), process.listeners.len());
        let mut generation = process::take_on(&self.cx, &self.leases, id, process);
        generation.start.begun = Some(starting.begun);
        generation.lease.changes = launched.changes;
        generation.drain = Drain::of_new();
        generation.own.devices = devices;
        // A generation does not report the listeners that it was given at its start.
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
        if let Some(rendering) = self.rendering(id) {
            own_addresses::warn_of_devices(&self.cx, id, pid, rendering);
        }
        process::warn_of_limit(listeners);
        self.record(id, event::Kind::GenerationStarted, format!("started; listeners: {listeners}"));
        if !created.is_empty() {
            self.record(id, event::Kind::ListenerBound, format!("bound: {}", created.join(" ")));
        }
        // This start has claimed its listeners: those that it left out need not wait for it.
        self.give_back();
    }

    pub(crate) fn exited(&mut self, id: GenerationId, exit: Option<Exit>) {
        let how = exit.map_or_else(|| "no known exit code".to_owned(), |exit| exit.to_string());
        let cut = self.generations.get_mut(&id).map_or(0, Generation::cut);
        self.cut(id, cut);
        if let Some(generation) = self.generations.get(&id) {
            let pid = generation.pid();
            let state = self.timeline.state_of(id);
            // A signal that ends a start script may not have reached its haproxy.
            let drained = generation.lease.served && generation.lease.closed;
            if !drained && self.cx.settings.kind.haproxy().is_some() {
                let left = process::kill_holders(pid, &generation.inodes());
                if left > 0 {
                    tracing::warn!(
                        generation = id.0,
                        pid,
                        left,
                        "killed processes that it left behind with its listeners open"
                    );
                }
            }
            if !generation.lease.served {
                // Before an older generation that was paused for it accepts again.
                put_options_back(id, &generation.listeners);
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
                format!("{name}, pid {pid}, ended with {how} and printed no message")
            } else {
                format!("{name}, pid {pid}, ended with {how}")
            };
            let hint = generation.own.wanted.map(|_| {
                let serving = self.timeline.serving();
                let any = [Some(id), serving].into_iter().flatten();
                let mut renderings = any.filter_map(|id| self.rendering(id));
                let no_reuse_port = renderings.any(|rendering| rendering.no_reuse_port);
                let mut left = self.rendering(id).into_iter().flat_map(|it| &it.left_alone);
                let without_device = left.find_map(|left| Some((left, left.device.as_deref()?)));
                match without_device {
                    Some((line, device)) => own_addresses::device_hint(line, device),
                    None => own_addresses::address_hint(self.can_let_go(id), no_reuse_port),
                }
            });
            let refused = generation.readiness.refused.clone();
            let in_its_words = !words.is_empty() && hint.is_none();
            let program = self.cx.settings.kind.program();
            let unseen = program.is_some_and(|it| it.readiness == Readiness::Listen)
                && generation.readiness.listening.is_empty();
            let why = if generation.listeners.is_empty() { Unseen::Bind } else { Unseen::Listen };
            let unseen = unseen.then_some(why);
            let hint = hint.or_else(|| nothing_to_listen_on(&words));
            let cause = Cause { words, in_its_words, unseen, ..Cause::new(text, hint) };
            self.report.failure = refused.unwrap_or(cause);
        }
        self.feed(Event::Exited(id));
    }

    pub(crate) fn found_foreign(
        &mut self,
        id: GenerationId,
        addresses: BTreeSet<String>,
        unseen: &BTreeSet<String>,
    ) {
        let rendering = self.timeline.configuration_of(id).and_then(|of| self.starts.rendering(of));
        if let Some(generation) = self.generations.get_mut(&id) {
            generation.own.bound = addresses;
            generation.own.unseen.clone_from(unseen);
            let fixed = own_addresses::cannot_let_go(generation, self.starts.version);
            self.report.foreign.tell(&self.cx, generation, rendering, fixed, unseen);
        }
    }

    /// Ends the leases of generations that have closed their listeners, except on listeners that
    /// another generation needs because it accepts or is about to. Then has the listeners released.
    pub(crate) fn give_back(&mut self) {
        if self.timeline.serving().is_none() {
            // Clients wait in the queues for the next generation.
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
            self.leases.open.extend(of_master);
        }
        leases::release_after(&self.cx, ended);
    }

    /// Releases the listeners that exist because of this service and that no generation has.
    pub(crate) fn release_unused(&mut self) {
        if self.timeline.serving().is_none() || self.starts.in_progress() {
            // A start in progress may be about to claim them. They are released next time.
            return;
        }
        let (unused, open) = self.leases.take_unused(&self.generations.used());
        if !unused.is_empty() {
            self.save();
            leases::release(&self.cx, unused, open);
        }
    }
}
