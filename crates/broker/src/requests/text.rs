//! The elements of a request: how many are read in a turn, and the reply for one that cannot be.

use bindonce_core::error::Invalid;
use bindonce_wire::{ErrorCode, RpcError};

/// So many elements of a request are looked at in one turn: about a microsecond each.
pub(super) const READ_AT_ONCE: usize = 256;

/// A text that is no listener.
pub(super) fn invalid(error: &Invalid) -> RpcError {
    RpcError::new(ErrorCode::INVALID_PARAMS, error.to_string())
        .with_hint("an address reads [NAME=]ADDR[,OPTION]..., as in web=0.0.0.0:80,backlog=4096")
}
