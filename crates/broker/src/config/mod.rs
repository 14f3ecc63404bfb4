//! How one broker is set up.

mod file;
mod settings;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bindonce_core::listener::{Listener, Wanted};
use bindonce_core::policy::Rule;
use bindonce_core::succession;
use tokio::sync::Notify;

use crate::upgrade::Inherited;

pub use file::File;
pub use settings::WrittenRule;

/// Orders to a running broker from outside, for example by a signal. The owner of the
/// broker keeps a copy.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    pub(crate) upgrade: Arc<Notify>,
    pub(crate) reread: Arc<Notify>,
}

impl Orders {
    /// Become the binary that is installed now.
    pub fn upgrade(&self) {
        self.upgrade.notify_one();
    }

    /// Read the rules and limits of the configuration file again.
    pub fn reread(&self) {
        self.reread.notify_one();
    }
}

/// How much of everything a broker lets its clients have. The system's own limits
/// (RLIMIT_NOFILE) hold beside these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
    /// Open connections of one user.
    pub connections_per_user: usize,
    /// Open connections of all users that no rule allows anything.
    pub connections_without_rights: usize,
    /// Bytes that are kept for clients: requests that are not finished or not answered yet, replies
    /// that are not read yet. A user may have half.
    pub buffered_bytes: usize,
    /// Listeners that are held.
    pub listeners: usize,
    /// Listeners that claims of one user have created.
    pub listeners_per_user: usize,
    /// The longest request, in bytes.
    pub request_bytes: usize,
    /// How long a peer may take to finish a request, and to read a reply.
    pub request_time: Duration,
    /// How long a connection that uses no listener and has joined no service may be idle.
    pub idle_time: Duration,
    /// How long a generation that was told to retire has to report that it has stopped accepting.
    pub retire_time: Duration,
    /// Descriptors that clients have sent and that are not taken yet.
    pub descriptors_in_flight: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_user: 2048,
            connections_without_rights: 64,
            buffered_bytes: 8 << 20,
            listeners: 200_000,
            listeners_per_user: 150_000,
            request_bytes: bindonce_wire::MAX_REQUEST,
            request_time: Duration::from_secs(30),
            idle_time: Duration::from_secs(600),
            retire_time: succession::PATIENCE,
            descriptors_in_flight: 4096,
        }
    }
}

/// How one broker is set up. Everything is known before anything is bound.
#[derive(Debug)]
pub struct Config {
    /// Path of the control socket.
    pub socket: PathBuf,
    /// What to bind at the start, before anybody can connect; all or nothing.
    pub listen: Vec<Wanted>,
    /// Where metrics are exported too, beside the UNIX socket that always is.
    pub metrics: Option<Listener>,
    /// The configuration file, to be read again when that is ordered.
    pub file: Option<PathBuf>,
    /// Who may do what; without any, root and the broker's own user everything.
    pub rules: Vec<Rule>,
    /// How much of everything.
    pub limits: Limits,
    /// Orders that it takes while it runs.
    pub orders: Orders,
    /// What an earlier image of this process has left ([`inherited`](crate::inherited)).
    pub inherited: Option<Inherited>,
}

impl Config {
    /// A broker on this control socket, with nothing bound, no rules, and the default limits.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            listen: Vec::new(),
            metrics: None,
            file: None,
            rules: Vec::new(),
            limits: Limits::default(),
            orders: Orders::default(),
            inherited: None,
        }
    }
}
