//! Taking one look: everything that the system, the broker and haproxy say, as facts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bindonce_core::address::Address;
use bindonce_core::diagnosis::{
    self, Connections, Finding, Gauge, Kind, Look, Mode, Network, Socket,
};
use bindonce_sys::diag::{self, Connection};
use bindonce_sys::survey::{self, Namespace, Namespaces, Processes};

use super::{broker, haproxy, process};

/// Looks at the system, and remembers what does not change between two looks.
#[derive(Debug)]
pub(super) struct Observer {
    socket: PathBuf,
    namespaces: Namespaces,
    /// SO_REUSEPORT by cookie: asking costs a moment in which we hold the socket.
    joinable: HashMap<u64, Option<bool>>,
}

impl Observer {
    /// `socket` is where a broker may listen.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, namespaces: Namespaces::default(), joinable: HashMap::new() }
    }

    /// Looks at everything once.
    pub(super) fn look(&mut self) -> anyhow::Result<Look> {
        let mut look = Look { at: crate::command::now(), ..Look::default() };
        let before = broker::ask(&self.socket).unwrap_or_default();
        self.namespaces = Namespaces::find();
        self.networks(&mut look)?;
        let wanted: HashSet<u64> = look.sockets.iter().map(|socket| socket.inode).collect();
        let mut processes = Processes::survey(&wanted, process::is_haproxy);
        self.describe(&processes, &mut look);
        let unsure = diagnosis::see_again(&look);
        if !unsure.is_empty() {
            processes.see_again(&unsure, &wanted, process::is_haproxy);
            self.describe(&processes, &mut look);
        }
        if processes.hidden > 0 {
            look.unseen.push(format!(
                "{} processes of other users: which sockets they hold, and whether they accept (run as root)",
                processes.hidden
            ));
        }
        let unheld =
            look.sockets.iter().filter(|socket| look.holders(socket.inode).next().is_none());
        let unheld = unheld.filter(|socket| socket.mode != Mode::Bound).count();
        if unheld > 0 {
            look.unseen.push(format!(
                "who holds {unheld} of {} sockets: processes of another user or pid namespace, or the kernel",
                look.sockets.len()
            ));
        }
        haproxy::names(&mut look);
        broker::tell(before.as_ref(), broker::ask(&self.socket), &mut look);
        self.share(&mut look, &processes);
        haproxy::ask(&mut look, &processes);
        look.files = survey::open_files().map(gauge);
        Ok(look)
    }

    /// Puts what was seen of the processes into the look.
    fn describe(&self, processes: &Processes, look: &mut Look) {
        let boot = process::boot_time();
        look.processes.clear();
        for seen in &processes.all {
            let mut process = process::describe(seen, &processes.family, boot);
            process.network = self.namespaces.of_process(seen.pid);
            look.processes.insert(process.pid, process);
        }
    }

    fn networks(&self, look: &mut Look) -> anyhow::Result<()> {
        for namespace in &self.namespaces.all {
            // The kernel goes through the sockets of all namespaces for it: where a proxy is.
            let proxies = namespace.is_own() || self.has_haproxy(namespace);
            let seen = namespace.within(|| -> Result<_, bindonce_sys::Error> {
                let mut sockets = diag::listening()?;
                let bound = if proxies { diag::tcp_bound()? } else { Vec::new() };
                sockets.retain(|socket| socket.address.port() != Some(0));
                Ok((sockets, bound, survey::counters()?))
            });
            let (sockets, bound, counters) = match seen {
                Ok(Ok(seen)) => seen,
                // Its last process has ended since it was found.
                Err(error) if error.errno() == Some(bindonce_sys::Errno::ENOENT as i32) => continue,
                Ok(Err(error)) | Err(error) if !namespace.is_own() => {
                    look.unseen.push(format!("network namespace {}: {error}", namespace.label()));
                    continue;
                }
                Ok(Err(error)) | Err(error) => {
                    return Err(error).context("cannot look at the sockets of this system");
                }
            };
            let mode = |socket: &diag::Socket| match socket.address {
                Address::Udp(_) => Mode::Datagram,
                _ => Mode::Listening,
            };
            look.sockets.extend(sockets.into_iter().map(|one| {
                let mode = mode(&one);
                socket(namespace, one, mode)
            }));
            look.sockets.extend(bound.into_iter().map(|one| socket(namespace, one, Mode::Bound)));
            look.networks.push(Network {
                id: namespace.id,
                name: (!namespace.is_own()).then(|| namespace.label()),
                somaxconn: counters.somaxconn.into(),
                overflows: counters.overflows,
                drops: counters.drops,
                conntrack: counters.conntrack.map(gauge),
                ephemeral: counters
                    .ephemeral
                    .map(|(to, used, limit)| (to.to_string(), Gauge { used, limit })),
            });
        }
        Ok(())
    }

    fn has_haproxy(&self, namespace: &Namespace) -> bool {
        let mut inside = self.namespaces.of.iter().filter(|(_, id)| **id == namespace.id);
        inside.any(|(pid, _)| {
            bindonce_sys::process::name(*pid).is_some_and(|name| process::is_haproxy(&name))
        })
    }

    /// Finds out which TCP sockets others could join.
    fn share(&mut self, look: &mut Look, processes: &Processes) {
        let mut holders: HashMap<u64, (i32, i32)> = HashMap::new();
        for process in &processes.all {
            for (inode, number) in &process.holds {
                holders.insert(*inode, (process.pid, *number));
            }
        }
        for socket in &mut look.sockets {
            if socket.mode == Mode::Listening
                && matches!(socket.address, Address::Tcp(_))
                && let Some((pid, number)) = holders.get(&socket.inode)
            {
                let known = self.joinable.entry(socket.cookie);
                socket.reuseport = *known.or_insert_with(|| survey::joinable(*pid, *number));
            }
        }
    }

    /// Asks what only a finding needs: how long a queue has waited, and what keeps those
    /// that drain.
    pub(super) fn ask_more(&self, look: &mut Look, found: &[Finding]) {
        // The kernel tells it with every connection of the namespace, or not at all.
        let queues = found.iter().filter(|finding| finding.kind == Kind::Unserved).any(|finding| {
            let waits = |one: &Socket| one.queue.used > 0 && finding.concerns(&one.address);
            look.sockets.iter().any(waits)
        });
        let mut draining: HashMap<u64, i32> = HashMap::new();
        for finding in found.iter().filter(|finding| finding.kind == Kind::Lingering) {
            for pid in &finding.culprits {
                let sockets = survey::sockets(*pid);
                draining.extend(sockets.into_iter().map(|inode| (inode, *pid)));
            }
        }
        if !queues && draining.is_empty() {
            return;
        }
        for namespace in &self.namespaces.all {
            let mut connections: BTreeMap<i32, Connections> = BTreeMap::new();
            let mut waiting = Waiting::new();
            // One that is gone meanwhile has nothing to say.
            let _ = namespace.within(|| {
                diag::connections(|connection| {
                    if connection.inode == 0 {
                        wait(&mut waiting, &connection);
                    } else if let Some(pid) = draining.get(&connection.inode) {
                        count(connections.entry(*pid).or_default(), &connection);
                    }
                })
            });
            for (pid, known) in connections {
                if let Some(process) = look.processes.get_mut(&pid) {
                    process.connections = Some(known);
                }
            }
            for socket in look.sockets.iter_mut().filter(|one| one.network == namespace.id) {
                socket.waiting =
                    oldest(&waiting, &socket.address).filter(|_| socket.queue.used > 0);
            }
        }
    }
}

/// The longest wait by local address and port.
type Waiting = HashMap<SocketAddr, Duration>;

/// Notes a connection that nobody has accepted: it has sent nothing since it was made.
fn wait(waiting: &mut Waiting, connection: &Connection) {
    let time = Duration::from_millis(connection.since_sent.into());
    let longest = waiting.entry(connection.local).or_default();
    *longest = time.max(*longest);
}

/// The longest wait for a listener: on its address, or on any if it has the wildcard.
fn oldest(waiting: &Waiting, address: &Address) -> Option<Duration> {
    let Address::Tcp(listener) = address else {
        return None;
    };
    let longest = waiting
        .iter()
        .filter(|(local, _)| {
            local.port() == listener.port()
                && (listener.ip().is_unspecified() || local.ip() == listener.ip().to_canonical())
        })
        .map(|(_, time)| *time)
        .max();
    // What waited a moment ago was accepted since.
    Some(longest.unwrap_or_default())
}

fn count(known: &mut Connections, connection: &Connection) {
    known.count += 1;
    let idle = connection.since_sent.min(connection.since_received);
    let idle = Duration::from_millis(idle.into());
    if known.oldest.as_ref().is_none_or(|(_, longest)| idle > *longest) {
        let ends = format!("the connection {} - {}", connection.remote, connection.local);
        known.oldest = Some((ends, idle));
    }
}

fn socket(namespace: &Namespace, seen: diag::Socket, mode: Mode) -> Socket {
    Socket {
        network: namespace.id,
        address: seen.address,
        interface: seen.interface,
        inode: seen.inode,
        cookie: seen.cookie,
        mode,
        queue: Gauge { used: seen.queue.len.into(), limit: seen.queue.limit.into() },
        drops: seen.drops.into(),
        reuseport: None,
        waiting: None,
    }
}

fn gauge((used, limit): (u64, u64)) -> Gauge {
    Gauge { used, limit }
}
