//! Starting one generation: what it needs is prepared, its listeners are claimed, and its process
//! is started with them. What haproxy needs is in [`haproxy`], what any other program needs in
//! [`program`].
//!
//! The serving generation is not disturbed here. New listeners are claimed tentatively: until the
//! generation serves, they end with its connection to the broker. A failed start leaves nothing
//! bound, however it fails.

mod haproxy;
pub(crate) mod moved;

mod order;
mod program;
pub(crate) mod rendered;

pub(crate) use order::Plan;

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use bindonce::Claim;
use bindonce_core::generation::GenerationId;
use bindonce_core::listener::{Key, Listener, Options};
use bindonce_sys::process::Pidfd;

use tokio::task::AbortHandle;

use crate::broker;
use crate::disk::directory::Directory;
use crate::error::Error;
use crate::generations::changes::OptionChange;
use crate::generations::listeners::HeldListener;
use crate::generations::notifications::Notifications;
use crate::intercept::requests::Want;
use crate::kind::{Haproxy, Kind};
use crate::origin::Origin;
use crate::passed::Passed;
use crate::settings::Settings;
use bindonce_haproxy::config::{Messages, Rendering};
use rendered::Rendered;

/// What a generation is started on. Several generations may be started on the same one.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// A configuration that was read and rendered.
    Haproxy(Rendered),
    /// A program reads its configuration itself, each time that it starts.
    Program,
}

impl Prepared {
    fn rendered(&self) -> Option<&Rendered> {
        match self {
            Self::Haproxy(rendered) => Some(rendered),
            Self::Program => None,
        }
    }

    /// The caller whose command it is started with.
    pub(crate) fn caller(&self) -> Option<&Origin> {
        self.rendered()?.kind.caller.as_deref()
    }

    pub(crate) fn rendering(&self) -> Option<&Rendering> {
        self.rendered().map(|rendered| &*rendered.rendering)
    }

    /// Whether all its files are there, as they were written.
    pub(crate) fn is_there(&self) -> bool {
        match self {
            Self::Haproxy(rendered) => rendered.is_there(),
            Self::Program => true,
        }
    }

    /// The directory of its files. None for a program.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.rendered()?.directory()
    }

    /// Writes the files again unless each is as it was written.
    pub(crate) fn write_missing(&self) -> io::Result<()> {
        match self {
            Self::Haproxy(rendered) => rendered.write_missing(),
            Self::Program => Ok(()),
        }
    }

    /// The same, written to another directory.
    pub(crate) fn written_to(&self, directory: &Path) -> io::Result<Self> {
        match self {
            Self::Haproxy(rendered) => rendered.written_to(directory).map(Self::Haproxy),
            Self::Program => Ok(Self::Program),
        }
    }

    /// The translation of messages from a generation that was started on it.
    pub(crate) fn messages(&self) -> Messages {
        self.rendered().map(Rendered::messages).unwrap_or_default()
    }

    /// Loads what an earlier supervisor, or an earlier image of this one, has prepared for a
    /// generation.
    pub(crate) fn load(kind: &Kind, directory: &Directory, of: GenerationId) -> io::Result<Self> {
        match kind {
            Kind::Haproxy(haproxy) => {
                Rendered::load(haproxy, &directory.configuration(of)).map(Self::Haproxy)
            }
            Kind::Program(_) => Ok(Self::Program),
        }
    }
}

/// A generation whose process has been started.
pub(crate) struct Launched {
    pub(crate) pidfd: Pidfd,
    pub(crate) stderr: Option<OwnedFd>,
    /// The socket on which the shim sends the descriptor that holds the process at its readiness
    /// signal.
    pub(crate) shim: Option<OwnedFd>,
    pub(crate) messages: Messages,
    pub(crate) prepared: Rc<Prepared>,
    pub(crate) listeners: Vec<Rc<HeldListener>>,
    /// Options of these that differ from those of the serving generation.
    pub(crate) changes: Vec<OptionChange>,
    /// The connection to the broker that holds the leases of this generation.
    pub(crate) lease: bindonce::aio::Client,
    pub(crate) admin: Option<PathBuf>,
    /// The socket on which a program reports that it is ready.
    pub(crate) notifications: Option<Notifications>,
}

/// A start that has no process yet.
pub(crate) struct Starting {
    pub(crate) task: AbortHandle,
    pub(crate) step: Step,
    pub(crate) begun: Instant,
}

/// What a start is doing now, for the error if it takes too long.
#[derive(Debug, Clone)]
pub(crate) struct Step(Rc<Cell<&'static str>>);

impl Default for Step {
    fn default() -> Self {
        Self(Rc::new(Cell::new("reading the configuration")))
    }
}

impl Step {
    pub(crate) fn set(&self, doing: &'static str) {
        self.0.set(doing);
    }

    pub(crate) fn get(&self) -> &'static str {
        self.0.get()
    }
}

/// Prepares what a generation is started on: for haproxy, reads the user's files, perhaps again,
/// and writes the copies. `given` is a newer command of a caller, if there is one.
pub(crate) async fn prepare(
    settings: &Settings,
    given: Option<&Haproxy>,
    directory: &Directory,
    plan: &Plan,
    passed: &Passed,
) -> Result<Prepared, Error> {
    match &settings.kind {
        Kind::Haproxy(kind) => {
            let kind = given.unwrap_or(kind);
            let rendered = haproxy::render(settings, kind, directory, plan, passed).await;
            rendered.map(Prepared::Haproxy)
        }
        Kind::Program(_) => Ok(Prepared::Program),
    }
}

/// Claims the listeners and starts the process. Calls `tell` with its pid before the process can do
/// anything. `want` claims a listener for the serving generation.
#[expect(clippy::too_many_arguments)]
pub(crate) async fn launch(
    settings: &Settings,
    directory: &Directory,
    passed: &Passed,
    prepared: Rc<Prepared>,
    plan: &Plan,
    step: &Step,
    tell: impl FnOnce(i32),
    want: impl Fn(Want),
) -> Result<Launched, Error> {
    let id = plan.id;
    step.set("asking the broker for the listeners");
    let mut lease = broker::connect(&settings.broker.socket).await?;
    broker::join(&mut lease, &settings.service, id, None, bindonce::State::Starting).await?;
    if let (Some(rendering), None) = (prepared.rendering(), prepared.caller()) {
        passed.store(&mut lease, &rendering.bindings).await?;
    }
    let moved = match (prepared.rendering(), &plan.serving) {
        (Some(rendering), Some(serving)) => {
            moved::take(&mut lease, rendering, serving, &plan.known, want).await?
        }
        _ => HashMap::new(),
    };
    let claimed = claim(&mut lease, settings, prepared.rendering(), plan, &moved).await;
    let (listeners, changes) = claimed?;
    let mut order = match (&settings.kind, &*prepared) {
        (Kind::Haproxy(_), Prepared::Haproxy(rendered)) => {
            haproxy::order(rendered, directory, plan, &listeners)?
        }
        (Kind::Program(program), _) => program::order(program, settings, id, &listeners)?,
        // Each kind prepares its own.
        (Kind::Haproxy(_), Prepared::Program) => return Err(Error::NotPrepared),
    };
    order.launch.env_remove.extend(broker::not_theirs());
    let ours = [
        ("BINDONCE_SERVICE".into(), settings.service.as_str().into()),
        ("BINDONCE_GENERATION".into(), id.0.to_string().into()),
    ];
    order.launch.env.extend(ours);
    order.launch.stderr = std::process::Stdio::piped();
    let started = order.launch.start_aside(tell).await?;
    Ok(Launched {
        pidfd: started.pidfd,
        stderr: started.stderr,
        shim: started.shim,
        messages: order.messages,
        prepared,
        listeners,
        changes,
        lease,
        admin: order.admin,
        notifications: order.notifications,
    })
}

async fn claim(
    lease: &mut bindonce::aio::Client,
    settings: &Settings,
    rendering: Option<&Rendering>,
    plan: &Plan,
    moved: &HashMap<Key, Options>,
) -> Result<(Vec<Rc<HeldListener>>, Vec<OptionChange>), Error> {
    let wanted: Vec<&Listener> = match rendering {
        Some(rendering) => rendering.bindings.iter().map(|b| &b.listener).collect(),
        None => settings.listeners.iter().collect(),
    };
    if wanted.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    // A failed start must leave the serving listeners as they are: differing options are changed
    // when the new generation serves.
    let has = plan.serving.as_ref().filter(|_| rendering.is_some()).map(|serving| &serving.has);
    let was = |listener: &Listener| {
        let key = listener.key();
        let options = has?.get(&key).or_else(|| moved.get(&key))?;
        Some(options).filter(|options| **options != listener.options)
    };
    let as_it_is = |listener: &Listener| match was(listener) {
        Some(options) => Listener { options: options.clone(), ..listener.clone() }.to_string(),
        None => listener.to_string(),
    };
    let claims: Vec<_> = wanted
        .iter()
        .map(|listener| Claim::listen(as_it_is(listener)).tentative().changing())
        .collect();
    let changes = wanted.iter().filter_map(|&listener| {
        Some(OptionChange { listener: listener.clone(), was: was(listener)?.clone() })
    });
    let changes = changes.collect();
    let leases = lease.claim(&claims).await.map_err(|error| match rendering {
        Some(rendering) => haproxy::refused(error, rendering),
        None => Error::claim(error),
    })?;
    let held = leases.into_iter().zip(wanted).map(|(lease, listener)| {
        let held = HeldListener::new(lease, listener, &plan.known);
        held.remember_options();
        held
    });
    Ok((held.collect(), changes))
}
