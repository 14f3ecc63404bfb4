//! The wire protocol of bindonce, without a socket: which bytes make a message, and what a message means.
//!
//! Both sides use it. [`framing`] cuts a stream of bytes into requests,
//! [`message`] reads and writes the JSON-RPC envelope, [`params`] and
//! [`result`] hold what the methods take and give, [`call`] reads a request as one of the methods, [`error`]
//! has the error codes. docs/protocol.md
//! states the same for people who write a client. [`manifest`] is what a broker
//! leaves to its successor.
//!
//! Nothing here reads or writes: bytes come in as slices, decisions go out as
//! values, so that hostile input can be tested one byte at a time.

#![forbid(unsafe_code)]

pub mod call;
pub mod error;
pub mod event;
pub mod framing;
pub mod manifest;
pub mod message;
mod omitted;
pub mod params;
pub mod result;

pub use error::{ErrorCode, RpcError};

/// The longest request, in bytes, that a server reads. A longer one is answered
/// with [`ErrorCode::TOO_LARGE`].
pub const MAX_REQUEST: usize = 1 << 20;
