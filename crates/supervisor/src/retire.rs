//! Ending a replaced generation because somebody wants it to end now.

use bindonce_core::generation::{Event, GenerationId, State};
use bindonce_wire::{ErrorCode, RpcError};
use serde_json::json;
use tokio::sync::oneshot;

use super::Supervisor;
use super::control::Answer;
use super::generation::Generation;

/// Somebody who waits until a generation is gone, and what it had when that was asked for.
pub(super) struct Retiring {
    id: GenerationId,
    pid: Option<i32>,
    connections: Option<u64>,
    reply: oneshot::Sender<Answer>,
}

impl Supervisor {
    /// Ends the generation that is wanted, else the oldest one that drains; answers when it is gone.
    pub(super) fn retire(&mut self, wanted: Option<u64>, reply: oneshot::Sender<Answer>, by: i32) {
        let id = match self.to_retire(wanted.map(GenerationId)) {
            Ok(id) => id,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let known = self.generations.get(&id);
        let (pid, connections) = (known.map(Generation::pid), known.and_then(|g| g.connections));
        tracing::info!(generation = id.0, pid, connections, sender = by, "asked to end it");
        self.retiring.push(Retiring { id, pid, connections, reply });
        self.feed(Event::Retire(id));
    }

    fn to_retire(&self, wanted: Option<GenerationId>) -> Result<GenerationId, RpcError> {
        let service = &self.settings.service;
        let drains = |id: &GenerationId| self.state_of(*id) == Some(State::Draining);
        let mut known = self.timeline.generations().map(|(id, _)| id);
        match wanted {
            None => known.find(drains).ok_or_else(|| {
                let text = format!("no generation of {service} drains");
                RpcError::new(ErrorCode::NOT_FOUND, text)
                    .with_hint("`bindonce status` shows the generations that there are")
            }),
            Some(id) if drains(&id) => Ok(id),
            Some(id) => Err(match self.state_of(id) {
                Some(state) => {
                    let text = format!("generation {id} of {service} is {state}, not draining");
                    RpcError::new(ErrorCode::IN_USE, text).with_hint(
                        "`bindonce reload` replaces what serves; SIGTERM to the supervisor ends the service",
                    )
                }
                None => {
                    let text = format!("{service} has no generation {id}");
                    RpcError::new(ErrorCode::NOT_FOUND, text)
                        .with_hint("`bindonce status` shows the generations that there are")
                }
            }),
        }
    }

    /// A generation is gone: answers everybody who wanted it to be.
    pub(super) fn retired(&mut self, id: GenerationId) {
        for Retiring { pid, connections, reply, .. } in
            self.retiring.extract_if(.., |retiring| retiring.id == id)
        {
            let told = json!({ "generation": id.0, "pid": pid, "connections": connections });
            // Whoever asked may have gone away.
            let _ = reply.send(Ok(told));
        }
    }
}
