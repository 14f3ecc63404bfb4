//! The loop's answers to clients of the master CLI, and the effect of a reload on them.

use std::cell::OnceCell;
use std::rc::Rc;

use bindonce_core::generation::{Caller, Event, GenerationId, Outcome, State};
use bindonce_core::time::Timestamp;
use bindonce_haproxy::cli::Version;
use bindonce_haproxy::cli::master::{Process, Processes};
use bindonce_sys::clock;
use tokio::sync::oneshot;

use super::ask::{Ask, Reloaded, Route, Seen, Startup};
use crate::control::requests::{Client, Options};
use crate::generations::generation::Generation;
use crate::supervisor::Supervisor;

/// Seconds since this time.
fn uptime(since: Timestamp) -> u64 {
    clock::now().0.saturating_sub(since.0) / 1000
}

impl Supervisor {
    pub(crate) fn answer_master_cli(&mut self, ask: Ask) {
        match ask {
            // The client may have gone away, here and below.
            Ask::Begun(reply) if self.master.begins => self.master.beginning.push(reply),
            Ask::Look(reply) | Ask::Begun(reply) => drop(reply.send(self.seen())),
            Ask::Reload { hard, pid, reply } => {
                let (send, outcome) = oneshot::channel();
                let startup = Rc::new(OnceCell::new());
                let options = Options { at_once: hard, ..Options::default() };
                let client = Client { reply: send, options };
                let caller =
                    self.reload(Some(client), "a client of the master CLI asked for it", pid);
                self.master.waiting.insert(caller, Rc::clone(&startup));
                crate::tasks::spawn(async move {
                    let Ok(answer) = outcome.await else { return };
                    let startup = startup.get().map(Startup::text).unwrap_or_default();
                    let said = match &answer {
                        Err(error) if startup.is_empty() => alerts(&error.message),
                        _ => startup,
                    };
                    let _ = reply.send(Reloaded { success: answer.is_ok(), startup: said });
                });
            }
        }
    }

    fn process(&self, generation: &Generation) -> Process {
        Process {
            pid: generation.cli.answers.unwrap_or_else(|| generation.pid()),
            reloads: self.master.history.reloads.saturating_sub(generation.cli.reloads_before),
            uptime: uptime(generation.start.at),
            version: generation.cli.release.clone().unwrap_or_default(),
        }
    }

    fn seen(&mut self) -> Seen {
        let serving = self.timeline.serving().and_then(|id| self.generations.get(&id));
        if let Some(release) = serving.and_then(|generation| generation.cli.release.clone()) {
            self.master.release = release;
        }
        let draining = self
            .generations
            .iter()
            .filter(|generation| self.timeline.state_of(generation.id) == Some(State::Draining));
        let mut old: Vec<&Generation> = draining.collect();
        old.reverse();
        let routes = serving.iter().chain(&old).map(|generation| {
            let serves = self.timeline.serving() == Some(generation.id);
            let socket = (serves && generation.cli.admin.is_some())
                .then(|| self.cx.directory.admin(generation.id));
            (self.process(generation).pid, Route { socket, spares: generation.cli.spares.clone() })
        });
        Seen {
            routes: routes.collect(),
            version: Version::read(&self.master.release),
            processes: Processes {
                master: Process {
                    pid: std::process::id().cast_signed(),
                    reloads: self.master.history.reloads,
                    uptime: uptime(self.master.history.began),
                    version: self.master.release.clone(),
                },
                failed: self.master.history.failed,
                current: serving.map(|generation| self.process(generation)),
                old: old.iter().map(|generation| self.process(generation)).collect(),
            },
            startup: self.master.history.startup.clone(),
        }
    }

    /// A reload begins while this generation serves: opens the connections by which clients of the
    /// master CLI reach it once it drains.
    pub(crate) fn open_spares(&self, serving: GenerationId) {
        self.master.forget();
        let generation = self.generations.get(&serving);
        if let Some(generation) = generation.filter(|generation| generation.cli.admin.is_some())
            && !self.master.sockets.is_empty()
        {
            generation.cli.spares.open(&self.cx.directory.admin(serving));
        }
    }

    /// Ends the older generations if `at_once`, else those that have survived more reloads than the
    /// configuration of `newest` allows.
    fn retire_old(&self, newest: GenerationId, at_once: bool) {
        let most = self.rendering(newest).and_then(|rendering| rendering.mode.max_reloads);
        for id in self.draining() {
            let too_old = most
                .zip(self.generations.get(&id))
                .is_some_and(|(most, old)| self.process(old).reloads > most);
            if at_once || too_old {
                self.cx.later(Event::Retire(id));
            }
        }
    }

    /// Counts a reload, or the first start, that has ended, and keeps its startup messages.
    pub(crate) fn reload_ended(&mut self, callers: &[Caller], outcome: &Outcome) {
        let us = std::process::id();
        let begins = std::mem::take(&mut self.master.begins);
        let counts = u64::from(!begins);
        match outcome {
            Outcome::ShuttingDown => return,
            Outcome::Serving { id, .. } => {
                self.master.history.reloads += counts;
                self.master.history.failed = 0;
                let Some(generation) = self.generations.get_mut(id) else { return };
                generation.cli.reloads_before = self.master.history.reloads;
                let pid = generation.cli.answers.unwrap_or_else(|| generation.pid());
                let version = generation.cli.version.unwrap_or_default();
                let begun = match version >= Version::read("3.1") {
                    true => format!("Initializing new worker ({pid})"),
                    false => format!("New worker ({pid}) forked"),
                };
                self.master.history.startup = Startup {
                    before: format!("[NOTICE]   ({us}) : {begun}\n"),
                    tail: Some(generation.output.tail.clone()),
                    after: format!("[NOTICE]   ({us}) : Loading success.\n"),
                };
                // A start with `-st` may find generations that still drain.
                let at_once = begins && self.cx.settings.first.replaced.at_once;
                self.retire_old(*id, at_once || self.requests.at_once(callers));
            }
            Outcome::Failed(id, _) => {
                self.master.history.reloads += counts;
                self.master.history.failed += counts;
                if let Some(serving) =
                    self.timeline.serving().and_then(|id| self.generations.get(&id))
                {
                    serving.cli.spares.close();
                }
                let tail = self.master.failing.take_if(|(of, _)| of == id).map(|(_, tail)| tail);
                let tail = tail.filter(|tail| !tail.startup().is_empty());
                let cause = &self.report.failure;
                let before = match &tail {
                    Some(_) if !cause.ours => String::new(),
                    _ => alerts(&cause.whole()),
                };
                let after = format!("[WARNING]  ({us}) : Loading failure!\n");
                self.master.history.startup = Startup { before, tail, after };
            }
        }
        for reply in std::mem::take(&mut self.master.beginning) {
            let _ = reply.send(self.seen());
        }
        for caller in callers {
            if let Some(startup) = self.master.waiting.remove(caller) {
                let _ = startup.set(self.master.history.startup.clone());
            }
        }
    }
}

/// Formats one of our messages as haproxy writes its own.
fn alerts(text: &str) -> String {
    let us = std::process::id();
    text.lines().map(|line| format!("[ALERT]    ({us}) : {line}\n")).collect()
}
