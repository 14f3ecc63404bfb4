//! How one broker is set up.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bindonce_core::listener::Wanted;
use tokio::sync::Notify;

use crate::upgrade::Inherited;

/// What a running broker is told from outside, for example by a signal. Whoever runs the
/// broker keeps a copy.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    pub(crate) upgrade: Arc<Notify>,
}

impl Orders {
    /// Become the binary that is installed now.
    pub fn upgrade(&self) {
        self.upgrade.notify_one();
    }
}

/// How one broker is set up. Everything is known before anything is bound.
#[derive(Debug)]
pub struct Config {
    /// Path of the control socket.
    pub socket: PathBuf,
    /// What to bind at the start, before anybody can connect; all or nothing.
    pub listen: Vec<Wanted>,
    /// How long a peer may take to finish a request, and to read a reply.
    pub deadline: Duration,
    /// How it is told to do something while it runs.
    pub orders: Orders,
    /// What an earlier image of this process has left ([`inherited`](crate::inherited)).
    pub inherited: Option<Inherited>,
}

impl Config {
    /// A broker on this control socket, with nothing bound and 30 seconds of patience.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            listen: Vec::new(),
            deadline: Duration::from_secs(30),
            orders: Orders::default(),
            inherited: None,
        }
    }
}
