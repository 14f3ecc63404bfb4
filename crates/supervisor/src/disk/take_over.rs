//! Taking over the generations of a supervisor that is gone, or of this process's own
//! earlier image (`bindonce upgrade`).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use bindonce::Claim;
use bindonce_core::event;
use bindonce_core::generation::{GenerationId, State};
use bindonce_core::listener::Listener;
use bindonce_daemon::Happening;
use bindonce_sys::process::{self, Pidfd};
use bindonce_sys::signals::Signal as Number;
use bindonce_sys::{holders, inherit, tree};
use tokio::sync::oneshot;

use crate::broker;
use crate::disk::directory::{Saved, SavedGeneration};
use crate::error::Error;
use crate::generations::admin::Admin;
use crate::generations::listeners::Held;
use crate::generations::process::Process;
use crate::supervisor::Supervisor;
use bindonce_haproxy::cli::Info;
use bindonce_haproxy::config::Messages;

/// How long a generation that was found may take to answer on its admin socket.
const ANSWER: Duration = Duration::from_secs(2);

/// What this process's earlier image left open, owned and close-on-exec again.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    pub(crate) control: Option<OwnedFd>,
    admin: BTreeMap<u64, OwnedFd>,
    stderr: BTreeMap<u64, OwnedFd>,
}

impl Inheritance {
    /// How this supervisor begins.
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

    /// Takes everything that was left for this very process. Must come before any child is
    /// started: it would inherit the connections too, and keep generations alive by them.
    pub(crate) fn take(saved: &Saved) -> Result<Self, Error> {
        let me = i32::try_from(std::process::id()).unwrap_or_default();
        let start_time = process::start_time(me).unwrap_or_default();
        let Some(left) = saved.inherited.as_ref() else { return Ok(Self::default()) };
        bindonce_sys::upgrade::take_name();
        if (left.pid, left.start_time) != (me, start_time) {
            return Ok(Self::default());
        }
        let take =
            |number: i32| inherit::take(number).map_err(Error::system("take a descriptor over"));
        let all = |numbers: &BTreeMap<u64, i32>| {
            numbers
                .iter()
                .map(|(id, number)| Ok((*id, take(*number)?)))
                .collect::<Result<_, Error>>()
        };
        Ok(Self {
            control: Some(take(left.control)?),
            admin: all(&left.admin)?,
            stderr: all(&left.stderr)?,
        })
    }
}

impl Supervisor {
    /// Finds the generations that were saved and goes on with those that are alive.
    pub(crate) async fn take_over(
        &mut self,
        saved: &Saved,
        mut left: Inheritance,
    ) -> Result<(), Error> {
        let mut found = Vec::new();
        for generation in &saved.generations {
            let id = GenerationId(generation.id);
            if let Some(state) = self.find(id, generation, &mut left).await? {
                found.push((id, state, GenerationId(generation.configuration)));
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        for action in self.timeline.adopt(self.epoch.elapsed(), found) {
            self.perform(action);
        }
        self.save();
        self.name_strangers();
        Ok(())
    }

    async fn find(
        &mut self,
        id: GenerationId,
        saved: &SavedGeneration,
        left: &mut Inheritance,
    ) -> Result<Option<State>, Error> {
        let pid = saved.pid;
        // The descriptor is opened first: what it names cannot change under the comparison.
        let Ok(pidfd) = Pidfd::open(pid) else { return Ok(None) };
        if process::start_time(pid) != Some(saved.start_time) || pidfd.has_ended() {
            return Ok(None);
        }
        let (admin, info) = self.find_admin(id, saved, left).await;
        let is_program = self.settings.kind.program().is_some();
        let state = match (&info, saved.state.as_str()) {
            (Some(info), _) if info.stopping => State::Draining,
            (_, "draining") => State::Draining,
            // The watchdog has finished its handover.
            (None, "starting") if saved.ready && is_program => {
                tree::signal(pid, Number::SIGCONT);
                State::Serving
            }
            (None, "starting") => {
                let text =
                    "ended: it was starting when its supervisor died, and it does not answer";
                tracing::warn!(generation = id.0, pid, "{text}");
                let happening = Happening::new(event::Kind::GenerationFailed, text);
                self.report.journal.record(happening.generation(id.0).pid(pid));
                tree::signal_all(pid, Number::SIGKILL);
                return Ok(None);
            }
            _ => State::Serving,
        };
        let (listeners, lease) = self.claim_again(id, &saved.listeners).await;
        let process = Process {
            pidfd,
            admin,
            stderr: left.stderr.remove(&id.0).map(|stderr| (stderr, Messages::default())),
            master_worker: saved.master_worker,
            listeners,
            lease,
            started: UNIX_EPOCH + Duration::from_millis(saved.since),
        };
        self.take_on(id, process).map_err(Error::system("watch a generation that was found"))?;
        if let Some(generation) = self.generations.get_mut(&id) {
            generation.ready = true;
            generation.served = true;
            generation.version = info.as_ref().map(|info| info.version);
            generation.answers = info.and_then(|info| info.pid);
        }
        tracing::info!(generation = id.0, pid, "taken over: {state}");
        self.record(id, event::Kind::TakenOver, format!("taken over: {state}"));
        Ok(Some(state))
    }

    /// The admin connection to a generation that was found, if it answers.
    async fn find_admin(
        &self,
        id: GenerationId,
        saved: &SavedGeneration,
        left: &mut Inheritance,
    ) -> (Option<Admin>, Option<Info>) {
        if !self.settings.kind.has_admin() {
            return (None, None);
        }
        let (send, answer) = oneshot::channel();
        let ready = move |info| drop(send.send(info));
        let admin = match left.admin.remove(&id.0) {
            Some(connection) => Admin::resume(connection, ready),
            // A generation that was told to stop accepts no new connection here.
            None if saved.state == "draining" => return (None, None),
            // It was started without one: see `Rendering::surely_listens`.
            None if !self.directory.admin(id).exists() => return (None, None),
            None => Admin::connect(self.directory.admin(id), ready),
        };
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(Ok(info)) => (Some(admin), Some(info)),
            _ => {
                admin.close();
                (None, None)
            }
        }
    }

    /// Claims what the generation was given: the broker gives the same sockets again.
    async fn claim_again(
        &self,
        id: GenerationId,
        listeners: &[String],
    ) -> (Vec<Rc<Held>>, Option<bindonce::aio::Client>) {
        let claim = async {
            let mut lease = broker::connect(&self.settings.socket).await?;
            self.leases.broker.note(&lease);
            let service = &self.settings.service;
            broker::join(&mut lease, service, id, None, bindonce::State::Starting).await?;
            let wanted: Vec<Listener> = listeners
                .iter()
                .filter_map(|text| crate::generations::listeners::read(text))
                .collect();
            let claims: Vec<_> =
                wanted.iter().map(|listener| Claim::listen(listener.to_string())).collect();
            if claims.is_empty() {
                return Ok((Vec::new(), lease));
            }
            let leases =
                lease.claim(&claims).await.map_err(|error| Error::Claim(Box::new(error)))?;
            let known = self.descriptors();
            let held = leases.into_iter().zip(&wanted);
            let held = held.map(|(lease, listener)| Held::new(lease, listener, &known));
            Ok::<_, Error>((held.collect(), lease))
        };
        match claim.await {
            Ok((listeners, lease)) => (listeners, Some(lease)),
            Err(error) => {
                let text = format!(
                    "its listeners are not to be had from the broker, so the next handover cannot \
                     be proved by their queues: {}",
                    error.story()
                );
                tracing::error!(generation = id.0, "{text}");
                self.record(id, event::Kind::ListenerLost, text);
                (Vec::new(), None)
            }
        }
    }

    /// Says who else holds our listeners: whoever does may accept from them.
    fn name_strangers(&self) {
        let strangers = self.strangers_on(self.generations.values().flat_map(|g| &g.listeners));
        for (pid, command) in strangers {
            let text = "this process also holds listeners of the service and may accept from them; \
                        it is no generation that we know";
            tracing::warn!(pid, command, "{text}");
            let text = format!("{text}: {command}");
            self.report.journal.record(Happening::new(event::Kind::UnknownAcceptor, text).pid(pid));
        }
    }

    /// Processes that hold these listeners and are neither ours nor the broker.
    pub(crate) fn strangers_on<'a>(
        &self,
        listeners: impl Iterator<Item = &'a Rc<Held>>,
    ) -> Vec<(i32, String)> {
        let inodes: BTreeSet<_> = listeners.map(|held| held.inode).collect();
        let inodes: Vec<_> = inodes.into_iter().collect();
        let kind = &self.settings.kind;
        let mut ours: BTreeSet<_> =
            self.generations.values().flat_map(|g| kind.processes(g.pid())).collect();
        ours.insert(i32::try_from(std::process::id()).unwrap_or_default());
        let holders: BTreeSet<_> = holders::of(&inodes).into_iter().map(|h| h.pid).collect();
        let is_ours = |pid: i32| {
            ours.contains(&pid) || process::parent(pid).is_some_and(|parent| ours.contains(&parent))
        };
        holders
            .into_iter()
            .filter(|pid| !is_ours(*pid) && Some(*pid) != self.leases.broker.pid.get())
            .map(|pid| (pid, process::shown(pid)))
            .collect()
    }
}
