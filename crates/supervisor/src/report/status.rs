//! What the supervisor answers about itself and its generations.

use std::time::Duration;

use bindonce_core::generation::{GenerationId, State};
use bindonce_core::time::Timestamp;
use bindonce_sys::process;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::control;
use crate::generations::generation::Generation;
use crate::report::milliseconds;
use crate::supervisor::Supervisor;
use bindonce_haproxy::cli::oldest_sessions;

/// How long a draining generation may take to tell its sessions.
const SESSIONS: Duration = Duration::from_millis(500);

impl Supervisor {
    /// Answers at once, whatever haproxy does.
    pub(crate) fn tell_alive(&self, reply: oneshot::Sender<control::Answer>) {
        let serving = self.timeline.serving().map(|id| id.0);
        let version = env!("CARGO_PKG_VERSION");
        // A client that has gone away no longer waits for it.
        let _ = reply.send(Ok(json!({ "pong": true, "version": version, "serving": serving })));
    }

    /// Tells everything there is to know, for `bindonce status`. What only a draining generation
    /// itself knows is asked of it first.
    pub(crate) fn tell_status(&self, reply: oneshot::Sender<control::Answer>) {
        let mut status = self.status();
        let draining = |id: &&GenerationId| self.state_of(**id) == Some(State::Draining);
        let ask: Vec<_> = self
            .generations
            .keys()
            .filter(draining)
            .filter_map(|id| Some((id.0, self.generations.get(id)?.admin.clone()?)))
            .collect();
        crate::tasks::spawn(async move {
            for (id, admin) in ask {
                let Ok(answer) = admin.ask("show sess", SESSIONS).await else { continue };
                let generations = status["generations"].as_array_mut().into_iter().flatten();
                for generation in generations.filter(|known| known["generation"] == id) {
                    generation["oldest_sessions"] = json!(oldest_sessions(&answer));
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
        let prepared = of.and_then(|of| self.starts.configurations.get(&of));
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
            "reloads": self.report.counts.reloads,
            "failed_reloads": self.report.counts.failures,
            "restarts": self.report.counts.restarts,
            "ghosts_removed": self.report.counts.ghosts_removed,
            "upgrades": self.upgrade.count,
            "left_alone": left_alone,
        })
    }
}
