//! Takes over the generations of a supervisor that is gone, or of this process's own earlier image
//! (`bindonce upgrade`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bindonce::Claim;
use bindonce_core::event;
use bindonce_core::generation::{self as timeline, GenerationId, State};
use bindonce_core::listener::Listener;
use bindonce_core::time::Timestamp;
use bindonce_daemon::{Happening, reexec};
use bindonce_sys::intercept::{Intercept, Received};
use bindonce_sys::process::{self as sys, Pidfd};
use bindonce_sys::signals::Signal as Number;
use bindonce_sys::watch::Watch;
use bindonce_sys::{inherit, tree};
use tokio::sync::oneshot;

use crate::broker;
use crate::broker::leases::Leases;
use crate::context::Context;
use crate::disk::saved::{Saved, SavedGeneration, SavedListener};
use crate::error::Error;
use crate::generations::Generations;
use crate::generations::admin::Admin;
use crate::generations::drain::Drain;
use crate::generations::listeners::{HeldListener, Known};
use crate::generations::paused;
use crate::generations::process::{self, Process};
use crate::generations::starts::Starts;
use crate::handover::descriptor_store::{self, Stored};
use crate::intercept::resume;
use bindonce_haproxy::cli::Info;
use bindonce_haproxy::config::Messages;

/// How long a found generation may take to answer on its admin socket, and the broker to answer an
/// image that still has the listeners.
const ANSWER: Duration = Duration::from_secs(2);

/// For the error if that fails. The supervisor then ends, and the generation serves without one.
const WATCH: &str = "watch a generation that was found, and that is left as it is";

/// Descriptors that this process's earlier image left open, owned and close-on-exec again.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    pub(crate) control: Option<OwnedFd>,
    /// By the text of `-S`.
    pub(crate) master_cli: BTreeMap<String, OwnedFd>,
    /// Descriptors that the service inherited, by their number at that time.
    pub(crate) passed: BTreeMap<i32, OwnedFd>,
    spares: BTreeMap<u64, BTreeMap<String, OwnedFd>>,
    admin: BTreeMap<u64, OwnedFd>,
    intercept: BTreeMap<u64, OwnedFd>,
    /// The watchdog's copies of the same descriptors, each with its record of received calls.
    kept: BTreeMap<u64, [OwnedFd; 2]>,
    calls: BTreeMap<u64, Vec<Received>>,
    stderr: BTreeMap<u64, OwnedFd>,
    listeners: BTreeMap<u64, Vec<SavedListener>>,
    /// Descriptors of the listeners, by inode.
    sockets: Known,
    /// The broker did not answer this image in time.
    pub(crate) is_unanswered: bool,
}

impl Inheritance {
    /// Adds the descriptors that an earlier supervisor's watchdog kept. Where this image already
    /// has one, it is a copy.
    pub(crate) fn add(&mut self, kept: Stored) {
        self.kept.extend(kept.calls.into_iter().map(|(GenerationId(id), of)| (id, of)));
        for (GenerationId(id), mut connections) in kept.connections {
            if let Some(own) = connections.remove(descriptor_store::OWN) {
                self.admin.entry(id).or_insert(own);
            }
            let spares = self.spares.entry(id).or_default();
            for (level, connection) in connections {
                spares.entry(level).or_insert(connection);
            }
        }
    }

    /// The descriptor for a generation's calls, with the calls that are not answered yet.
    fn calls(&mut self, id: GenerationId) -> Option<std::io::Result<Intercept>> {
        let left = self.calls.remove(&id.0).unwrap_or_default();
        match (self.kept.remove(&id.0), self.intercept.remove(&id.0)) {
            (Some(kept), _) => Some(Intercept::resume(kept, left)),
            (None, inherited) => inherited.map(|inherited| Intercept::new(inherited, left)),
        }
    }

    /// The reading end of a generation's standard error, and the translation of its messages.
    fn stderr(
        &mut self,
        id: GenerationId,
        starts: &Starts,
        of: u64,
    ) -> Option<(OwnedFd, Messages)> {
        let prepared = starts.prepared(GenerationId(of));
        let messages = prepared.map(|prepared| prepared.messages()).unwrap_or_default();
        Some((self.stderr.remove(&id.0)?, messages))
    }

    /// The listeners of a generation. None if an older version or another process left them, so
    /// that they must be claimed.
    fn listeners(&self, id: GenerationId) -> Option<Vec<Rc<HeldListener>>> {
        let of_generation = self.listeners.get(&id.0)?.iter();
        let held = of_generation
            .map(|saved| HeldListener::resume(saved, Arc::clone(self.sockets.get(&saved.inode)?)));
        held.collect()
    }

    /// The admin connections of a generation for clients of the master CLI.
    fn spares(&mut self, id: GenerationId) -> BTreeMap<String, OwnedFd> {
        self.spares.remove(&id.0).unwrap_or_default()
    }

    /// The event for this supervisor's start.
    pub(crate) fn began(&self) -> Happening {
        let version = env!("CARGO_PKG_VERSION");
        let happening = match self.control {
            Some(_) => Happening::new(event::Kind::Upgraded, format!("became {version} in place")),
            None => {
                Happening::new(event::Kind::SupervisorStarted, format!("bindonce {version} began"))
            }
        };
        happening.pid(std::process::id().cast_signed())
    }

    /// Takes everything that was left for this very process. Must run before any child is started:
    /// a child would inherit the connections too, and so keep generations alive.
    pub(crate) fn take(saved: &Saved) -> Result<Self, Error> {
        let Some(left) = saved.inherited.as_ref() else { return Ok(Self::default()) };
        reexec::take_name();
        if !left.is_ours() {
            return Ok(Self::default());
        }
        let take =
            |number: i32| inherit::take(number).map_err(Error::system("take a descriptor over"));
        fn all<K: Ord + Clone>(numbers: &BTreeMap<K, i32>) -> Result<BTreeMap<K, OwnedFd>, Error> {
            let take = |number| inherit::take(number);
            let taken = numbers.iter().map(|(of, number)| Ok((of.clone(), take(*number)?)));
            taken.collect::<std::io::Result<_>>().map_err(Error::system("take a descriptor over"))
        }
        Ok(Self {
            control: Some(take(left.control)?),
            master_cli: all(&left.master_cli)?,
            passed: all(&left.passed)?,
            spares: left
                .spares
                .iter()
                .map(|(id, numbers)| Ok((*id, all(numbers)?)))
                .collect::<Result<_, Error>>()?,
            admin: all(&left.admin)?,
            intercept: all(&left.intercept)?,
            kept: BTreeMap::new(),
            calls: left.calls.clone(),
            stderr: all(&left.stderr)?,
            listeners: left.listeners.clone(),
            sockets: all(&left.sockets)?.into_iter().map(|(of, fd)| (of, Arc::new(fd))).collect(),
            is_unanswered: false,
        })
    }
}

/// Finds the saved generations and takes over the living ones.
///
/// # Errors
/// If a generation cannot be watched.
pub(crate) async fn take_over(
    cx: &Context,
    leases: &Leases,
    starts: &mut Starts,
    generations: &mut Generations,
    saved: &Saved,
    mut left: Inheritance,
) -> Result<Vec<timeline::Found>, Error> {
    let of = saved.generations.iter().map(|generation| generation.configuration);
    starts.load(cx, &of.chain(saved.worked).collect());
    let mut found = Vec::new();
    for saved in &saved.generations {
        if let Some(state) = find(cx, leases, starts, generations, saved, &mut left).await? {
            let (id, configuration) = (GenerationId(saved.id), GenerationId(saved.configuration));
            found.push(timeline::Found { id, state, configuration, served: served(saved) });
        }
    }
    let serving = found.iter().filter(|one| one.state == State::Serving).map(|one| one.id).max();
    if let Some(serving) = serving.and_then(|id| generations.get_mut(&id)) {
        let is_newer = |one: &SavedGeneration| one.id > serving.id.0 && one.state == "starting";
        let was_replaced = saved.generations.iter().any(is_newer);
        paused::resume(cx, serving, was_replaced);
    }
    if !found.is_empty() {
        name_strangers(cx, leases, generations);
    }
    Ok(found)
}

/// For how long a generation has served.
fn served(saved: &SavedGeneration) -> Duration {
    match (sys::age(saved.process.pid), saved.start_ms) {
        (Some(lives), Some(took)) if saved.state == State::Serving.to_string() => {
            lives.saturating_sub(Duration::from_millis(took))
        }
        _ => Duration::ZERO,
    }
}

/// Takes over one generation, if it is alive.
async fn find(
    cx: &Context,
    leases: &Leases,
    starts: &Starts,
    generations: &mut Generations,
    saved: &SavedGeneration,
    left: &mut Inheritance,
) -> Result<Option<State>, Error> {
    let id = GenerationId(saved.id);
    let pid = saved.process.pid;
    // The pidfd is opened first, so that the process it names cannot change under the comparison.
    let pidfd = match Pidfd::open(pid) {
        Ok(pidfd) => pidfd,
        Err(error) => return gone(error),
    };
    // Reading /proc needs a free descriptor too.
    if let Err(error) = File::open(format!("/proc/{pid}/stat")) {
        return gone(error);
    }
    if !saved.process.is_there() || pidfd.has_ended() {
        return Ok(None);
    }
    // Before the generation is asked or its listeners are claimed.
    let ended = Watch::new(&pidfd).map_err(Error::system(WATCH))?;
    let (admin, info) = find_admin(cx, id, saved, left).await;
    let state = match (&info, saved.state.as_str()) {
        (Some(info), _) if info.stopping => State::Draining,
        (_, "draining") => State::Draining,
        // The watchdog has finished the handover to it, and has told the older ones to stop. They
        // are told again, since a newer one serves.
        (None, "starting") if saved.ready => {
            tree::signal(pid, Number::SIGCONT);
            State::Serving
        }
        (None, "starting") => {
            let text = "ended: it was starting when its supervisor died, and it does not answer";
            tracing::warn!(generation = id.0, pid, "{text}");
            cx.record(id, Some(pid), event::Kind::GenerationFailed, text);
            tree::kill(pid);
            return Ok(None);
        }
        _ => State::Serving,
    };
    let (listeners, lease) = claim_again(cx, leases, generations, saved, state, left).await;
    let rendering = starts.rendering(GenerationId(saved.configuration));
    let process = Process {
        pidfd,
        ended,
        admin,
        stderr: left.stderr(id, starts, saved.configuration),
        master_worker: saved.master_worker,
        no_epoll: rendering.is_some_and(|rendering| rendering.mode.no_epoll),
        listeners,
        lease,
        started: Timestamp(saved.since),
    };
    let mut generation = process::take_on(cx, leases, id, process);
    generation.named = saved.process;
    generation.readiness.ready = true;
    generation.lease.served = true;
    generation.own.devices.clone_from(&saved.own.own_devices);
    generation.own.lines.clone_from(&saved.own.own_lines);
    generation.drain = Drain::resume(&saved.drain);
    generation.drain.connections = info.as_ref().map(|info| info.connections);
    generation.cli.version = info.as_ref().map(|info| info.version);
    generation.cli.answers = info.as_ref().and_then(|info| info.pid);
    generation.cli.release = info.map(|info| info.release);
    generation.cli.reloads_before = saved.reloads_before;
    generation.start.took = saved.start_ms.map(Duration::from_millis);
    generation.cli.spares.resume(left.spares(id));
    let rendering = starts.rendering(GenerationId(saved.configuration));
    resume::serve_again(cx, &mut generation, rendering, left.calls(id));
    generations.insert(generation);
    tracing::info!(generation = id.0, pid, "taken over: {state}");
    cx.record(id, Some(pid), event::Kind::TakenOver, format!("taken over: {state}"));
    Ok(Some(state))
}

/// No generation, if the error means that its process is gone.
///
/// # Errors
/// If this process or the system lacks something: the generation may well be alive.
fn gone(error: io::Error) -> Result<Option<State>, Error> {
    use nix::libc::{EMFILE, ENFILE, ENOMEM};
    match error.raw_os_error() {
        Some(EMFILE | ENFILE | ENOMEM) => Err(Error::system(WATCH)(error)),
        _ => Ok(None),
    }
}

/// The admin connection to a found generation, if it answers.
async fn find_admin(
    cx: &Context,
    id: GenerationId,
    saved: &SavedGeneration,
    left: &mut Inheritance,
) -> (Option<Admin>, Option<Info>) {
    if !cx.settings.kind.has_admin() {
        return (None, None);
    }
    if let Some(connection) = left.admin.remove(&id.0)
        && let Some((admin, info)) =
            first(|ready| Admin::resume(connection, saved.drain.received, ready)).await
    {
        return (Some(admin), Some(info));
    }
    let socket = cx.directory.admin(id);
    // A generation that was told to stop accepts no new connection there. A generation may also
    // have been started without that socket: see `Rendering::surely_listens`.
    if saved.state == "draining" || !socket.exists() {
        return (None, None);
    }
    first(|ready| Admin::connect(socket, ready)).await.unzip()
}

/// A connection and its first answer; none if no answer comes in time.
async fn first(connect: impl FnOnce(Box<dyn FnOnce(Info)>) -> Admin) -> Option<(Admin, Info)> {
    let (send, answer) = oneshot::channel();
    let admin = connect(Box::new(move |info| drop(send.send(info))));
    let info = bindonce_sys::patience::timeout(ANSWER, answer).await.ok().and_then(Result::ok);
    if info.is_none() {
        admin.close();
    }
    info.map(|info| (admin, info))
}

/// Claims the generation's listeners; the broker gives the same sockets again. An image that still
/// has them continues with them if the broker does not answer at once, and the lease follows.
async fn claim_again(
    cx: &Context,
    leases: &Leases,
    generations: &Generations,
    saved: &SavedGeneration,
    state: State,
    left: &mut Inheritance,
) -> (Vec<Rc<HeldListener>>, Option<bindonce::aio::Client>) {
    let id = GenerationId(saved.id);
    let joins = match state {
        // Clients need not find the listeners of a draining generation.
        State::Draining => bindonce::State::Draining,
        _ => bindonce::State::Starting,
    };
    let had = left.listeners(id);
    let claim = async {
        let mut lease = broker::connect(&cx.settings.broker.socket).await?;
        leases.broker.note(&lease);
        let service = &cx.settings.service;
        broker::join(&mut lease, service, id, None, joins).await?;
        let texts = saved.listeners.iter();
        let wanted: Vec<Listener> =
            texts.filter_map(|text| crate::generations::listeners::read(text)).collect();
        let claims: Vec<_> =
            wanted.iter().map(|listener| Claim::listen(listener.to_string())).collect();
        if claims.is_empty() {
            return Ok((Vec::new(), lease));
        }
        let claimed = lease.claim(&claims).await.map_err(Error::claim)?;
        let mut known = generations.descriptors();
        known.extend(left.sockets.iter().map(|(inode, fd)| (*inode, Arc::clone(fd))));
        let held = claimed.into_iter().zip(&wanted);
        let held = held.map(|(lease, listener)| HeldListener::new(lease, listener, &known));
        Ok::<_, Error>((held.collect(), lease))
    };
    let claimed = match (&had, left.is_unanswered) {
        (None, _) => Some(claim.await),
        (Some(_), true) => None,
        (Some(_), false) => bindonce_sys::patience::timeout(ANSWER, claim).await.ok(),
    };
    match (claimed, had) {
        (Some(Ok((listeners, lease))), _) => (listeners, Some(lease)),
        (claimed, Some(had)) => {
            let why = claimed.and_then(Result::err).map(|error| format!(": {error}"));
            let why = why.unwrap_or_default();
            tracing::warn!(
                generation = id.0,
                "the broker does not answer yet{why}; continuing with the listeners that it gave before"
            );
            left.is_unanswered = true;
            (had, None)
        }
        (claimed, None) => {
            let why = claimed.and_then(Result::err).map(|error| error.with_hint());
            let text = format!(
                "its listeners cannot be claimed from the broker, so the next handover cannot \
                 be proved by their queues: {}",
                why.unwrap_or_default()
            );
            tracing::error!(generation = id.0, "{text}");
            cx.record(id, None, event::Kind::ListenerLost, text);
            (Vec::new(), None)
        }
    }
}

/// Logs the other processes that hold our listeners, since they may accept from them.
fn name_strangers(cx: &Context, leases: &Leases, generations: &Generations) {
    let (kind, broker) = (&cx.settings.kind, leases.broker.pid());
    let strangers = generations.strangers(kind, broker, generations.listeners());
    for (pid, command) in strangers {
        let text = "this process also holds listeners of the service and may accept from them; \
                    it is no generation that we know";
        tracing::warn!(pid, command, "{text}");
        let text = format!("{text}: {command}");
        cx.journal.record(Happening::new(event::Kind::UnknownAcceptor, text).pid(pid));
    }
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn no_generation_counts_as_gone_because_this_process_lacks_something() {
        for number in [libc::ESRCH, libc::ENOENT, libc::EINVAL, libc::EACCES] {
            assert!(matches!(gone(io::Error::from_raw_os_error(number)), Ok(None)), "{number}");
        }
        for number in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            assert!(gone(io::Error::from_raw_os_error(number)).is_err(), "{number}");
        }
        let Err(error) = gone(io::Error::from_raw_os_error(libc::EMFILE)) else { panic!("gone") };
        let text = error.with_hint();
        for part in [WATCH, "LimitNOFILE=", "ulimit -n"] {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
}
