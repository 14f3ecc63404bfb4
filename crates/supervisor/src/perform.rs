//! Carries out the timeline's decisions (its actions).

use std::collections::BTreeSet;
use std::time::Duration;

use bindonce_core::event;
use bindonce_core::generation::{
    Action, Caller, Configuration, Event, GenerationId, Outcome, Reason, Signal, State,
};
use bindonce_sys::signals::Signal as Number;
use bindonce_sys::worker;

use crate::control::requests::Awaited;
use crate::disk::directory::remove_all;
use crate::generations::listeners::put_options_back;
use crate::generations::start::moved::Serving;
use crate::generations::start::{self, Plan};
use crate::generations::{counting, foreign, unprivileged, watching};
use crate::handover::promise::Unserved;
use crate::handover::{compare, ghosts};
use crate::message::Message;
use crate::report::cause::{self, Cause};
use crate::report::outcome::Now;
use crate::supervisor::Supervisor;

/// How long the removal of old configurations may take. It runs beside the loop: a busy disk takes
/// hundreds of milliseconds to free a file.
const REMOVAL: Duration = Duration::from_secs(60);

impl Supervisor {
    pub(crate) fn perform(&mut self, action: Action) {
        match action {
            Action::Start { id, configuration, older_alive } => {
                self.start(id, configuration, older_alive);
            }
            Action::Guard { newer, paused } => {
                let signalled = |id| Some(self.generations.get(id)?.signalled());
                let paused = paused.iter().filter_map(signalled).collect();
                if let Some(newer) = self.generations.get(&newer) {
                    self.handover.guard(newer, paused);
                }
            }
            Action::Signal { id, signal, reason } => self.send_signal(id, signal, reason),
            Action::Prove { newer, older } => {
                if let Some(newer) = self.generations.get_mut(&newer) {
                    newer.readiness.stopped |= !newer.is_held();
                }
                self.handover.prove(&self.cx, &self.generations, newer, &older);
            }
            Action::EndProof => self.handover.end_watch(),
            Action::WatchStop(id) => self.watch_stop(id),
            Action::Detach(id) => {
                if let Some(generation) = self.generations.get(&id) {
                    ghosts::detach(&self.cx, generation);
                }
            }
            Action::LetGo(id) => {
                let Some(generation) = self.generations.get(&id) else { return };
                let (cx, pace) = (self.cx.clone(), self.report.counting.pace(id));
                let admin = generation.cli.admin.clone();
                crate::tasks::spawn(async move {
                    if let Some(admin) = admin {
                        counting::ask(&cx, id, &admin, &pace).await;
                    }
                    cx.send(Message::LetGo(id));
                });
            }
            Action::Answer(callers, outcome) => self.answer(&callers, &outcome),
            Action::Serving(id) => self.serving(id),
            Action::Gone(id) => self.gone(id),
            Action::GivenUp(id) => self.given_up(id),
            Action::Restart { died, configuration, after, rollback } => {
                self.report.counts.restarts += 1;
                let wait = bindonce_core::duration::format(after);
                if rollback {
                    let text = format!(
                        "the newest configuration (generation {died}) keeps dying; going back to \
                         the last one that worked (generation {configuration}) in {wait}: correct \
                         the files, then run `{}`",
                        self.cx.settings.command("reload")
                    );
                    tracing::error!("{text}");
                    self.record(died, event::Kind::Rollback, text);
                } else {
                    tracing::warn!(configuration = configuration.0, "starting again in {wait}");
                    let text = format!(
                        "starting the configuration of generation {configuration} again in {wait}"
                    );
                    self.record(died, event::Kind::Restart, text);
                }
            }
            Action::Exit(ending) => self.end.decided = Some(ending),
        }
    }

    /// Closes the admin connection, which keeps a drained process alive.
    pub(crate) fn let_go(&mut self, id: GenerationId) {
        if let Some(generation) = self.generations.get(&id) {
            generation.cli.close();
            tracing::info!(generation = id.0, pid = generation.pid(), "drained");
        }
    }

    fn start(&mut self, id: GenerationId, configuration: Configuration, older_alive: bool) {
        self.mend_directory();
        // The id must never be used again, even if this process dies now.
        self.save();
        let serving = self.timeline.serving();
        if let Some(serving) = serving {
            self.report.announcer.reloading();
            self.open_spares(serving);
        }
        let is_fresh = configuration == Configuration::Fresh;
        if is_fresh {
            self.report.reload_begins();
            self.requests.cut = 0;
        }
        self.requests.awaited = Awaited::default();
        let devices = self.generations.listeners();
        let plan = Plan {
            id,
            configuration,
            read_before: std::mem::replace(&mut self.starts.read_before, true),
            served: self.generations.labels(serving),
            may_be_empty: is_fresh && self.requests.allow_empty(self.timeline.callers()),
            devices: devices.filter_map(|held| held.listener.options.interface.clone()).collect(),
            known: self.generations.descriptors(),
            serving: serving.and_then(|id| self.generations.get(&id)).map(|one| {
                let has = one.listeners.iter().map(|held| &held.listener);
                let has = has.map(|one| (one.key(), one.options.clone())).collect();
                Serving {
                    id: one.id,
                    pid: one.pid(),
                    admin: one.cli.admin.clone(),
                    version: one.cli.version,
                    devices: one.own.devices.clone(),
                    has,
                }
            }),
            older_alive,
            no_epoll: self.handover.ghosts.no_epoll(),
        };
        let wanted = self.requests.command(self.timeline.callers()).filter(|_| is_fresh);
        self.starts.begin(&self.cx, self.handover.watchdog(), plan, wanted);
    }

    fn send_signal(&mut self, id: GenerationId, signal: Signal, reason: Reason) {
        let kind = &self.cx.settings.kind;
        let number = match signal {
            Signal::Stop => Number::SIGSTOP,
            Signal::Continue => Number::SIGCONT,
            Signal::Pause => Number::SIGTTOU,
            Signal::Resume => Number::SIGTTIN,
            Signal::SoftStop => kind.retire(),
            Signal::Terminate => Number::SIGTERM,
            Signal::Kill => Number::SIGKILL,
        };
        if let Some(starting) = self.starts.end(id) {
            // There is no process yet. If one is about to arrive, it is ended on arrival.
            starting.task.abort();
            self.report.counting.gone(id);
            self.called_off(id, reason, &starting.step);
            return self.cx.later(Event::StartFailed(id));
        }
        if signal == Signal::Resume && reason == Reason::NewerDied {
            self.handover.show_leaving(None);
        }
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let pid = generation.pid();
        let ends = matches!(signal, Signal::Terminate | Signal::Kill);
        let cut = if ends { generation.cut() } else { 0 };
        let Some(sent) = generation.signal(signal, number, reason) else { return };
        self.cut(id, cut);
        self.report.signalled(&self.cx, id, pid, number, (reason, cut));
        if signal == Signal::Resume && self.timeline.serving() == Some(id) {
            let listeners = self.generations.get(&id).map(|generation| self.listeners(generation));
            let late = self.generations.get_mut(&id).zip(listeners);
            let late =
                late.and_then(|(one, listeners)| compare::ask_resumed(&self.cx, one, listeners));
            self.requests.awaited = Awaited { late, ..Awaited::default() };
        }
        if let Err(error) = sent {
            // The process has just ended; its exit message is on its way to the loop.
            tracing::debug!(generation = id.0, pid, %error, "signal not sent");
        }
    }

    /// Counts connections that end with their generation.
    pub(crate) fn cut(&mut self, id: GenerationId, count: u64) {
        self.report.counts.connections_cut += count;
        self.requests.cut(id, count);
    }

    /// Reports a start that was given up before there was a process.
    fn called_off(&mut self, id: GenerationId, reason: Reason, step: &start::Step) {
        let doing = step.get();
        let text = match reason {
            Reason::NotReady => format!(
                "generation {id} was not started within {}: still {doing}",
                bindonce_core::duration::format(self.cx.settings.timing.ready_timeout)
            ),
            _ => format!("the start of generation {id} was called off while {doing}"),
        };
        tracing::error!(generation = id.0, "{text}");
        self.record(id, event::Kind::GenerationFailed, text.as_str());
        let hint = (reason == Reason::NotReady).then(|| {
            format!(
                "see why that takes so long, or raise --ready-timeout; then run `{}` again",
                self.cx.settings.command("reload")
            )
        });
        self.report.failure = Cause::new(text, hint);
    }

    fn serving(&mut self, id: GenerationId) {
        self.handover.is_over();
        let Some(generation) = self.generations.get_mut(&id) else { return };
        generation.lease.served = true;
        generation.listeners.iter().for_each(|held| held.keep_options());
        generation.cli.reloads_before = self.master.history.reloads;
        self.master.forget();
        generation.output.started();
        generation.release();
        let (pid, confirmed) = (generation.pid(), generation.tell(State::Serving));
        tracing::info!(generation = id.0, pid, "serving");
        self.cx.record(id, Some(pid), event::Kind::GenerationServing, "serving");
        self.report.serves(id, pid);
        self.watch(id);
        let Some(generation) = self.generations.get(&id) else { return };
        let unseen = foreign::tell(&self.cx, generation);
        if generation.readiness.listens {
            unprivileged::look(&self.cx, generation);
        }
        self.leases.add(self.first.replaced.serves());
        self.save();
        let late = self.generations.get(&id).and_then(|generation| {
            compare::ask_late(&self.cx, generation, self.listeners(generation))
        });
        let changed = self.change_options(id);
        self.requests.awaited =
            Awaited { confirmed: Some(confirmed), late, unseen, changed, ..Awaited::default() };
        self.give_back();
        let of = self.timeline.configuration_of(id);
        if let Some(of) = of {
            self.starts.serves(of, &self.cx.settings.kind);
        }
        let written = of.and_then(|of| self.starts.write_pid_file(of));
        self.master.serve_late(&self.first.replaced.pids);
        let written = self.first.serves(&self.cx, self.generations.get(&id), written);
        self.requests.awaited.pid_file = written;
    }

    fn answer(&mut self, callers: &[Caller], outcome: &Outcome) {
        let now = Now {
            generations: &self.generations,
            serving: self.timeline.serving(),
            unserved: match outcome {
                Outcome::Serving { alone: true, .. } => std::mem::take(&mut self.starts.unserved),
                _ => Unserved::default(),
            },
            broker: self.leases.broker.pid(),
        };
        let serves = now.serving.is_some();
        let answer = self.report.outcome(&self.cx, outcome, now, self.requests.cut);
        if serves && matches!(outcome, Outcome::Failed(..)) {
            self.first.serves_on();
        }
        self.reload_ended(callers, outcome);
        let older = self.draining();
        self.requests.awaited.released = None;
        if let Outcome::Serving { .. } = outcome {
            if let Some(after) = self.requests.drain_timeout(callers) {
                for id in &older {
                    if let Some(generation) = self.generations.get_mut(id) {
                        generation.drain.timeout = Some(after);
                    }
                    self.cx.later(Event::DrainTimeout(*id, after));
                }
            }
            if let Some(after) = self.requests.drain_idle(callers) {
                for generation in older.iter().filter_map(|id| self.generations.get(id)) {
                    generation.drain.idle.set(Some(after));
                }
            }
            let staying = self.generations.staying(self.timeline.serving());
            self.requests.awaited.released = self.leases.await_release(&staying);
        }
        self.requests.answer(&self.cx, callers, answer, older);
    }

    /// The generations that drain.
    pub(crate) fn draining(&self) -> BTreeSet<GenerationId> {
        let all = self.timeline.generations();
        all.filter(|(_, state)| *state == State::Draining).map(|(id, _)| id).collect()
    }

    /// A generation is gone. Its broker connection ends, and with it its leases.
    fn gone(&mut self, id: GenerationId) {
        if let Some(generation) = self.generations.remove(&id) {
            if !generation.lease.served {
                self.handover.show_leaving(Some(id));
            }
            self.handover.is_over_for(&generation);
            self.leases.gone(&self.cx, &generation, &self.generations.used());
        }
        self.give_back();
        self.cx.directory.remove_admin(id);
        self.report.counting.gone(id);
        self.requests.gone(id);
        self.save();
        self.keep_configurations();
        if self.timeline.is_idle() {
            self.handover.is_over();
        }
    }

    /// A generation that was to take over does not end. It keeps its leases until it is gone.
    fn given_up(&mut self, id: GenerationId) {
        let Some(generation) = self.generations.get(&id) else { return };
        put_options_back(id, &generation.listeners);
        self.handover.show_leaving(Some(id));
        self.handover.is_over_for(generation);
        let pid = generation.pid();
        let text = format!("generation {id}, pid {pid}, does not end, though it was sent SIGKILL");
        tracing::error!(generation = id.0, pid, "{text}; going on without it");
        self.record(id, event::Kind::GenerationFailed, text.as_str());
        let refused = self.generations.get(&id).and_then(|it| it.readiness.refused.clone());
        let stuck = || Cause::new(text, Some(cause::does_not_end(pid)));
        self.report.failure = refused.unwrap_or_else(stuck);
    }

    /// Removes the rendered configurations that no generation runs and none will start from again.
    fn keep_configurations(&mut self) {
        let keep: Vec<_> = self.timeline.configurations().collect();
        self.starts.retain(&keep);
        let cx = self.cx.clone();
        let old = cx.directory.old_configurations(&keep);
        crate::tasks::spawn(async move {
            let removed = match old {
                Ok(old) if old.is_empty() => Ok(()),
                Ok(old) => {
                    let removed = worker::within(REMOVAL, move || remove_all(&old)).await;
                    removed.and_then(std::convert::identity)
                }
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::warn!(%error, "old rendered configurations could not be removed");
            }
            cx.directory.tidy();
        });
    }

    /// A generation was told to stop, or has stopped: begins to ask it whether it has.
    fn watch_stop(&mut self, id: GenerationId) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        drop(generation.tell(State::Draining));
        generation.lease.closed = false;
        self.watch(id);
        self.save();
    }

    /// Begins the task that belongs to a generation's state: when it comes to that state, when it
    /// is taken over in it, and when that task was ended for an upgrade that was not done.
    pub(crate) fn watch(&mut self, id: GenerationId) {
        let state = self.timeline.state_of(id);
        let Some(generation) = self.generations.get_mut(&id) else { return };
        match state {
            Some(State::Serving) => watching::watch_serving(&self.cx, generation),
            Some(State::Draining) => {
                watching::watch_stop(&self.cx, generation, self.report.counting.pace(id));
            }
            // What waits for its readiness is begun with its process.
            Some(State::Starting) | None => {}
        }
    }
}
