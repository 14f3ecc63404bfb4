//! The facts of one look at a host: its sockets, the processes that hold them, and the reports of
//! the broker and of each haproxy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bindonce::{GenerationInfo, ListenerInfo, State, StatusResult};
use bindonce_core::address::Address;
use bindonce_core::time::Timestamp;
use bindonce_haproxy::stats::Stats;
use serde::Serialize;

use super::answers::Answers;
use super::process::Process;

/// One look at the host.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Look {
    pub(crate) at: Timestamp,
    /// Every socket that listens, receives datagrams from anyone, or is bound without listening.
    /// Datagram sockets on one address are in the kernel's lookup order: the last bound one is
    /// first.
    pub(crate) sockets: Vec<Socket>,
    /// The processes that hold or watch these sockets, and every haproxy, by pid.
    pub(crate) processes: BTreeMap<i32, Process>,
    pub(crate) networks: Vec<Network>,
    /// The report of each haproxy on its stats socket.
    pub(crate) haproxies: Vec<Stats>,
    /// The broker's report, if a broker answers.
    pub(crate) broker: Option<Broker>,
    /// Open files of the whole system (fs.file-nr).
    pub(crate) files: Option<Gauge>,
    /// The recent traffic of each service, as its supervisor reports it.
    pub(crate) answers: Vec<Answers>,
    pub(crate) unseen: Vec<Unseen>,
}

/// A socket on an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Socket {
    /// The network namespace: [`Network::id`].
    pub(crate) network: u64,
    pub(crate) address: Address,
    pub(crate) interface: Option<String>,
    /// Whether the socket accepts multipath TCP too.
    pub(crate) mptcp: bool,
    pub(crate) inode: u64,
    /// The socket's cookie, which the kernel never reuses.
    pub(crate) cookie: u64,
    #[serde(rename = "state")]
    pub(crate) mode: Mode,
    /// Waiting connections; for a datagram socket, waiting bytes.
    pub(crate) queue: u64,
    /// The limit of the accept queue, which the kernel exceeds by one. For a datagram socket, the
    /// receive buffer in bytes.
    pub(crate) queue_limit: u64,
    /// Connections and packets that the socket has dropped since its creation.
    pub(crate) drops: u64,
    /// Whether the socket has SO_REUSEPORT; None where that could not be read.
    pub(crate) reuseport: Option<bool>,
}

/// The state of a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// The kernel accepts connections into the socket's queue.
    #[default]
    Listening,
    /// The socket receives datagrams.
    Datagram,
    /// The socket has the address and accepts nothing: clients are refused.
    Bound,
}

/// A network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Network {
    pub(crate) id: u64,
    /// The name; None for the observer's own.
    pub(crate) name: Option<String>,
    pub(crate) somaxconn: u64,
    /// Number of times that an accept queue was full, since the creation of the namespace
    /// (ListenOverflows).
    pub(crate) listen_overflows: u64,
    /// Dropped connection attempts (ListenDrops), overflows included.
    pub(crate) listen_drops: u64,
    /// The first port that does not need CAP_NET_BIND_SERVICE
    /// (net.ipv4.ip_unprivileged_port_start).
    #[serde(skip)]
    pub(crate) unprivileged: u16,
    /// Entries of connection tracking, if it is in use.
    #[serde(skip)]
    pub(crate) conntrack: Option<Gauge>,
    /// The destination that uses the most local ports. None while too few are in use to matter.
    #[serde(skip)]
    pub(crate) ports: Option<Ports>,
}

/// Local ports in use for connections to one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) destination: String,
    pub(crate) gauge: Gauge,
}

/// Usage of a limited resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Gauge {
    pub(crate) used: u64,
    /// The limit; 0 without a limit.
    pub(crate) limit: u64,
}

/// The broker's report.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Broker {
    /// Its listeners, services and problems.
    pub(crate) status: StatusResult,
    /// Services whose generations changed during the look: the facts about them are from two
    /// moments.
    pub(crate) changing: BTreeSet<String>,
}

/// Facts that could not be collected, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unseen {
    /// The recent traffic of this service: its supervisor does not report it.
    Answers { service: String, error: String },
    /// The descriptors of this number of other users' processes.
    Processes(usize),
    /// The holders of `unheld` out of `all` sockets.
    Holders { unheld: usize, all: usize },
    /// A network namespace.
    Network { name: String, error: String },
    /// The report of the broker at this socket.
    Broker { socket: PathBuf, error: String },
    /// The limits of a haproxy whose stats socket does not answer.
    Haproxy { pid: i32, socket: PathBuf, error: String },
    /// The limits of these haproxies, which have no stats socket that can answer.
    NoStatsSocket(Vec<i32>),
}

impl Gauge {
    /// The usage in percent; 0 without a limit.
    pub(crate) fn percent(self) -> f64 {
        percent(self.used, self.limit)
    }
}

/// `part` of `whole` in percent; 0 if `whole` is 0.
pub(crate) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

impl Look {
    /// The processes that hold a socket.
    pub(crate) fn holders(&self, inode: u64) -> impl Iterator<Item = &Process> {
        self.processes.values().filter(move |process| process.holds(inode))
    }

    /// The processes with these pids that were seen.
    pub(crate) fn processes_of(&self, pids: &[i32]) -> Vec<&Process> {
        pids.iter().filter_map(|pid| self.processes.get(pid)).collect()
    }

    /// The age of a process.
    pub(crate) fn age(&self, process: &Process) -> Duration {
        Duration::from_millis(self.at.0.saturating_sub(process.started.0))
    }

    /// The network namespace with this id.
    pub(crate) fn network(&self, id: u64) -> Option<&Network> {
        self.networks.iter().find(|network| network.id == id)
    }

    /// The name of a network namespace, if it is not the observer's own.
    pub(crate) fn network_name(&self, id: Option<u64>) -> Option<String> {
        self.network(id?)?.name.clone()
    }

    /// The broker's listener on this socket.
    pub(crate) fn listener(&self, inode: u64) -> Option<&ListenerInfo> {
        let broker = self.broker.as_ref()?;
        broker.status.listeners.iter().find(|listener| listener.inode == inode)
    }

    /// The address of a socket, if it is a QUIC listener of the broker's.
    pub(crate) fn quic(&self, inode: u64) -> Option<SocketAddr> {
        match self.listener(inode)?.bound.parse() {
            Ok(Address::Quic(at)) => Some(at),
            _ => None,
        }
    }

    /// Every generation that the broker knows, with its service.
    pub(crate) fn generations(&self) -> impl Iterator<Item = (&str, &GenerationInfo)> {
        let services = self.broker.iter().flat_map(|broker| &broker.status.services);
        services.flat_map(|one| one.generations.iter().map(|known| (one.name.as_str(), known)))
    }

    /// Whether a supervisor has this service. One of the client library has none.
    pub(crate) fn is_supervised(&self, service: &str) -> bool {
        self.answers.iter().any(|one| one.service == service)
    }

    /// The generation of this process, with its service.
    pub(crate) fn generation(&self, pid: i32) -> Option<(&str, &GenerationInfo)> {
        self.generations().find(|(_, known)| known.pid == pid.cast_unsigned())
    }

    /// The service of the first pid that is a generation's.
    pub(crate) fn service_of<'a>(&self, mut pids: impl Iterator<Item = &'a i32>) -> Option<String> {
        pids.find_map(|pid| self.generation(*pid)).map(|(service, _)| service.to_owned())
    }

    /// The generation that serves a listener according to the broker and whose process is not
    /// visible: it runs in another container, and its activity cannot be seen from here.
    pub(crate) fn serving_elsewhere(&self, inode: u64) -> Option<(&str, &GenerationInfo)> {
        let listener = self.listener(inode)?;
        let seen = |pid: i32| {
            self.processes.get(&pid).is_some_and(Process::is_haproxy)
                || self.holders(inode).any(|one| one.pid == pid || one.parent == pid)
        };
        self.generations().find(|(_, known)| {
            known.state == State::Serving
                && known.listeners.contains(&listener.name)
                && !seen(known.pid.cast_signed())
        })
    }

    /// Whether one of these processes belongs to a service with a handover in progress: nobody
    /// accepts for some milliseconds then. A generation that starts for very long is stuck and does
    /// not count.
    pub(crate) fn handover_under_way(&self, pids: &[i32]) -> bool {
        const PATIENCE: Duration = Duration::from_secs(10);
        let starting = |(_, known): &(&str, &GenerationInfo)| {
            let since = Timestamp::parse(&known.since).filter(|_| known.state == State::Starting);
            since.is_some_and(|since| {
                self.at.0.saturating_sub(since.0) < PATIENCE.as_millis() as u64
            })
        };
        let changing = |service: &str| {
            self.broker.as_ref().is_some_and(|broker| broker.changing.contains(service))
                || self.generations().any(|one| one.0 == service && starting(&one))
        };
        pids.iter().filter_map(|pid| self.generation(*pid)).any(|(service, _)| changing(service))
    }

    /// The share of one core that a process used between an earlier look and this one, in percent.
    pub(crate) fn processor_percent(
        &self,
        earlier: Option<&Self>,
        process: &Process,
    ) -> Option<f64> {
        let earlier = earlier?;
        let old =
            earlier.processes.get(&process.pid).filter(|old| old.started == process.started)?;
        let wall = self.at.0.checked_sub(earlier.at.0).filter(|wall| *wall > 0)?;
        let used = process.usage.processor.saturating_sub(old.usage.processor);
        Some(used.as_secs_f64() * 100_000.0 / wall as f64)
    }

    /// The processes that hold a listener from which nobody accepts. A look at every process takes
    /// a while. It misses a handover in that time if it sees the old generation after the handover
    /// and the new one before. So these processes have to be looked at again before they count.
    pub(crate) fn holders_of_idle_listeners(&self) -> BTreeSet<i32> {
        let listening = self.sockets.iter().filter(|socket| socket.mode == Mode::Listening);
        let idle = listening
            .filter(|socket| self.holders(socket.inode).all(|one| one.is_idle_on(socket.inode)));
        idle.flat_map(|socket| self.holders(socket.inode)).map(|process| process.pid).collect()
    }
}
