//! Chooses the generation that `bindonce retire` ends.

use bindonce_core::generation::{GenerationId, State, Timeline};
use bindonce_core::name::{Name, service_option};
use bindonce_wire::{ErrorCode, RpcError};

/// The generation to end: the requested one, else the oldest draining one.
///
/// # Errors
/// If there is no such generation, or it does not drain.
pub(crate) fn choose(
    service: &Name,
    timeline: &Timeline,
    wanted: Option<GenerationId>,
) -> Result<GenerationId, RpcError> {
    let drains = |id: &GenerationId| timeline.state_of(*id) == Some(State::Draining);
    let mut known = timeline.generations().map(|(id, _)| id);
    let not_found = |text: String| {
        RpcError::new(ErrorCode::NOT_FOUND, text)
            .with_hint("`bindonce status` shows the generations that there are")
    };
    match wanted {
        None => known
            .find(drains)
            .ok_or_else(|| not_found(format!("no generation of {service} drains"))),
        Some(id) if drains(&id) => Ok(id),
        Some(id) => Err(match timeline.state_of(id) {
            Some(state) => {
                let text = format!("generation {id} of {service} is {state}, not draining");
                RpcError::new(ErrorCode::IN_USE, text).with_hint(format!(
                    "`bindonce reload{}` replaces what serves; SIGTERM to the supervisor ends the service",
                    service_option(service)
                ))
            }
            None => not_found(format!("{service} has no generation {id}")),
        }),
    }
}
