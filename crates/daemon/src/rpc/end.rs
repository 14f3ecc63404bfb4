//! Why a connection ended.

use std::io;

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The peer closed it.
    Closed,
    /// The peer used nothing and said nothing for long.
    Idle,
    /// The peer left a request unfinished for too long.
    Unfinished,
    /// What the peer sent cannot be cut into requests.
    Malformed,
    /// The peer did not read its reply in time.
    NotRead,
    /// The kernel let no more descriptors be in flight (ETOOMANYREFS, unix(7)).
    TooManyInFlight,
    /// More would have to be kept for the peer than there is room for.
    TooMuch,
    /// The daemon has given it up.
    CutOff,
    /// Reading or writing failed.
    Failed(io::Error),
}
