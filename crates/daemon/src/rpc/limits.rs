//! The limits for clients.

use std::time::Duration;

/// Root and the daemon's user have this many times `buffered_bytes` to themselves, each at most
/// half of that. No other user takes it from them, and replies that one of them never reads do not
/// fill the memory either.
pub(super) const RESERVED: usize = 4;

/// The most that clients may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections that are accepted; further ones wait in the accept queue.
    pub accepted: usize,
    /// Open connections; further ones are refused. An eighth is reserved for root and the daemon's
    /// user.
    pub connections: usize,
    /// Open connections of one user.
    pub connections_per_user: usize,
    /// Open connections of all users to whom no rule gives any right.
    pub connections_without_rights: usize,
    /// Bytes that are kept for clients: requests that are not finished or not answered yet, and
    /// replies that are not read yet. A user may have half. Root and the daemon's user have
    /// `RESERVED` times as much for themselves.
    pub buffered_bytes: usize,
    /// The longest request, in bytes.
    pub request_bytes: usize,
    /// How long a peer may take to finish a request, and to read a reply.
    pub request_time: Duration,
    /// How long a connection that uses nothing may be idle.
    pub idle_time: Duration,
    /// Descriptors that clients have sent and that are not taken yet.
    pub descriptors_in_flight: usize,
    /// Descriptors that were sent to clients and are not received yet.
    pub descriptors_unreceived: usize,
}
