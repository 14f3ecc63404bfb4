//! Why a connection ended.

use std::io;

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The peer closed it.
    Closed,
    /// The peer used nothing and sent nothing for too long.
    Idle,
    /// The peer left a request unfinished for too long.
    Unfinished,
    /// The bytes from the peer cannot be cut into requests.
    Malformed,
    /// The peer did not read its reply in time.
    NotRead,
    /// Too many descriptors are in flight, for the kernel (ETOOMANYREFS, unix(7)) or for the peer's
    /// user.
    TooManyInFlight,
    /// There is no room for what would have to be kept for the peer.
    TooMuch,
    /// The daemon cut the connection.
    CutOff,
    /// Reading or writing failed.
    Failed(io::Error),
}
