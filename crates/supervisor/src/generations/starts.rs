//! Starts of generations: those in progress, and the configurations that may be started again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use bindonce_core::generation::{Configuration, GenerationId};
use bindonce_haproxy::cli::Version;
use bindonce_haproxy::config::Rendering;

use tokio::task::JoinHandle;

use crate::context::Context;
use crate::disk::directory::Directory;
use crate::disk::fallback;
use crate::disk::pid_file::PidFile;
use crate::error::Error;
use crate::generations::start::{self, Plan, Prepared, Starting, Step};
use crate::generations::{learning, server_state, stats_file};
use crate::handover::duty::{Duty, ProcessRef};
use crate::handover::promise::{self, Unserved};
use crate::handover::watchdog::Watchdog;
use crate::kind::{Haproxy, Kind};
use crate::message::Message;
use crate::origin::Origin;

/// What the starts of a service share.
#[derive(Default)]
pub(crate) struct Starts {
    /// Generations that are being started and have no process yet.
    in_progress: HashMap<GenerationId, Starting>,
    /// Configurations that may be started again.
    configurations: BTreeMap<GenerationId, Rc<Prepared>>,
    /// Whether this process has read the configuration before.
    pub(crate) read_before: bool,
    /// The generation that may have no listeners.
    may_be_empty: Option<GenerationId>,
    /// Listeners that served before and that the newest generation lacks.
    pub(crate) unserved: Unserved,
    pid_file: PidFile,
    /// The command of the caller whose configuration serves, perhaps from an earlier image of this
    /// process.
    pub(crate) given: Option<Haproxy>,
    /// The version of the binary, for a haproxy without an admin socket.
    pub(crate) version: Option<Version>,
    pub(crate) watched: Watched,
}

/// The contents of all watched files, as a hash.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Watched {
    /// At the last look.
    pub(crate) seen: Option<u64>,
    /// At the last read for a start.
    pub(crate) read: Option<u64>,
}

impl Starts {
    pub(crate) fn new(read_before: bool, version: Option<Version>) -> Self {
        Self { read_before, version, ..Self::default() }
    }

    /// Begins a start in a task of its own, which sends the loop its result. `wanted`: the command
    /// of the callers of a reload, which becomes `given` if that generation serves.
    pub(crate) fn begin(
        &mut self,
        cx: &Context,
        watchdog: Rc<RefCell<Watchdog>>,
        mut plan: Plan,
        wanted: Option<Haproxy>,
    ) {
        let id = plan.id;
        let prepared = match plan.configuration {
            Configuration::Fresh => {
                self.watched.read = self.watched.seen;
                None
            }
            Configuration::Of(of) => {
                let prepared = self.configurations.get(&of).cloned();
                // If its directory is gone, the configuration is read again and written elsewhere.
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
            Configuration::Fresh => wanted.or_else(|| self.given.clone()),
            Configuration::Of(_) => None,
        };
        let of = match plan.configuration {
            Configuration::Fresh => id,
            Configuration::Of(of) => of,
        };
        let (inner, step) = (cx.clone(), Step::default());
        let now = step.clone();
        let launch = async move {
            let (settings, directory, passed) =
                (&*inner.settings, &*inner.directory, &*inner.passed);
            let serving = plan.serving.as_ref();
            let prepared = match prepared {
                Some(prepared) => on_disk(&prepared, of, directory, serving.is_some())
                    .map_err(Error::system("write the rendered configuration"))?,
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
                // Last: the new generation does not know what is counted after this.
                stats_file::carry(&inner, id, rendering, admin).await;
            }
            let want = |want| {
                if let Some(serving) = serving {
                    inner.send(Message::Wants(serving.id, want));
                }
            };
            // Until the new generation has taken over, the supervisor's death must not leave it
            // beside the older one.
            let tell = |pid| {
                if plan.older_alive {
                    let end = |newer| Duty::End { newer, paused: Vec::new() };
                    watchdog.borrow_mut().tell(ProcessRef::of(pid).map_or(Duty::None, end));
                }
            };
            start::launch(settings, directory, passed, prepared, &plan, &now, tell, want).await
        };
        let cx = cx.clone();
        let task = crate::tasks::spawn(async move {
            // No await between the start of the process and this send, or an abort could lose the
            // process.
            cx.send(match launch.await {
                Ok(launched) => Message::Launched(id, Box::new(launched)),
                Err(error) => Message::NotLaunched(id, error),
            });
        });
        self.in_progress
            .insert(id, Starting { task: task.abort_handle(), step, begun: Instant::now() });
    }

    /// Ends a start: it has led to a process, has failed, or is called off. None if it was called
    /// off before.
    pub(crate) fn end(&mut self, id: GenerationId) -> Option<Starting> {
        self.in_progress.remove(&id)
    }

    /// The caller whose command serves.
    pub(crate) fn caller(&self) -> Option<&Origin> {
        self.given.as_ref()?.caller.as_deref()
    }

    /// Notes that the configuration of this generation serves, with the command of its caller.
    pub(crate) fn serves(&mut self, of: GenerationId, kind: &Kind) {
        let caller = self.configurations.get(&of).and_then(|prepared| prepared.caller());
        if let (Some(haproxy), Some(caller)) = (kind.haproxy(), caller)
            && let Ok(haproxy) = haproxy.of(caller.clone())
        {
            self.given = Some(haproxy);
        }
    }

    pub(crate) fn is_in_progress(&self, id: GenerationId) -> bool {
        self.in_progress.contains_key(&id)
    }

    pub(crate) fn in_progress(&self) -> bool {
        !self.in_progress.is_empty()
    }

    /// Reads the configurations that an earlier supervisor has left for these generations. A
    /// missing one was not kept, or was written by an older version.
    pub(crate) fn load(&mut self, cx: &Context, of: &BTreeSet<u64>) {
        for id in of.iter().copied().map(GenerationId) {
            match Prepared::load(&cx.settings.kind, &cx.directory, id) {
                Ok(prepared) => drop(self.configurations.insert(id, Rc::new(prepared))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let text = "cannot read the rendered copy of its configuration: if it dies, the next start reads the files instead";
                    tracing::warn!(generation = id.0, %error, "{text}");
                }
            }
        }
    }

    /// Recreates the rendered copies that were removed or damaged meanwhile.
    pub(crate) fn write_missing(&self, directory: &Directory) {
        for (of, prepared) in &self.configurations {
            // One in a fallback directory that is gone is written elsewhere, when it is needed.
            if is_held(prepared, directory)
                && let Err(error) = prepared.write_missing()
            {
                let text = "the rendered copy of its configuration was removed, and cannot be written again";
                tracing::warn!(generation = of.0, %error, "{text}");
            }
        }
    }

    /// Notes the configuration that a generation was started on.
    pub(crate) fn started_on(&mut self, id: GenerationId, prepared: Rc<Prepared>) {
        self.configurations.insert(id, prepared);
    }

    /// The configuration of this generation, as it was prepared.
    pub(crate) fn prepared(&self, of: GenerationId) -> Option<&Rc<Prepared>> {
        self.configurations.get(&of)
    }

    /// The configuration of this generation, as it was read. None for a program.
    pub(crate) fn rendering(&self, of: GenerationId) -> Option<&Rendering> {
        self.configurations.get(&of)?.rendering()
    }

    pub(crate) fn newest(&self) -> Option<&Rendering> {
        self.configurations.values().next_back()?.rendering()
    }

    pub(crate) fn retain(&mut self, keep: &[GenerationId]) {
        self.configurations.retain(|of, _| keep.contains(of));
    }

    pub(crate) fn may_be_empty(&self, id: GenerationId) -> bool {
        self.may_be_empty == Some(id)
    }

    /// Writes the pid file that the command or the configuration of a generation names. The handle
    /// ends when the file is written.
    pub(crate) fn write_pid_file(&mut self, of: GenerationId) -> Option<JoinHandle<bool>> {
        let path = self.rendering(of).and_then(|rendering| rendering.mode.pid_file.clone());
        path.and_then(|path| self.pid_file.write(&path))
    }
}

/// Whether its copies are in a directory of ours, so that they may be used and written again.
fn is_held(prepared: &Prepared, directory: &Directory) -> bool {
    prepared.directory().is_none_or(|path| directory.holds(path))
}

/// Makes sure that the copies are on disk, as they were written. Those of a fallback directory that
/// others have removed go to the service's directory. If that takes none and no generation serves,
/// they are written where those of a fresh start would be.
fn on_disk(
    prepared: &Rc<Prepared>,
    of: GenerationId,
    directory: &Directory,
    serves: bool,
) -> io::Result<Rc<Prepared>> {
    let write_to = |place: io::Result<PathBuf>| -> io::Result<Rc<Prepared>> {
        Ok(Rc::new(prepared.written_to(&place?)?))
    };
    let written = match is_held(prepared, directory) {
        true => prepared.write_missing().map(|()| Rc::clone(prepared)),
        false => write_to(directory.make_configuration(of)),
    };
    match written {
        Err(error) if !serves && fallback::is_refusal(&error) => {
            write_to(directory.make_fallback_configuration(of))
        }
        done => done,
    }
}
