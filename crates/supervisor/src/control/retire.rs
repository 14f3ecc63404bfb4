//! Ending a replaced generation because somebody wants it to end now.

use bindonce_core::generation::{Event, GenerationId, State};
use bindonce_wire::{ErrorCode, RpcError};
use tokio::sync::oneshot;

use crate::control::Answer;
use crate::control::requests::Retirement;
use crate::generations::generation::Generation;
use crate::supervisor::Supervisor;

impl Supervisor {
    /// Ends the generation that is wanted, else the oldest one that drains; answers when it is gone.
    pub(crate) fn retire(&mut self, wanted: Option<u64>, reply: oneshot::Sender<Answer>, by: i32) {
        let id = match self.to_retire(wanted.map(GenerationId)) {
            Ok(id) => id,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let known = self.generations.get(&id);
        let (pid, connections) = (known.map(Generation::pid), known.and_then(|g| g.connections));
        tracing::info!(generation = id.0, pid, connections, sender = by, "asked to end it");
        self.requests.await_end(Retirement { id, pid, connections, reply });
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
}
