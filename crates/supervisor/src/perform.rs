//! Performing what the timeline says.

use std::rc::Rc;
use std::time::Instant;

use bindonce_core::event;
use bindonce_core::generation::{
    Action, Caller, Configuration, Event, GenerationId, Outcome, Reason, Signal, State,
};
use bindonce_sys::signals::Signal as Number;
use bindonce_sys::tree;

use crate::generations::server_state;
use crate::generations::start;
use crate::handover::promise;
use crate::handover::watchdog::{Duty, Named};
use crate::message::Message;
use crate::report::Cause;
use crate::supervisor::Supervisor;

impl Supervisor {
    pub(crate) fn perform(&mut self, action: Action) {
        match action {
            Action::Start { id, configuration, older_alive } => {
                self.start(id, configuration, older_alive);
            }
            Action::Guard { newer, paused } => self.guard(newer, &paused),
            Action::Signal { id, signal, reason } => self.send_signal(id, signal, reason),
            Action::Prove { newer, older } => self.prove(newer, &older),
            Action::EndProof => self.handover.end_watch(),
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
                self.report.counts.restarts += 1;
                let wait = bindonce_core::duration::format(after);
                if rollback {
                    let text = format!(
                        "the newest configuration (generation {died}) keeps dying; going back to \
                         the last one that worked (generation {configuration}) in {wait}: correct \
                         the files, then run `bindonce reload`"
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
            Action::Exit(ending) => self.ending = Some(ending),
        }
    }

    fn start(&mut self, id: GenerationId, configuration: Configuration, older_alive: bool) {
        // The id must never be used again, whatever becomes of us.
        self.save();
        if self.timeline.serving().is_some() {
            self.report.announcer.reloading();
        }
        if configuration == Configuration::Fresh {
            self.report.measured.begun = Some(Instant::now());
        }
        self.requests.wait_for(None, None);
        let known = match configuration {
            Configuration::Fresh => None,
            Configuration::Of(of) => self.starts.configurations.get(&of).cloned(),
        };
        let again = self.starts.read();
        let held = self.generations.values().flat_map(|generation| &generation.listeners);
        let devices = held.filter_map(|held| held.listener.options.interface.clone()).collect();
        let mut served = self.served();
        if configuration == Configuration::Fresh && self.requests.take_allow_empty() {
            self.starts.may_be_empty = Some(id);
            served.clear();
        }
        let settings = Rc::clone(&self.settings);
        let directory = Rc::clone(&self.directory);
        let sender = self.sender.clone();
        let no_epoll = self.starts.no_epoll;
        let alone = self.timeline.serving().is_none();
        let watchdog = self.handover.watchdog();
        let serving =
            self.timeline.serving().and_then(|id| self.generations.get(&id)?.admin.clone());
        let descriptors = self.descriptors();
        let step = start::Step::default();
        let now = step.clone();
        let task = crate::tasks::spawn(async move {
            let prepared = match known {
                Some(prepared) => Ok(prepared),
                None => {
                    let how = start::Reading { again, alone, no_epoll, devices };
                    start::prepare(&settings, &directory, id, how).await.map(Rc::new)
                }
            };
            let prepared = prepared.and_then(|prepared| {
                let rendering = prepared.rendering();
                rendering.map_or(Ok(()), |r| promise::keeps_something(r, served))?;
                Ok(prepared)
            });
            let launched = match prepared {
                Ok(prepared) => {
                    if let (Some(serving), Some(rendering)) = (serving, prepared.rendering()) {
                        now.set("asking the serving haproxy for the state of its servers");
                        server_state::carry(rendering, &serving).await;
                    }
                    let how = start::How { older_alive, no_epoll, alone, known: descriptors };
                    // Until it has taken over, our death must not leave it beside the older one.
                    let tell = |pid| {
                        if older_alive {
                            let end = |newer| Duty::End { newer, paused: Vec::new() };
                            let duty = Named::of(pid).map_or(Duty::None, end);
                            watchdog.borrow_mut().tell(&duty);
                        }
                    };
                    start::launch(&settings, &directory, id, prepared, how, &now, tell).await
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
        self.starts.begin(id, start::Starting { task: task.abort_handle(), step });
    }

    fn send_signal(&mut self, id: GenerationId, signal: Signal, reason: Reason) {
        let number = match signal {
            Signal::Stop => Number::SIGSTOP,
            Signal::Continue => Number::SIGCONT,
            Signal::Pause => Number::SIGTTOU,
            Signal::Resume => Number::SIGTTIN,
            Signal::SoftStop => self.settings.kind.retire(),
            Signal::Terminate => Number::SIGTERM,
            Signal::Kill => Number::SIGKILL,
        };
        if let Some(starting) = self.starts.end(id) {
            // There is no process yet; should one be on its way to us, it is ended on arrival.
            starting.task.abort();
            self.called_off(id, reason, &starting.step);
            return self.later(Event::StartFailed(id));
        }
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let pid = generation.pid();
        let held = generation.hold.is_some();
        let is_program = self.settings.kind.program().is_some();
        let sent = match signal {
            // One that somebody has stopped would not hear it.
            Signal::SoftStop if is_program && reason == Reason::Again => {
                let sent = generation.pidfd.send(number);
                tree::signal(pid, Number::SIGCONT);
                sent
            }
            // It waits inside the call that said that it is ready.
            Signal::Stop if held => return,
            Signal::Continue if held => return generation.let_go_on(),
            // It has accepted nothing, and heeds no other signal there.
            Signal::Terminate if held => generation.pidfd.send(Number::SIGKILL),
            // Every process of it may accept, and none may outlive its generation.
            Signal::Stop | Signal::Kill => {
                tree::signal_all(pid, number);
                Ok(())
            }
            Signal::Continue => {
                tree::signal(pid, number);
                Ok(())
            }
            _ => generation.pidfd.send(number),
        };
        self.report.signalled(id, pid, number, reason);
        if signal == Signal::Resume && self.timeline.serving() == Some(id) {
            let late = self.ask_resumed(id);
            self.requests.wait_for(None, late);
        }
        if let Err(error) = sent {
            // It has just ended by itself; its end is on its way to us.
            tracing::debug!(generation = id.0, pid, %error, "signal not sent");
        }
    }

    /// A start was given up before there was a process.
    fn called_off(&mut self, id: GenerationId, reason: Reason, step: &start::Step) {
        let doing = step.get();
        let text = match reason {
            Reason::NotReady => format!(
                "generation {id} was not started within {}: still {doing}",
                bindonce_core::duration::format(self.settings.timing.ready_timeout)
            ),
            _ => format!("the start of generation {id} was called off while {doing}"),
        };
        tracing::error!(generation = id.0, "{text}");
        self.record(id, event::Kind::GenerationFailed, text.as_str());
        let hint = "see why that takes so long, or raise --ready-timeout; then run `bindonce reload` again";
        self.report.failure = Cause {
            text,
            hint: (reason == Reason::NotReady).then(|| hint.to_owned()),
            ..Cause::default()
        };
    }

    fn serving(&mut self, id: GenerationId) {
        self.handover.tell(&Duty::None);
        let mut confirmed = None;
        if let Some(generation) = self.generations.get_mut(&id) {
            generation.served = true;
            generation.let_go_on();
            confirmed = Some(generation.tell(State::Serving));
            let pid = generation.pid();
            tracing::info!(generation = id.0, pid, "serving");
            self.record(id, event::Kind::GenerationServing, "serving");
            self.report.measured.serves();
            self.report.announcer.ready(&format!("generation {id} serves, pid {pid}"));
        }
        self.save();
        self.requests.wait_for(confirmed, self.ask_late(id));
        self.give_back();
        self.watch_serving(id);
        self.write_pid_file(id);
        self.look_for_foreign(id);
    }

    fn answer(&mut self, callers: &[Caller], outcome: &Outcome) {
        let answer = self.outcome(outcome);
        if let Outcome::Failed(..) = outcome {
            let status = match self.timeline.serving() {
                Some(serving) => format!("the last reload failed; generation {serving} serves on"),
                None => "nothing serves".to_owned(),
            };
            self.report.announcer.troubled(&status);
        }
        self.requests.answer(callers, answer);
    }
}
