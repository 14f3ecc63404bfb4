//! One look at a host: its sockets, the processes that hold them, and what the broker and each
//! haproxy report.

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
    /// Every socket that listens, receives datagrams from anyone, or is bound and does not listen. Datagram sockets on
    /// one address are in the order in which the kernel looks at them: the one that was bound last is first.
    pub(crate) sockets: Vec<Socket>,
    /// The processes that have to do with these sockets, and every haproxy, by pid.
    pub(crate) processes: BTreeMap<i32, Process>,
    pub(crate) networks: Vec<Network>,
    /// What each haproxy reports on its stats socket.
    pub(crate) haproxies: Vec<Stats>,
    /// What the broker reports, if one answers.
    pub(crate) broker: Option<Broker>,
    /// Open files of the whole system (fs.file-nr).
    pub(crate) files: Option<Gauge>,
    /// What the generations of each service answer, as its supervisor tells.
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
    /// Whether clients of multipath TCP come here too.
    pub(crate) mptcp: bool,
    pub(crate) inode: u64,
    /// Its cookie, which is never used twice.
    pub(crate) cookie: u64,
    #[serde(rename = "state")]
    pub(crate) mode: Mode,
    /// Connections that wait; of a datagram socket bytes.
    pub(crate) queue: u64,
    /// The limit of its accept queue; the kernel lets one more in. Of a datagram socket its receive buffer in bytes.
    pub(crate) queue_limit: u64,
    /// Connections and packets that it dropped since it exists.
    pub(crate) drops: u64,
    /// Whether it has SO_REUSEPORT; none where that could not be read.
    pub(crate) reuseport: Option<bool>,
}

/// What a socket does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// It accepts connections into its queue.
    #[default]
    Listening,
    /// It receives datagrams.
    Datagram,
    /// It has the address and accepts nothing: clients are refused.
    Bound,
}

/// A network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Network {
    pub(crate) id: u64,
    /// Its name; none for the one that the observer is in.
    pub(crate) name: Option<String>,
    pub(crate) somaxconn: u64,
    /// Times that an accept queue was full, since the namespace exists (ListenOverflows).
    pub(crate) listen_overflows: u64,
    /// Connection attempts that were dropped (ListenDrops), overflows included.
    pub(crate) listen_drops: u64,
    /// From this port on, none needs CAP_NET_BIND_SERVICE (net.ipv4.ip_unprivileged_port_start).
    #[serde(skip)]
    pub(crate) unprivileged: u16,
    /// Entries of connection tracking, where it is used.
    #[serde(skip)]
    pub(crate) conntrack: Option<Gauge>,
    /// The destination to which most local ports are taken. None while so few are that it cannot
    /// matter.
    #[serde(skip)]
    pub(crate) ports: Option<Ports>,
}

/// Local ports taken for connections to one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) destination: String,
    pub(crate) gauge: Gauge,
}

/// How much of something is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Gauge {
    pub(crate) used: u64,
    /// The most that can be; 0 without a limit.
    pub(crate) limit: u64,
}

/// What the broker reports.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Broker {
    /// Its listeners, services and problems.
    pub(crate) status: StatusResult,
    /// Services whose generations changed while the look was taken: what was seen of them is of
    /// two moments.
    pub(crate) changing: BTreeSet<String>,
}

/// Something that could not be seen, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unseen {
    /// What the generations of this service answer: its supervisor does not tell.
    Answers { service: String, error: String },
    /// The descriptors of so many processes of other users.
    Processes(usize),
    /// Who holds so many of all sockets.
    Holders { unheld: usize, all: usize },
    /// A network namespace.
    Network { name: String, error: String },
    /// What the broker at this socket knows.
    Broker { socket: PathBuf, error: String },
    /// The limits of a haproxy whose stats socket does not answer.
    Haproxy { pid: i32, socket: PathBuf, error: String },
    /// The limits of these haproxies, which have no stats socket that could answer.
    NoStatsSocket(Vec<i32>),
}

impl Gauge {
    /// The part that is used, in percent. 0 without a limit.
    pub(crate) fn percent(self) -> f64 {
        percent(self.used, self.limit)
    }
}

/// `part` of `whole` in percent; 0 of nothing.
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

    /// How long a process has run.
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

    /// The broker's listener that is this socket.
    pub(crate) fn listener(&self, inode: u64) -> Option<&ListenerInfo> {
        let broker = self.broker.as_ref()?;
        broker.status.listeners.iter().find(|listener| listener.inode == inode)
    }

    /// The address of a socket that is the broker's for QUIC.
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

    /// The generation that this process is, with its service.
    pub(crate) fn generation(&self, pid: i32) -> Option<(&str, &GenerationInfo)> {
        self.generations().find(|(_, known)| known.pid == pid.cast_unsigned())
    }

    /// The service of the first of these processes that is a generation.
    pub(crate) fn service_of<'a>(&self, mut pids: impl Iterator<Item = &'a i32>) -> Option<String> {
        pids.find_map(|pid| self.generation(*pid)).map(|(service, _)| service.to_owned())
    }

    /// The generation that serves a listener according to the broker and whose process is not
    /// seen: it runs in another container, and what it does cannot be told from here.
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

    /// Whether one of these processes belongs to a service whose handover is under way: for some
    /// milliseconds nobody accepts then. A generation that starts for very long is stuck, and no
    /// excuse.
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

    /// The part of one core that a process used between an earlier look and this one, in percent.
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
    /// a while, and misses a handover that takes place meanwhile if it saw the older generation
    /// after it and the newer one before: these are to be looked at again before it counts.
    pub(crate) fn holders_of_idle_listeners(&self) -> BTreeSet<i32> {
        let listening = self.sockets.iter().filter(|socket| socket.mode == Mode::Listening);
        let idle = listening
            .filter(|socket| self.holders(socket.inode).all(|one| one.is_idle_on(socket.inode)));
        idle.flat_map(|socket| self.holders(socket.inode)).map(|process| process.pid).collect()
    }
}
