//! Texts of replies.

use bindonce_core::error::Invalid;
use bindonce_wire::{ErrorCode, RpcError};

/// A text that is no listener.
pub(super) fn invalid(error: &Invalid) -> RpcError {
    RpcError::new(ErrorCode::INVALID_PARAMS, error.to_string())
        .with_hint("an address reads [NAME=]ADDR[,OPTION]..., as in web=0.0.0.0:80,backlog=4096")
}
