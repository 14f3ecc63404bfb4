//! Addresses in haproxy's own bind syntax, parsed to a typed value.

use std::net::SocketAddr;

/// Where one listener listens. Printing it gives the canonical text, which
/// parses back to the same value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// TCP, printed as `10.0.0.1:80` or `[::1]:80`.
    Tcp(SocketAddr),
    /// UDP, printed as `udp4@10.0.0.1:53` or `udp6@[::1]:53`.
    Udp(SocketAddr),
    /// A UNIX stream socket on a path, printed as `unix@/run/app.sock`. Absolute,
    /// without NUL, at most 107 bytes.
    Unix(String),
    /// A UNIX stream socket in the abstract name space, printed as `abns@name`.
    Abstract(String),
}
