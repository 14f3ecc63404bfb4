//! Taking one look: everything that the system, the broker and haproxy say, as facts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bindonce_core::address::Address;
use bindonce_core::diagnosis::{
    Connections, Finding, Gauge, Haproxy, Kind, Look, Mode, Network, Process, Proxy, Socket, Watch,
};
use bindonce_core::time::Timestamp;
use bindonce_haproxy::stats;
use bindonce_sys::diag::{self, Connection};
use bindonce_sys::survey::{self, Namespace, Namespaces, Processes};

use super::broker;

/// How long one haproxy may take to answer: one that is at its limits still does.
const ANSWER: Duration = Duration::from_millis(500);

/// Signals that tell haproxy to stop: SIGUSR1 and SIGTERM.
const STOP: u64 = 1 << (10 - 1) | 1 << (15 - 1);

/// EPOLLIN.
const INPUT: u32 = 1;

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
        let mut look = Look { at: now(), ..Look::default() };
        self.namespaces = Namespaces::find();
        self.networks(&mut look)?;
        let wanted: HashSet<u64> = look.sockets.iter().map(|socket| socket.inode).collect();
        let processes = Processes::survey(&wanted, |name| is_haproxy(name));
        if processes.hidden > 0 {
            look.unseen.push(format!(
                "{} processes of other users: which sockets they hold, and whether they accept (run as root)",
                processes.hidden
            ));
        }
        let boot = boot_time();
        for seen in &processes.all {
            let process = describe(seen, &processes.family, boot);
            look.processes.insert(process.pid, process);
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
        names(&mut look);
        broker::ask(&self.socket, &mut look);
        self.share(&mut look, &processes);
        haproxies(&mut look, &processes);
        look.files = survey::open_files().map(gauge);
        Ok(look)
    }

    fn networks(&self, look: &mut Look) -> anyhow::Result<()> {
        for namespace in &self.namespaces.all {
            let seen = namespace.within(|| -> Result<_, bindonce_sys::Error> {
                let mut sockets = diag::listening()?;
                // What a process is about to connect from is bound for a moment, too.
                let bound = diag::tcp_bound()?;
                sockets.retain(|socket| socket.address.port() != Some(0));
                Ok((sockets, bound, survey::counters()?))
            });
            let (sockets, bound, counters) = match seen {
                Ok(Ok(seen)) => seen,
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
        let queues = found.iter().any(|finding| finding.kind == Kind::Unserved);
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

/// haproxy binds a path under a temporary name, `PATH.PID.tmp`, and renames it. The kernel
/// tells the first name; people know the other.
fn names(look: &mut Look) {
    for socket in &mut look.sockets {
        let Address::Unix(path) = &mut socket.address else {
            continue;
        };
        let mut holders = look.processes.values().filter(|one| one.is_haproxy());
        let holder = holders.find(|process| process.holds.contains(&socket.inode));
        let name = holder.and_then(|one| path.strip_suffix(&format!(".{}.tmp", one.pid)));
        if let Some(name) = name.map(str::to_owned) {
            *path = name;
        }
    }
}

fn gauge((used, limit): (u64, u64)) -> Gauge {
    Gauge { used, limit }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// When the system started, from /proc/stat; 0 where it does not tell.
fn boot_time() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0)
}

/// A haproxy may have been started through the loader of another system's libraries.
fn is_haproxy(name: &str) -> bool {
    name.starts_with("haproxy") || name.starts_with("ld-linux")
}

fn describe(seen: &survey::Process, family: &BTreeMap<i32, (i32, String)>, boot: u64) -> Process {
    let ticks = survey::ticks_per_second();
    let mut holds: Vec<u64> = seen.holds.iter().map(|(inode, _)| *inode).collect();
    holds.dedup();
    Process {
        pid: seen.pid,
        program: program(&seen.name, &seen.command),
        command: seen.command.join(" "),
        root: root(seen.pid, family),
        parent: seen.parent,
        started: Timestamp(boot * 1000 + seen.started * 1000 / ticks),
        state: seen.state,
        used: Duration::from_millis(seen.used * 1000 / ticks),
        memory: seen.memory,
        descriptors: Gauge {
            used: seen.descriptors as u64,
            limit: seen.descriptor_limit.unwrap_or(0),
        },
        sockets: seen.sockets as u64,
        stop_pending: seen.pending & STOP != 0,
        holds,
        watches: seen
            .registrations
            .iter()
            .map(|one| Watch { inode: one.inode, input: one.events & INPUT != 0, live: one.live })
            .collect(),
        waits: seen.waits.clone(),
        all_known: seen.all_known,
        epoll: seen.epoll,
        connections: None,
    }
}

fn program(name: &str, command: &[String]) -> String {
    let base = |word: &str| word.rsplit('/').next().unwrap_or(word).to_owned();
    if name.starts_with("ld-linux")
        && let Some(word) = command.iter().find(|word| base(word) == "haproxy")
    {
        return base(word);
    }
    if name.starts_with("haproxy") { "haproxy".to_owned() } else { name.to_owned() }
}

/// The topmost ancestor that runs the same program. Programs that write their role into
/// their name do so behind a space or a colon.
fn root(pid: i32, family: &BTreeMap<i32, (i32, String)>) -> i32 {
    let kind = |name: &str| name.split([' ', ':']).next().unwrap_or(name).to_owned();
    let mut root = pid;
    while let Some((parent, name)) = family.get(&root)
        && let Some((_, above)) = family.get(parent)
        && kind(above) == kind(name)
        && *parent != root
    {
        root = *parent;
    }
    root
}

/// Asks each haproxy that listens on a stats socket for its limits.
fn haproxies(look: &mut Look, processes: &Processes) {
    let mut asked: HashSet<PathBuf> = HashSet::new();
    let mut silent = Vec::new();
    let mut mute = Vec::new();
    for seen in processes.all.iter().rev() {
        let Some(process) = look.processes.get(&seen.pid).filter(|one| one.is_haproxy()) else {
            continue;
        };
        let listens = |socket: &Socket| {
            matches!(socket.address, Address::Unix(_) | Address::Abstract(_))
                && process.holds.contains(&socket.inode)
        };
        // One that is stopped, or has no such socket, cannot answer.
        if matches!(process.state, 'T' | 't') || !look.sockets.iter().any(listens) {
            if !process.holds.is_empty() {
                mute.push(seen.pid.to_string());
            }
            continue;
        }
        let directory = std::fs::read_link(format!("/proc/{}/cwd", seen.pid)).unwrap_or_default();
        for path in stats::sockets_of(&seen.command, &directory) {
            if !asked.insert(path.clone()) {
                continue;
            }
            match stats::ask(&path, ANSWER) {
                Ok(said) => look.haproxies.push(haproxy(said)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => silent.push(unanswered(&path, seen.pid, &error)),
            }
        }
    }
    if !mute.is_empty() {
        look.unseen.push(format!(
            "the limits (maxconn, queues) of haproxy pid {}: no stats socket that answers",
            mute.join(", ")
        ));
    }
    look.unseen.extend(silent);
}

fn unanswered(path: &Path, pid: i32, error: &std::io::Error) -> String {
    format!("the limits of haproxy pid {pid}: {}: {error}", path.display())
}

fn haproxy(said: stats::Stats) -> Haproxy {
    Haproxy {
        pid: said.pid,
        stopping: said.stopping,
        connections: Gauge { used: said.connections, limit: said.limit },
        proxies: said
            .proxies
            .into_iter()
            .map(|one| Proxy {
                name: one.name,
                sessions: Gauge { used: one.sessions, limit: one.limit },
                queued: one.queued,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_belong_to_their_master() {
        let family = BTreeMap::from([
            (1, (0, "init".to_owned())),
            (7, (1, "gunicorn: maste".to_owned())),
            (8, (7, "gunicorn: worke".to_owned())),
            (9, (8, "sh".to_owned())),
        ]);
        assert_eq!([1, 7, 8, 9].map(|pid| root(pid, &family)), [1, 7, 7, 9]);
    }

    #[test]
    fn a_haproxy_behind_a_loader_is_one() {
        let words = ["/x/ld-linux-x86-64.so.2", "--library-path", "/x", "/x/haproxy", "-db"];
        let command = words.map(str::to_owned);
        assert_eq!(program("ld-linux-x86-64", &command), "haproxy");
        assert_eq!(program("nginx", &[]), "nginx");
    }
}
