//! The supervisor's answers about itself and its generations.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bindonce_core::generation::State;
use bindonce_haproxy::cli::oldest_sessions;
use bindonce_haproxy::counters::Lately;
use bindonce_sys::process;
use serde_json::Map;
use tokio::sync::oneshot;

use crate::control;
use crate::generations::drain::milliseconds;
use crate::generations::generation::Generation;
use crate::generations::since::LATELY;
use crate::replies::{self, GenerationStatus, OwnAddress, Pong, Status};
use crate::report::view::View;

/// How long a draining generation may take to list its sessions.
const SESSIONS: Duration = Duration::from_millis(500);

impl View<'_> {
    /// Answers at once, whatever haproxy does.
    pub(crate) fn tell_alive(&self, reply: oneshot::Sender<control::Answer>) {
        let serving = self.timeline.serving().map(|id| id.0);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        // The client may have gone away.
        let _ = reply.send(replies::result(&Pong { pong: true, version, serving }));
    }

    /// Sends the full status, for `bindonce status`. Draining generations are first asked for what
    /// only they know.
    pub(crate) fn tell_status(&self, reply: oneshot::Sender<control::Answer>) {
        let mut status = self.status();
        let ask: Vec<_> = self
            .generations
            .iter()
            .filter(|generation| self.timeline.state_of(generation.id) == Some(State::Draining))
            .filter_map(|generation| Some((generation.id.0, generation.cli.admin.clone()?)))
            .collect();
        crate::tasks::spawn(async move {
            for (id, admin) in ask {
                let Ok(answer) = admin.ask("show sess", SESSIONS).await else { continue };
                let generations = status.generations.iter_mut();
                for known in generations.filter(|known| known.generation == id) {
                    known.drain.oldest_sessions = oldest_sessions(&answer);
                }
            }
            // The client may have gone away.
            let _ = reply.send(replies::result(&status));
        });
    }

    /// The same, without questions to generations.
    pub(crate) fn tell_state(&self, reply: oneshot::Sender<control::Answer>) {
        // The client may have gone away.
        let _ = reply.send(replies::result(&self.status()));
    }

    fn status(&self) -> Status {
        let now = Instant::now();
        let (all, draining) = &self.report.lately;
        let (all, draining) = (all.sum(now), draining.sum(now));
        let generations = self.timeline.generations().map(|(id, state)| {
            let generation = self.generations.get(&id);
            let pid = generation.map(Generation::pid);
            GenerationStatus {
                generation: id.0,
                state: state.to_string(),
                pid,
                since: generation.map(|known| known.start.at.to_string()),
                // From the monotonic clock.
                age: pid.and_then(process::age).map(|age| age.as_secs()),
                version: generation.and_then(|known| known.cli.version).map(|v| v.to_string()),
                listeners: generation.map(|known| known.listeners.len()),
                drain: generation.map(|known| known.drain.status()).unwrap_or_default(),
                start_ms: generation.and_then(|known| known.start.took).and_then(milliseconds),
                memory: pid.and_then(process::memory),
                more: Map::new(),
            }
        });
        let left_alone = self.rendering.into_iter().flat_map(|rendering| &rendering.left_alone);
        let left_alone = left_alone.map(|line| OwnAddress {
            place: line.place.to_string(),
            address: line.text.clone(),
            reason: line.reason.to_string(),
        });
        let unseen: BTreeSet<_> =
            self.generations.iter().flat_map(|generation| &generation.own.unseen).collect();
        Status {
            service: self.cx.settings.service.to_string(),
            program: self.cx.settings.kind.name().into_owned(),
            pid: std::process::id(),
            socket: self.cx.settings.broker.socket.clone(),
            generations: generations.collect(),
            counts: self.report.counts,
            lately: Lately {
                seconds: LATELY.as_secs(),
                requests: all.requests,
                bytes: all.bytes,
                draining_requests: draining.requests,
                draining_bytes: draining.bytes,
            },
            upgrades: self.upgrades,
            reloads_waiting: self.timeline.reloads_waiting(),
            left_alone: left_alone.collect(),
            unseen: unseen.into_iter().cloned().collect(),
            more: Map::new(),
        }
    }
}
