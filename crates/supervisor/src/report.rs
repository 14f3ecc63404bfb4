//! What the supervisor tells people: the answer to a reload, the status, the log.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bindonce_core::duration;
use bindonce_core::event;
use bindonce_core::generation::{Failure, GenerationId, Outcome, Reason, State};
use bindonce_core::time::Timestamp;
use bindonce_observe::Happening;
use bindonce_sys::process;
use bindonce_sys::signals::Signal as Number;
use bindonce_wire::{ErrorCode, RpcError};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::generation::Generation;
use super::promise::Kept;
use super::{Supervisor, control, sessions};

/// How long a draining generation may take to tell its sessions.
const SESSIONS: Duration = Duration::from_millis(500);

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) reloads: u64,
    pub(super) failures: u64,
    pub(super) restarts: u64,
    pub(super) ghosts_removed: u64,
}

/// Why a generation failed.
#[derive(Debug, Clone, Default)]
pub(super) struct Story {
    /// What happened; haproxy's own words, if it said any.
    pub(super) text: String,
    /// What to do about it, where there is more to say than to correct the configuration.
    pub(super) hint: Option<String>,
    /// It was ended by us, for this reason.
    pub(super) ours: bool,
}

impl Story {
    /// The message with its hint, for somebody who sees only text.
    pub(super) fn whole(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}\nhint: {hint}", self.text),
            None => self.text.clone(),
        }
    }
}

impl Supervisor {
    /// The answer to everybody who waits for a reload.
    pub(super) fn outcome(&mut self, outcome: &Outcome) -> control::Answer {
        match outcome {
            Outcome::Serving { id, ended, alone } => {
                self.counts.reloads += 1;
                self.measured.ended((!alone).then_some("not-alone"));
                let ended: Vec<_> = ended.iter().map(|id| id.0).collect();
                if !ended.is_empty() {
                    tracing::warn!(generation = id.0, ?ended, "older generations had to be ended");
                }
                if !alone {
                    return Err(self.strangers(*id));
                }
                let text = match ended.as_slice() {
                    [] => "serving alone".to_owned(),
                    ended => format!("serving alone; older generations had to be ended: {ended:?}"),
                };
                self.record(*id, event::Kind::ReloadDone, text);
                let pid = self.generations.get(id).map(Generation::pid);
                let Kept { left, none } = std::mem::take(&mut self.kept);
                Ok(json!({
                    "generation": id.0, "pid": pid, "ended": ended, "left": left, "none_kept": none,
                }))
            }
            Outcome::Failed(id, failure) => {
                self.counts.failures += 1;
                let serving = self.timeline.serving();
                let story = self.failure_story(*id, *failure);
                let kept = match serving {
                    Some(serving) => format!("generation {serving} serves on"),
                    None => "nothing serves".to_owned(),
                };
                // The program's own words have been passed on as they came.
                let first = story.lines().next().unwrap_or_default();
                tracing::error!(generation = id.0, "not started; {kept}: {first}");
                let cause = cause(*failure);
                self.measured.ended(Some(cause));
                self.record(*id, event::Kind::ReloadFailed, format!("{cause}; {kept}: {story}"));
                let hint = self.failure.hint.as_deref();
                let text = format!("{story}\n{kept}");
                Err(RpcError::new(ErrorCode::RELOAD_FAILED, text)
                    .with_hint(hint.unwrap_or("correct that, then run `bindonce reload` again"))
                    .with("generation", id.0)
                    .with("serving", serving.map(|id| id.0)))
            }
            Outcome::ShuttingDown => {
                Err(RpcError::new(ErrorCode::RELOAD_FAILED, "the service is being shut down")
                    .with_hint("start it again with `bindonce run`"))
            }
        }
    }

    fn failure_story(&self, id: GenerationId, failure: Failure) -> String {
        match failure {
            _ if self.failure.ours => self.failure.text.clone(),
            Failure::NotStarted | Failure::Exited => self.failure.text.clone(),
            Failure::NotReady => format!(
                "generation {id} was not ready within {}; raise --ready-timeout if it needs longer\n{}",
                duration::format(self.settings.timing.ready_timeout),
                self.failure.text
            ),
            Failure::DiedInHandover => {
                format!(
                    "generation {id} died when it was about to take over\n{}",
                    self.failure.text
                )
            }
        }
    }

    /// The new generation serves, and so does somebody unknown: says who.
    fn strangers(&self, id: GenerationId) -> RpcError {
        let Some(generation) = self.generations.get(&id) else {
            return RpcError::new(ErrorCode::INTERNAL, "the generation is gone");
        };
        let strangers = self.strangers_on(generation.listeners.iter());
        let named: Vec<_> =
            strangers.iter().map(|(pid, command)| format!("pid {pid} ({command})")).collect();
        let who =
            if named.is_empty() { "nobody that /proc shows".to_owned() } else { named.join(", ") };
        let text = format!(
            "generation {id} serves, but a process that is no generation of this service also \
             accepts on its listeners; they are also held by: {who}"
        );
        tracing::error!(generation = id.0, "{text}");
        self.record(id, event::Kind::ReloadFailed, text.as_str());
        for (pid, command) in &strangers {
            let text = format!("holds listeners of the service and may accept: {command}");
            self.journal.record(Happening::new(event::Kind::UnknownAcceptor, text).pid(*pid));
        }
        let pids: Vec<_> = strangers.iter().map(|(pid, _)| *pid).collect();
        RpcError::new(ErrorCode::NOT_ALONE, text)
            .with_hint("end that process, then run `bindonce reload`")
            .with("generation", id.0)
            .with("strangers", pids)
    }

    /// Answers at once, whatever haproxy does.
    pub(super) fn tell_alive(&self, reply: oneshot::Sender<control::Answer>) {
        let serving = self.timeline.serving().map(|id| id.0);
        let version = env!("CARGO_PKG_VERSION");
        // A client that has gone away no longer waits for it.
        let _ = reply.send(Ok(json!({ "pong": true, "version": version, "serving": serving })));
    }

    /// Tells everything there is to know, for `bindonce status`. What only a draining generation
    /// itself knows is asked of it first.
    pub(super) fn tell_status(&self, reply: oneshot::Sender<control::Answer>) {
        let mut status = self.status();
        let draining = |id: &&GenerationId| self.state_of(**id) == Some(State::Draining);
        let ask: Vec<_> = self
            .generations
            .keys()
            .filter(draining)
            .filter_map(|id| Some((id.0, self.generations.get(id)?.admin.clone()?)))
            .collect();
        super::spawn(async move {
            for (id, admin) in ask {
                let Ok(answer) = admin.ask("show sess", SESSIONS).await else { continue };
                let generations = status["generations"].as_array_mut().into_iter().flatten();
                for generation in generations.filter(|known| known["generation"] == id) {
                    generation["oldest_sessions"] = json!(sessions::oldest(&answer));
                }
            }
            // A client that has gone away no longer waits for it.
            let _ = reply.send(Ok(status));
        });
    }

    fn status(&self) -> Value {
        let generations: Vec<_> = self
            .timeline
            .generations()
            .map(|(id, state)| {
                let generation = self.generations.get(&id);
                let started = generation.map(|g| milliseconds(g.started));
                // By the clock that nobody sets.
                let age = generation.and_then(|g| process::age(g.pid())).map(|age| age.as_secs());
                json!({
                    "generation": id.0,
                    "state": state.to_string(),
                    "pid": generation.map(Generation::pid),
                    "since": started.map(|at| Timestamp(at).to_string()),
                    "age": age,
                    "version": generation.and_then(|g| g.version).map(|v| v.to_string()),
                    "listeners": generation.map(|g| g.listeners.len()),
                    "connections": generation.and_then(|g| g.connections),
                    "memory": generation.and_then(|g| process::memory(g.pid())),
                })
            })
            .collect();
        let of = self.timeline.serving().and_then(|id| self.timeline.configuration_of(id));
        let prepared = of.and_then(|of| self.configurations.get(&of));
        let alone = prepared.and_then(|prepared| prepared.rendering());
        let alone = alone.map(|rendering| rendering.left_alone.as_slice());
        let left_alone: Vec<_> = alone
            .unwrap_or_default()
            .iter()
            .map(|line| {
                let place = line.place.to_string();
                json!({ "place": place, "address": line.text, "reason": line.reason })
            })
            .collect();
        json!({
            "service": self.settings.service.as_str(),
            "program": self.settings.kind.name(),
            "pid": std::process::id(),
            "socket": self.settings.socket,
            "generations": generations,
            "reloads": self.counts.reloads,
            "failed_reloads": self.counts.failures,
            "restarts": self.counts.restarts,
            "ghosts_removed": self.counts.ghosts_removed,
            "upgrades": self.upgrades,
            "left_alone": left_alone,
        })
    }
}

impl Supervisor {
    /// Logs a signal with its reason; what is not the normal course is a warning, once.
    pub(super) fn log_signal(
        &mut self,
        id: GenerationId,
        pid: i32,
        signal: Number,
        reason: Reason,
    ) {
        let said_before = self.last_warning.replace((id, reason)) == Some((id, reason));
        let signal = signal.as_str();
        let why = match reason {
            Reason::Handover | Reason::Shutdown => {
                return tracing::debug!(generation = id.0, pid, signal, "signalled");
            }
            _ if said_before => {
                return tracing::debug!(generation = id.0, pid, signal, "signalled again");
            }
            Reason::TakenOver => {
                return tracing::info!(generation = id.0, pid, signal, "told to stop again");
            }
            Reason::AddressInUse => {
                return tracing::info!(
                    generation = id.0,
                    pid,
                    signal,
                    "paused for a moment: the new generation needs an address that it has bound by itself"
                );
            }
            Reason::AddressNotBound => {
                "the new generation did not get the address that it was paused for"
            }
            Reason::Again => "the last signal is not obeyed yet",
            Reason::NewerDied => "the generation that was to take over died",
            Reason::Silent => "it does not answer while the service is paused for it",
            Reason::NotReady => "it was not ready in time (--ready-timeout)",
            Reason::ListensAgain => {
                "it had closed its listeners and has them again: its own master was reloaded"
            }
            Reason::StillAccepts => {
                "it did not close its listeners in time (--retire-timeout, which must be longer than \
                 `grace` of haproxy)"
            }
            Reason::NotConfirmed => "it did not confirm that it stopped (--retire-timeout)",
            Reason::DrainTimeout => "its connections did not end in time (--drain-timeout)",
            Reason::TooManyDraining => "more generations drain than --max-draining allows",
            Reason::Retired => "somebody wants it to end (`bindonce retire`)",
            Reason::DidNotExit => "it did not exit when it was told to",
        };
        tracing::warn!(generation = id.0, pid, signal, "signalled: {why}");
        self.record(id, event::Kind::SignalEscalated, format!("{signal}: {why}"));
    }
}

/// Why a generation failed, in one word that metrics have too.
pub(super) fn cause(failure: Failure) -> &'static str {
    match failure {
        Failure::NotStarted => "not-started",
        Failure::Exited => "exited",
        Failure::NotReady => "not-ready",
        Failure::DiedInHandover => "died-in-handover",
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
