//! What a supervisor is told, once and for its whole life.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::generation as timeline;
use bindonce_core::listener::Listener;
use bindonce_core::name::Name;
use bindonce_haproxy::config::MasterSocket;

use crate::adopt::Replaced;
use crate::broker::Log;
use crate::kind::Kind;

/// What a supervisor is told on its command line.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The broker's control socket.
    pub socket: PathBuf,
    /// Whether a broker is started when none answers there.
    pub start_broker: bool,
    /// The name of the service.
    pub service: Name,
    /// What is supervised.
    pub kind: Kind,
    /// `--listen NAME=ADDR`, ranges expanded. A program other than haproxy gets these and no others;
    /// each has a name.
    pub listeners: Vec<Listener>,
    /// Time limits, and how many generations may drain.
    pub timing: timeline::Settings,
    /// How long connections of an older generation may be idle before they are closed; none: as haproxy does by itself.
    pub drain_idle: Option<Duration>,
    /// How long a start waits until the generation that serves has learned its stick tables.
    pub peers_timeout: Duration,
    /// Whether a handover connects to listeners where no client waits.
    pub probe: bool,
    /// What is done about ghosts.
    pub ghosts: Ghosts,
    /// Files and directories whose change is a reload.
    pub watch: Vec<PathBuf>,
    /// Where the master CLI is served (haproxy's `-S`).
    pub master_cli: Vec<MasterSocket>,
    /// It stands in for haproxy under its name: SIGTERM and SIGINT end it at once, as they end haproxy's master.
    pub at_once: bool,
    /// Who waits for the first generation to serve, in a process that goes on in the background: it reads one line
    /// here, once that generation serves.
    pub starter: Option<Rc<OwnedFd>>,
    /// A haproxy that runs without bindonce, to be replaced by the first generation.
    pub replaced: Replaced,
    /// Where metrics are exported too, beside the UNIX socket that always is.
    pub metrics: Option<Listener>,
    /// Whether that listener serves the status page to everybody who reaches it; else only to this host.
    pub status_page: bool,
}

impl Settings {
    /// Where a broker that is started writes its log; none: none is started.
    pub(crate) fn broker_log(&self) -> Option<Log> {
        self.start_broker.then_some(if self.at_once { Log::Through } else { Log::Ours })
    }
}

/// What is done about a generation that is woken for connections of a listener that it has closed
/// (a ghost: epoll watches the socket, which others hold open).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ghosts {
    /// Remove it from its epoll sets; where the kernel refuses, start haproxy without epoll.
    Auto,
    /// Remove it from its epoll sets, or say so.
    Detach,
    /// Start every haproxy without epoll (`-de`).
    NoEpoll,
    /// Nothing.
    Ignore,
}
