//! Encodes results as replies.

use std::rc::Rc;

use bindonce_wire::message::{Request, encode_result};
use bindonce_wire::params::Events;
use bindonce_wire::{ErrorCode, RpcError};
use serde::Serialize;

use super::link::Link;
use crate::Journal;
use crate::follow::Follower;

/// The text of a reply with this result.
///
/// # Errors
/// If the result cannot be written as JSON.
pub fn encode<T: Serialize>(request: &Request<'_>, result: &T) -> Result<Vec<u8>, RpcError> {
    encode_result(&request.id, result).map_err(|error| unwritten(&error))
}

/// The error for a result that could not be written.
pub fn unwritten(error: &serde_json::Error) -> RpcError {
    RpcError::new(ErrorCode::INTERNAL, format!("cannot write the reply: {error}"))
}

/// The reply to `events`. If the client wants to follow them, its connection does nothing else
/// after the reply.
///
/// # Errors
/// If as many clients as allowed follow them already.
pub fn events(
    journal: &Rc<Journal>,
    link: &Link,
    request: &Request<'_>,
    wanted: Events,
) -> Result<Vec<u8>, RpcError> {
    let answer = journal.answer(wanted.since, wanted.follow);
    let text = encode(request, &answer)?;
    if wanted.follow {
        let follower = Follower::new(journal).ok_or_else(Follower::refused)?;
        *link.following.borrow_mut() = Some((follower, answer.last));
    }
    Ok(text)
}
