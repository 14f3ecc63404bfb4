//! Starts of generations: those in progress, and the configurations that may be started again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::rc::Rc;
use std::time::Instant;

use bindonce_core::generation::{Configuration, GenerationId};
use bindonce_haproxy::cli::Version;
use bindonce_haproxy::config::Rendering;

use tokio::task::JoinHandle;

use crate::context::Context;
use crate::disk::pid_file::PidFile;
use crate::error::Error;
use crate::generations::start::{self, Plan, Prepared, Starting, Step};
use crate::generations::{learning, server_state, stats_file};
use crate::handover::promise::{self, Unserved};
use crate::handover::watchdog::{Duty, ProcessRef, Watchdog};
use crate::kind::{Haproxy, Kind};
use crate::message::Message;
use crate::origin::Origin;

/// What the starts of a service need to know of each other.
#[derive(Default)]
pub(crate) struct Starts {
    /// Generations that are being started and have no process yet.
    in_progress: HashMap<GenerationId, Starting>,
    /// Configurations that may be started again.
    configurations: BTreeMap<GenerationId, Rc<Prepared>>,
    /// This process has read the configuration before.
    pub(crate) read_before: bool,
    /// The generation that may have nothing to listen on.
    may_be_empty: Option<GenerationId>,
    /// What the newest generation leaves of what served before it.
    pub(crate) unserved: Unserved,
    pid_file: PidFile,
    /// What the next reload is to be started with; it stays if it serves.
    pub(crate) wanted: Option<Haproxy>,
    /// What a caller has given, since it serves, perhaps to an earlier image of this process.
    pub(crate) given: Option<Haproxy>,
    /// The version of the binary, where no admin socket tells it.
    pub(crate) version: Option<Version>,
    pub(crate) watched: Watched,
}

/// What the files that are watched were, as a hash of all of them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Watched {
    /// When they were last looked at.
    pub(crate) seen: Option<u64>,
    /// When they were last read for a start.
    pub(crate) read: Option<u64>,
}

impl Starts {
    pub(crate) fn new(read_before: bool, version: Option<Version>) -> Self {
        Self { read_before, version, ..Self::default() }
    }

    /// Begins a start beside the loop, which learns how it ended.
    pub(crate) fn begin(&mut self, cx: &Context, watchdog: Rc<RefCell<Watchdog>>, mut plan: Plan) {
        let id = plan.id;
        let prepared = match plan.configuration {
            Configuration::Fresh => {
                self.watched.read = self.watched.seen;
                None
            }
            Configuration::Of(of) => {
                let prepared = self.configurations.get(&of).cloned();
                // Where the directory of it is gone it is written elsewhere.
                let prepared = prepared.filter(|it| it.is_there() || cx.directory.ours().is_ok());
                if prepared.is_none() && cx.settings.kind.haproxy().is_some() {
                    let text = "the rendered copy of this configuration is gone: the files are read instead";
                    tracing::warn!(generation = id.0, configuration = of.0, "{text}");
                }
                prepared
            }
        };
        if plan.may_be_empty {
            self.may_be_empty = Some(id);
            plan.served.clear();
        }
        let given = match plan.configuration {
            Configuration::Fresh => self.wanted.take().or_else(|| self.given.clone()),
            Configuration::Of(_) => None,
        };
        let (inner, step) = (cx.clone(), Step::default());
        let now = step.clone();
        let launch = async move {
            let (settings, directory, passed) =
                (&*inner.settings, &*inner.directory, &*inner.passed);
            let serving = plan.serving.as_ref();
            let prepared = match prepared {
                Some(prepared) => {
                    prepared
                        .write_missing()
                        .map_err(Error::system("write the rendered configuration"))?;
                    prepared
                }
                None => {
                    let given = given.as_ref();
                    Rc::new(start::prepare(settings, given, directory, &plan, passed).await?)
                }
            };
            if let Some(rendering) = prepared.rendering() {
                let admin = serving.and_then(|it| it.admin.as_ref());
                promise::keeps_something(rendering, &plan.served)?;
                if let Some((serving, admin)) = serving.zip(admin) {
                    now.set("waiting until the serving haproxy has learned its stick tables");
                    learning::before_start(settings, id, admin, serving.pid).await;
                    now.set("asking the serving haproxy for the state of its servers");
                    server_state::carry(rendering, admin).await;
                }
                // Last: what is counted after it, the new one does not know.
                stats_file::carry(&inner, id, rendering, admin).await;
            }
            let want = |want| {
                if let Some(serving) = serving {
                    inner.send(Message::Wants(serving.id, want));
                }
            };
            // Until it has taken over, our death must not leave it beside the older one.
            let tell = |pid| {
                if plan.older_alive {
                    let end = |newer| Duty::End { newer, paused: Vec::new() };
                    watchdog.borrow_mut().tell(&ProcessRef::of(pid).map_or(Duty::None, end));
                }
            };
            start::launch(settings, directory, passed, prepared, &plan, &now, tell, want).await
        };
        let cx = cx.clone();
        let task = crate::tasks::spawn(async move {
            // No await between the start of the process and this: an abort loses no process.
            cx.send(match launch.await {
                Ok(launched) => Message::Launched(id, Box::new(launched)),
                Err(error) => Message::NotLaunched(id, error),
            });
        });
        self.in_progress
            .insert(id, Starting { task: task.abort_handle(), step, begun: Instant::now() });
    }

    /// A start has led to a process, or to none, or is called off; none if it was called off before.
    pub(crate) fn end(&mut self, id: GenerationId) -> Option<Starting> {
        self.in_progress.remove(&id)
    }

    /// What a caller has given, since it serves.
    pub(crate) fn caller(&self) -> Option<&Origin> {
        self.given.as_ref()?.caller.as_deref()
    }

    /// The configuration of this generation serves, with its command.
    pub(crate) fn serves(&mut self, of: GenerationId, kind: &Kind) {
        let caller = self.configurations.get(&of).and_then(|prepared| prepared.caller());
        if let (Some(haproxy), Some(caller)) = (kind.haproxy(), caller)
            && let Ok(haproxy) = haproxy.of(caller.clone())
        {
            self.given = Some(haproxy);
        }
    }

    /// Whether this one is in progress.
    pub(crate) fn is_in_progress(&self, id: GenerationId) -> bool {
        self.in_progress.contains_key(&id)
    }

    /// Whether any start is in progress.
    pub(crate) fn in_progress(&self) -> bool {
        !self.in_progress.is_empty()
    }

    /// Reads the configurations of these generations, as an earlier supervisor has left them. One that is not there was not
    /// kept, or is of an older version.
    pub(crate) fn load(&mut self, cx: &Context, of: &BTreeSet<u64>) {
        for id in of.iter().copied().map(GenerationId) {
            match Prepared::load(&cx.settings.kind, &cx.directory, id) {
                Ok(prepared) => drop(self.configurations.insert(id, Rc::new(prepared))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let text = "the rendered copy of its configuration cannot be read: if it dies, the files are read instead";
                    tracing::warn!(generation = id.0, %error, "{text}");
                }
            }
        }
    }

    /// Writes those that were removed meanwhile.
    pub(crate) fn write_missing(&self) {
        for (of, prepared) in &self.configurations {
            if let Err(error) = prepared.write_missing() {
                let text = "the rendered copy of its configuration was removed, and cannot be written again";
                tracing::warn!(generation = of.0, %error, "{text}");
            }
        }
    }

    /// A generation was started on this.
    pub(crate) fn started_on(&mut self, id: GenerationId, prepared: Rc<Prepared>) {
        self.configurations.insert(id, prepared);
    }

    /// What the configuration of this generation was prepared to.
    pub(crate) fn prepared(&self, of: GenerationId) -> Option<&Rc<Prepared>> {
        self.configurations.get(&of)
    }

    /// The configuration of this generation, as it was read; none of a program's.
    pub(crate) fn rendering(&self, of: GenerationId) -> Option<&Rendering> {
        self.configurations.get(&of)?.rendering()
    }

    /// The configuration of the newest generation.
    pub(crate) fn newest(&self) -> Option<&Rendering> {
        self.configurations.values().next_back()?.rendering()
    }

    /// Forgets all configurations but these.
    pub(crate) fn retain(&mut self, keep: &[GenerationId]) {
        self.configurations.retain(|of, _| keep.contains(of));
    }

    /// Whether this generation may have nothing to listen on.
    pub(crate) fn may_be_empty(&self, id: GenerationId) -> bool {
        self.may_be_empty == Some(id)
    }

    /// Writes the pid file that the command or the configuration of a generation names; what it returns ends when it is
    /// written.
    pub(crate) fn write_pid_file(&mut self, of: GenerationId) -> Option<JoinHandle<bool>> {
        let path = self.rendering(of).and_then(|rendering| rendering.mode.pid_file.clone());
        path.and_then(|path| self.pid_file.write(&path))
    }
}
