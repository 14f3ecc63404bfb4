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
    /// The broker.
    pub broker: BrokerSettings,
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
    /// How a handover is done.
    pub handover: HandoverSettings,
    /// Files and directories whose change is a reload.
    pub watch: Vec<PathBuf>,
    /// Where the master CLI is served (haproxy's `-S`).
    pub master_cli: Vec<MasterSocket>,
    /// It stands in for haproxy under its name: SIGTERM and SIGINT end it at once, as they end haproxy's master.
    pub at_once: bool,
    /// What waits for the first generation to serve.
    pub first: FirstSettings,
    /// Where metrics are exported too, beside the UNIX socket that always is.
    pub metrics: MetricsSettings,
}

/// The broker of a supervisor.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// Its control socket.
    pub socket: PathBuf,
    /// Whether one is started when none answers there.
    pub start: bool,
}

/// How a handover is done.
#[derive(Debug, Clone, Copy)]
pub struct HandoverSettings {
    /// Whether it connects to listeners where no client waits.
    pub probe: bool,
    /// How long a start waits until the generation that serves has learned its stick tables.
    pub peers_timeout: Duration,
    /// What is done about ghosts.
    pub ghosts: Ghosts,
}

/// What waits for the first generation to serve.
#[derive(Debug, Clone)]
pub struct FirstSettings {
    /// The process that has put this one into the background: it reads one line here, once that generation serves.
    pub starter: Option<Rc<OwnedFd>>,
    /// Haproxys that run without bindonce, which that generation replaces.
    pub replaced: Replaced,
}

/// Where metrics are exported, beside the UNIX socket.
#[derive(Debug, Clone)]
pub struct MetricsSettings {
    /// The listener, if there is one.
    pub listener: Option<Listener>,
    /// Whether it serves the status page to everybody who reaches it; else only to this host.
    pub status_page: bool,
}

impl Settings {
    /// Where a broker that is started writes its log; none: none is started.
    pub(crate) fn broker_log(&self) -> Option<Log> {
        self.broker.start.then_some(if self.at_once { Log::Through } else { Log::Ours })
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
