//! Texts of replies.

use bindonce_core::error::Invalid;
use bindonce_wire::message::{Request, encode_result};
use bindonce_wire::{ErrorCode, RpcError};
use serde::Serialize;

pub(super) fn encode<T: Serialize>(request: &Request<'_>, result: &T) -> Result<Vec<u8>, RpcError> {
    encode_result(&request.id, result).map_err(|error| unwritten(&error))
}

pub(super) fn unwritten(error: &serde_json::Error) -> RpcError {
    RpcError::new(ErrorCode::INTERNAL, format!("cannot write the reply: {error}"))
}

/// A text that is no listener.
pub(super) fn invalid(error: &Invalid) -> RpcError {
    RpcError::new(ErrorCode::INVALID_PARAMS, error.to_string())
        .with_hint("an address reads [NAME=]ADDR[,OPTION]..., as in web=0.0.0.0:80,backlog=4096")
}
