//! How one broker is set up.

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What clients cost before they have anything.
    pub clients: rpc::Limits,
    /// Listeners that are held.
    pub listeners: usize,
    /// Listeners that claims of one user have created.
    pub listeners_per_user: usize,
    /// Leases that the connections of one user have together; root and the broker's user may have more.
    pub leases_per_user: usize,
    /// How long a generation that was told to retire has to report that it has stopped accepting.
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
                // Not to be configured: the kernel's limit decides (`Broker::configure`).
                descriptors_unreceived: 0,
            },
            listeners: 200_000,
            listeners_per_user: 150_000,
            leases_per_user: 150_000,
            retire_time: succession::PATIENCE,
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
    /// Whether that listener serves the status page to everybody who reaches it; else only to this host.
    pub status_page: bool,
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
            status_page: false,
            file: None,
            rules: Vec::new(),
            limits: Limits::default(),
            orders: Orders::default(),
            inherited: None,
        }
    }
}
