//! The settings of a supervisor, fixed for its whole life.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::generation as timeline;
use bindonce_core::listener::Listener;
use bindonce_core::name::{Name, service_option};
use bindonce_haproxy::config::MasterSocket;

use crate::adopt::Replaced;
use crate::broker::Log;
use crate::kind::Kind;

/// The settings from the supervisor's command line.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The broker.
    pub broker: BrokerSettings,
    /// The name of the service.
    pub service: Name,
    /// The supervised program.
    pub kind: Kind,
    /// `--listen NAME=ADDR` with ranges expanded; each listener has a name. A program other than
    /// haproxy gets these listeners and no others.
    pub listeners: Vec<Listener>,
    /// Time limits, and how many generations may drain.
    pub timing: timeline::Settings,
    /// How long a connection of an older generation may be idle before it is closed. None:
    /// haproxy's own behaviour.
    pub drain_idle: Option<Duration>,
    /// Options of handovers.
    pub handover: HandoverSettings,
    /// Files and directories whose changes cause a reload.
    pub watch: Vec<PathBuf>,
    /// Where the master CLI is served (haproxy's `-S`).
    pub master_cli: Vec<MasterSocket>,
    /// The supervisor stands in for haproxy under its name: SIGTERM and SIGINT end it at once, as
    /// they end haproxy's master.
    pub at_once: bool,
    /// What happens when the first generation serves.
    pub first: FirstSettings,
    /// Metrics exports beside the UNIX socket, which always exists.
    pub metrics: MetricsSettings,
}

/// The broker of a supervisor.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// Its control socket.
    pub socket: PathBuf,
    /// Whether the supervisor starts a broker if none answers there.
    pub start: bool,
}

/// Options of a handover.
#[derive(Debug, Clone, Copy)]
pub struct HandoverSettings {
    /// Whether the proof connects to listeners where no client waits.
    pub probe: bool,
    /// How long a start waits until the serving generation has learned its stick tables.
    pub peers_timeout: Duration,
    /// How ghosts are treated.
    pub ghosts: Ghosts,
}

/// Actions that wait for the first generation to serve.
#[derive(Debug, Clone)]
pub struct FirstSettings {
    /// The process that put this one into the background reads one line from here once the first
    /// generation serves.
    pub starter: Option<Rc<OwnedFd>>,
    /// The haproxys running without bindonce that the first generation replaces.
    pub replaced: Replaced,
}

/// Where metrics are exported, beside the UNIX socket.
#[derive(Debug, Clone)]
pub struct MetricsSettings {
    /// The broker's listener for metrics, if there is one.
    pub listener: Option<Listener>,
    /// Whether that listener serves the status page to everybody, not only to this host.
    pub status_page: bool,
}

impl Settings {
    /// The command that does this to the service: `bindonce reload --name web`.
    pub(crate) fn command(&self, verb: &str) -> String {
        format!("bindonce {verb}{}", service_option(&self.service))
    }

    /// The log of a broker that the supervisor starts; none if it starts none.
    pub(crate) fn broker_log(&self) -> Option<Log> {
        self.broker.start.then_some(if self.at_once { Log::Through } else { Log::Ours })
    }
}

/// What the supervisor does about ghosts: epoll entries that wake a generation for connections of a
/// listener that it has closed, because epoll watches the socket, which others hold open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ghosts {
    /// Remove ghosts from the epoll sets. Where the kernel refuses, start haproxy without epoll.
    Auto,
    /// Remove ghosts from the epoll sets, or log that it is not possible.
    Detach,
    /// Start every haproxy without epoll (`-de`).
    NoEpoll,
    /// Nothing.
    Ignore,
}
