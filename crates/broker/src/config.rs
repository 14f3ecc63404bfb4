//! How one broker is set up.

use std::path::PathBuf;
use std::time::Duration;

use bindonce_core::listener::Wanted;

/// How one broker is set up. Everything is known before anything is bound.
#[derive(Debug, Clone)]
pub struct Config {
    /// Path of the control socket.
    pub socket: PathBuf,
    /// What to bind at the start, before anybody can connect; all or nothing.
    pub listen: Vec<Wanted>,
    /// How long a peer may take to finish a request, and to read a reply.
    pub deadline: Duration,
}

impl Config {
    /// A broker on this control socket, with nothing bound and 30 seconds of patience.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), listen: Vec::new(), deadline: Duration::from_secs(30) }
    }
}
