//! Which listeners a generation of haproxy really listens on. haproxy reports it on its admin
//! socket (`show fd`), or its epoll sets show it. A haproxy that is full (maxconn) takes a listener
//! out of its epoll set; then the connections that it has accepted from it show it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::duration;
use bindonce_core::listener::{Listener, Options};
use bindonce_haproxy::cli::descriptor;
use bindonce_sys::{diag, epoll, holders, inherit, process, worker};

use crate::generations::admin::Admin;
use crate::generations::generation::Generation;
use crate::kind::Kind;

/// Up to this many descriptors are queried one by one; more are queried all at once, which also
/// lists the connections.
const ONE_BY_ONE: usize = 32;
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How to find it out for one generation.
pub(crate) enum Listening {
    /// Ask it on its admin connection: the descriptor of the admin socket, and those of the given
    /// number of listeners behind it.
    AdminSocket(Admin, usize),
    /// Look at its processes, because it has no admin socket.
    EpollSets(Box<Processes>),
}

/// The processes of a generation, and its listeners.
#[derive(Clone)]
pub(crate) struct Processes {
    kind: Kind,
    pid: i32,
    inodes: Vec<u64>,
    /// The same listeners, at the addresses that they are bound to.
    listeners: Arc<[Listener]>,
    /// The generation was paused: its connections may be from before that.
    was_paused: bool,
    /// haproxy was started without epoll.
    no_epoll: bool,
}

impl Listening {
    /// None for a program other than haproxy, which takes its listeners itself.
    pub(crate) fn of(kind: &Kind, generation: &Generation) -> Option<Self> {
        kind.haproxy()?;
        Some(match &generation.cli.admin {
            Some(admin) => Self::AdminSocket(admin.clone(), generation.readiness.passed),
            None => {
                let listeners = generation.listeners.iter();
                let bound = listeners
                    .map(|held| Listener { address: held.bound.clone(), ..held.listener.clone() });
                Self::EpollSets(Box::new(Processes {
                    kind: kind.clone(),
                    pid: generation.pid(),
                    inodes: generation.inodes(),
                    listeners: bound.collect(),
                    was_paused: false,
                    no_epoll: generation.cli.no_epoll,
                }))
            }
        })
    }

    /// The same for a generation that was paused.
    pub(crate) fn after_pause(mut self) -> Self {
        if let Self::EpollSets(processes) = &mut self {
            processes.was_paused = true;
        }
        self
    }

    /// The log text for a generation that did not answer within `limit`.
    pub(crate) fn silence(&self, limit: Duration) -> String {
        let limit = duration::format(limit);
        match self {
            Self::AdminSocket(..) => {
                format!("did not list its listeners on the admin socket within {limit}")
            }
            Self::EpollSets(_) => {
                format!("its epoll sets did not show within {limit} on which listeners it listens")
            }
        }
    }

    /// The indexes of listeners that the generation does not listen on, nor begins to within
    /// `limit`. None if it does not answer in time, is too full to show it, or has ended, which is
    /// noticed elsewhere. Empty where it cannot be known: haproxy lacks the command or uses no
    /// epoll.
    pub(crate) async fn missing(&self, limit: Duration) -> Option<Vec<usize>> {
        let (mut heard, mut last) = (None, None);
        let looks = async {
            loop {
                let seen = match self {
                    Self::AdminSocket(admin, count) => ask(admin, *count, limit).await,
                    Self::EpollSets(processes) => processes.look(&mut heard, limit).await,
                };
                // No answer comes any more. If the generation has ended, its end decides: what it
                // did not say must not count as said.
                let Some(seen) = seen else { return std::future::pending().await };
                let is_over = seen.waiting.is_empty();
                last = Some(seen);
                if is_over {
                    return;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        let accepted = match self {
            Self::EpollSets(processes) if !processes.was_paused => limit / 4,
            _ => Duration::ZERO,
        };
        // A look that does not end in time adds nothing to the one before.
        let _ = bindonce_sys::patience::timeout(limit - accepted, looks).await;
        let mut missing = last?;
        if let Self::EpollSets(processes) = self
            && !missing.waiting.is_empty()
        {
            if heard.is_none() {
                processes.warn_unseen();
                return Some(Vec::new());
            }
            if !processes.was_paused {
                missing.waiting = processes.without_connection(missing.waiting, accepted).await?;
            }
        }
        Some(missing.unknown.into_iter().chain(missing.waiting).collect())
    }
}

/// Listeners that a generation does not listen on.
#[derive(Default)]
struct Missing {
    /// Listeners unknown to haproxy.
    unknown: Vec<usize>,
    /// Listeners that haproxy may be about to listen on.
    waiting: Vec<usize>,
}

impl Processes {
    /// Adds the inodes that the processes wait for to `heard`, since a process that is full waits
    /// for none. None if the look takes too long, or the processes have ended.
    async fn look(&self, heard: &mut Option<BTreeSet<u64>>, limit: Duration) -> Option<Missing> {
        let this = self.clone();
        let look = move || {
            let pids = this.kind.processes(this.pid);
            let sets = pids.iter().filter_map(|pid| epoll::waited_for(*pid, &this.inodes));
            let seen = sets.reduce(|all, more| all.into_iter().chain(more).collect());
            let denied = |pid: &i32| {
                let held = holders::holds(*pid, &this.inodes);
                held.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
            };
            let never = this.no_epoll || seen.is_none() && pids.iter().any(denied);
            (seen, never)
        };
        let (seen, never) = worker::within(limit, look).await.ok()?;
        match seen {
            Some(seen) => heard.get_or_insert_default().extend(seen),
            None if process::start_time(self.pid).is_none() => return None,
            None if never => {
                self.warn_unseen();
                return Some(Missing::default());
            }
            // A worker that was just forked has no epoll set for a moment, and neither has a master
            // that executes itself again.
            None => {}
        }
        let is_heard = |inode: &u64| heard.as_ref().is_some_and(|heard| heard.contains(inode));
        let all = self.inodes.iter().enumerate();
        let waiting = all.filter(|(_, inode)| !is_heard(inode)).map(|(index, _)| index);
        Some(Missing { unknown: Vec::new(), waiting: waiting.collect() })
    }

    /// Of these listeners, those from which the processes have no connection. None if it cannot be
    /// known: a haproxy that is full as a whole stops waiting also for a listener from which it has
    /// accepted nothing.
    async fn without_connection(&self, waiting: Vec<usize>, limit: Duration) -> Option<Vec<usize>> {
        let this = self.clone();
        let look = move || {
            let pids = this.kind.processes(this.pid);
            let held = pids.iter().flat_map(|pid| holders::sockets(*pid)).collect();
            let taken = accepted(&this.listeners, &held);
            let left: Vec<_> = waiting.into_iter().filter(|index| !taken.contains(index)).collect();
            let mut sets = pids.iter().filter_map(|pid| epoll::waited_for(*pid, &this.inodes));
            let may_be_full = !taken.is_empty() && sets.all(|set| set.is_empty());
            (left.is_empty() || !may_be_full).then_some(left)
        };
        worker::within(limit, look).await.ok().flatten()
    }

    fn warn_unseen(&self) {
        tracing::warn!(
            pid = self.pid,
            "which addresses haproxy listens on cannot be seen: it has no admin socket \
             (--no-admin) and uses no epoll (-de, noepoll); leave one of the two out"
        );
    }
}

/// The indexes of the listeners from which a process that holds these sockets has a connection.
fn accepted(listeners: &[Listener], held: &BTreeSet<u64>) -> BTreeSet<usize> {
    let mut local = BTreeSet::new();
    let mut add = |address: Address, inode: u64| {
        if held.contains(&inode) {
            local.insert(address);
        }
    };
    // What the kernel does not list shows nothing.
    let _ = diag::connections(|one| add(Address::Tcp(one.local), one.inode));
    let _ = diag::unix_connections(&mut add);
    local.iter().filter_map(|address| accepts_at(listeners, address)).collect()
}

/// The index of the listener that gets the connections to this address, if that is certain.
fn accepts_at(listeners: &[Listener], address: &Address) -> Option<usize> {
    let here = Listener::new(None, address.clone(), Options::default()).ok()?.key();
    let is_ipv4 = |at: &Address| at.ip().map(|ip| ip.is_ipv4());
    // The kernel prefers the listener on the address itself, then one of the same family.
    let rank =
        |Listener { address: at, .. }: &Listener| (at == address, is_ipv4(at) == is_ipv4(address));
    let covers: Vec<_> =
        listeners.iter().enumerate().filter(|(_, one)| one.key().overlaps(&here)).collect();
    let best = covers.iter().map(|(_, one)| rank(one)).max()?;
    let mut first = covers.iter().filter(|(_, one)| rank(one) == best).map(|(index, _)| *index);
    first.next().filter(|_| first.next().is_none())
}

/// None if it does not answer in time, or has closed the connection.
async fn ask(admin: &Admin, count: usize, limit: Duration) -> Option<Missing> {
    let first = usize::try_from(inherit::FIRST).unwrap_or_default() + 1;
    let commands = match count > ONE_BY_ONE {
        true => "show fd".to_owned(),
        false => {
            let each = ((first - 1)..(first + count)).map(|fd| format!("show fd {fd}"));
            each.collect::<Vec<_>>().join("\n")
        }
    };
    let answer = admin.ask(commands, limit).await.ok()?;
    let known: BTreeMap<_, _> = answer.lines().filter_map(descriptor).collect();
    let mut missing = Missing::default();
    // The entry of the admin socket shows that haproxy has the command, and the form of its
    // answers.
    if known.contains_key(&(first - 1)) {
        for index in 0..count {
            match known.get(&(first + index)) {
                Some(true) => missing.waiting.push(index),
                Some(false) => {}
                None => missing.unknown.push(index),
            }
        }
    }
    Some(missing)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Runs a fake haproxy that knows descriptors up to `last` and stops after `answers` answers
    /// about them: it then closes its connection, or is silent.
    fn answers_of(last: usize, answers: usize, closes: bool) -> Option<Vec<usize>> {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let talks = std::thread::spawn(move || {
            let lines = BufReader::new(theirs.try_clone().expect("a copy")).lines();
            let mut lines = lines.map_while(Result::ok);
            for line in lines.by_ref() {
                let said = match line.as_str() {
                    "show cli level" => "admin\n",
                    "show info" => "Name: haproxy\n",
                    _ => "",
                };
                write!(theirs, "{said}\n> ").expect("answering");
                if line == "show info" {
                    break;
                }
            }
            for line in lines.take(answers) {
                let fd = line.rsplit(' ').next().and_then(|fd| fd.parse::<usize>().ok());
                let known = fd.filter(|fd| *fd <= last).map(|fd| format!("  {fd} : st=0x23(cl)\n"));
                write!(theirs, "{}\n> ", known.unwrap_or_default()).expect("answering");
            }
            (!closes).then_some(theirs)
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let local = tokio::task::LocalSet::new();
        let missing = local.block_on(&runtime.expect("a runtime"), async {
            let listening = Listening::AdminSocket(Admin::resume(ours.into(), 0, |_| ()), 2);
            // A minute for a haproxy that answers all; nothing for the others.
            let limit = if answers > last { 60_000 } else { 50 };
            listening.missing(Duration::from_millis(limit)).await
        });
        drop(local); // Closes its end of the connection.
        drop(talks.join().expect("a haproxy"));
        missing
    }

    #[test]
    fn a_connection_shows_the_listener_that_it_was_accepted_from() {
        let tcp = || std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let path = std::env::temp_dir().join(format!("bindonce-accepted-{}", std::process::id()));
        let (one, other) = (tcp(), tcp());
        let unix = std::os::unix::net::UnixListener::bind(&path).expect("a listener");
        let [one_at, other_at] = [&one, &other].map(|tcp| tcp.local_addr().expect("its address"));
        let texts = [one_at.to_string(), other_at.to_string(), format!("unix@{}", path.display())];
        let listeners = texts.map(|text| text.parse::<Listener>().expect("a listener"));
        let pid = std::process::id().cast_signed();
        let seen = || accepted(&listeners, &holders::sockets(pid));
        let _clients = [one_at, other_at].map(|at| std::net::TcpStream::connect(at).expect("it"));
        let _client = UnixStream::connect(&path).expect("connected");
        assert_eq!(seen(), BTreeSet::new(), "they wait in the queues");
        let first = one.accept().expect("a connection");
        assert_eq!(seen(), BTreeSet::from([0]));
        let _second = unix.accept().expect("a connection");
        assert_eq!(seen(), BTreeSet::from([0, 2]));
        drop(first);
        assert_eq!(seen(), BTreeSet::from([2]));
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn a_connection_belongs_to_the_listener_that_the_kernel_prefers() {
        let listeners = [
            "0.0.0.0:80",
            "127.0.0.1:80",
            "[::]:80",
            "[::]:81,v6only",
            "0.0.0.0:82,interface=eth0",
            "0.0.0.0:82,interface=eth1",
        ];
        let listeners = listeners.map(|text| text.parse::<Listener>().expect(text));
        for (address, expected) in [
            ("127.0.0.1:80", Some(1)),
            ("10.0.0.1:80", Some(0)),
            ("[::1]:80", Some(2)),
            ("[::1]:81", Some(3)),
            ("10.0.0.1:81", None),
            ("10.0.0.1:82", None),
            ("10.0.0.1:83", None),
        ] {
            let address = address.parse().expect(address);
            assert_eq!(accepts_at(&listeners, &address), expected, "{address}");
        }
    }

    #[test]
    fn what_is_not_said_in_time_is_not_taken_for_said() {
        let first = usize::try_from(inherit::FIRST).expect("a number");
        assert_eq!(answers_of(first + 2, 80, true), Some(vec![]));
        assert_eq!(answers_of(first + 1, 80, true), Some(vec![1]));
        assert_eq!(answers_of(first + 2, 2, false), None, "silent at the second of its listeners");
        assert_eq!(answers_of(first + 2, 2, true), None, "its end says nothing of the rest");
    }
}
