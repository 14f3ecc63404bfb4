//! The elements of a request: how many are read in a turn, and the reply for an invalid one.

use bindonce_core::error::Invalid;
use bindonce_wire::{ErrorCode, RpcError};

/// Elements of a request that are examined in one turn, at about a microsecond each.
pub(super) const READ_AT_ONCE: usize = 256;

/// The error for a text that is not a listener.
pub(super) fn invalid(error: &Invalid) -> RpcError {
    RpcError::new(ErrorCode::INVALID_PARAMS, error.to_string())
        .with_hint("an address reads [NAME=]ADDR[,OPTION]..., as in web=0.0.0.0:80,backlog=4096")
}
