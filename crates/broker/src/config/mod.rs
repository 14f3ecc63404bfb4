//! The configuration of one broker.

mod file;
mod settings;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bindonce_core::listener::{Listener, Wanted};
use bindonce_core::policy::Rule;
use bindonce_core::succession;
use bindonce_daemon::rpc;
use tokio::sync::Notify;

use crate::upgrade::Inherited;

pub use file::File;
pub use settings::WrittenRule;

/// Orders to a running broker from outside, such as by a signal. The broker's owner keeps a clone.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    pub(crate) upgrade: Arc<Notify>,
    pub(crate) reread: Arc<Notify>,
}

impl Orders {
    /// Orders the broker to become the binary that is installed now.
    pub fn upgrade(&self) {
        self.upgrade.notify_one();
    }

    /// Orders the broker to reread the rules and limits of the configuration file.
    pub fn reread(&self) {
        self.reread.notify_one();
    }
}

/// Limits on what a broker lets its clients have. System limits (RLIMIT_NOFILE) apply too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Limits on what clients cost before they have any listener.
    pub clients: rpc::Limits,
    /// Listeners held in total.
    pub listeners: usize,
    /// Listeners that the claims of one user have created.
    pub listeners_per_user: usize,
    /// Leases of all connections of one user together. Root and the broker's user may have more.
    pub leases_per_user: usize,
    /// How long a generation that was told to retire has to report that it stopped accepting.
    pub retire_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: rpc::Limits {
                accepted: usize::MAX,
                connections: 4096,
                connections_per_user: 2048,
                connections_without_rights: 64,
                buffered_bytes: 8 << 20,
                request_bytes: bindonce_wire::MAX_REQUEST,
                request_time: Duration::from_secs(30),
                idle_time: Duration::from_secs(600),
                descriptors_in_flight: 4096,
                // Not configurable: the kernel's limit decides (`Broker::configure`).
                descriptors_unreceived: 0,
            },
            listeners: 200_000,
            listeners_per_user: 150_000,
            leases_per_user: 150_000,
            retire_time: succession::PATIENCE,
        }
    }
}

/// The configuration of one broker. Everything is known before anything is bound.
#[derive(Debug)]
pub struct Config {
    /// Path of the control socket.
    pub socket: PathBuf,
    /// Listeners to bind at the start, before any client can connect; all or nothing.
    pub listen: Vec<Wanted>,
    /// Listener that exports metrics as well, besides the UNIX socket that always does.
    pub metrics: Option<Listener>,
    /// Whether that listener serves the status page to everyone who reaches it, not just this host.
    pub status_page: bool,
    /// The configuration file, reread when ordered.
    pub file: Option<PathBuf>,
    /// Access rules. Without any, root and the broker's own user may do everything.
    pub rules: Vec<Rule>,
    /// Limits on what clients may use.
    pub limits: Limits,
    /// Orders that the broker takes while it runs.
    pub orders: Orders,
    /// State left by an earlier image of this process ([`inherited`](crate::inherited)).
    pub inherited: Option<Inherited>,
}

impl Config {
    /// A broker on this control socket, with nothing bound, no rules, and the default limits.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            listen: Vec::new(),
            metrics: None,
            status_page: false,
            file: None,
            rules: Vec::new(),
            limits: Limits::default(),
            orders: Orders::default(),
            inherited: None,
        }
    }
}
