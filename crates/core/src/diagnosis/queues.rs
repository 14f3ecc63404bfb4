//! Connections that wait, that are dropped, and that are refused.

use std::collections::BTreeSet;
use std::time::Duration;

use super::accepting::Accepting;
use super::facts::{Held, Look, Mode, Process, Socket, User};
use super::finding::{Finding, Kind, Severity};
use super::text;

/// A connection that has waited this long was not just missed.
const LONG: Duration = Duration::from_secs(1);

/// Listening sockets from which nobody accepts.
pub(super) fn unserved(look: &Look, before: Option<&Look>, found: &mut Vec<Finding>) {
    let mut sockets: Vec<&Socket> =
        look.sockets.iter().filter(|socket| socket.mode == Mode::Listening).collect();
    // Where several are one finding, the fullest queue speaks for all.
    sockets.sort_by_key(|socket| std::cmp::Reverse(socket.queue.used));
    for socket in sockets {
        let holders: Vec<&Process> = look.holders(socket.inode).collect();
        let hung = hung(look, before, socket, &holders);
        let idle = holders.iter().all(|process| {
            matches!(process.accepting(socket.inode), Accepting::Stopped | Accepting::NotAsking)
        });
        // A server that does one thing at a time does not ask while it works, and the kernel's
        // own servers and those of other pid namespaces show no holder: there only time tells.
        let certain = !holders.is_empty()
            && !hung
            && look.serving_elsewhere(socket).is_none()
            && (socket.queue.used == 0
                || holders.iter().any(|one| one.is_haproxy() || matches!(one.state, 'T' | 't')));
        let waited = socket.queue.used > 0
            && match socket.waiting {
                Some(time) => time >= LONG,
                None => before.is_none() || !holders.is_empty(),
            };
        let pids: Vec<i32> = holders.iter().map(|process| process.pid).collect();
        if !(certain || waited)
            || !(idle || hung)
            || look.handover_under_way(&pids)
            || full(look, &pids)
        {
            continue;
        }
        // In a group of sockets on one address, the split is the finding.
        let twins =
            |other: &&Socket| other.address == socket.address && other.network == socket.network;
        if look.sockets.iter().filter(twins).count() > 1 && socket.queue.used == 0 {
            continue;
        }
        found.push(unserved_of(look, before, socket, &holders, hung));
    }
}

/// Whether those who accept do not: connections wait, none was taken since the last
/// look, and the processes did nothing meanwhile.
fn hung(look: &Look, before: Option<&Look>, socket: &Socket, holders: &[&Process]) -> bool {
    if holders.iter().all(|process| process.accepting(socket.inode) != Accepting::Yes) {
        return false;
    }
    // Without an earlier look any queue may be one.
    let Some(before) = before else {
        return socket.queue.used > 0;
    };
    let Some(old) = before.sockets.iter().find(|old| old.inode == socket.inode) else {
        return false;
    };
    let waits = old.queue.used > 0 && socket.queue.used >= old.queue.used;
    waits && holders.iter().all(|process| look.processor(Some(before), process) == Some(0.0))
}

/// Whether a proxy among these is at a limit of its own: then that is the finding.
fn full(look: &Look, pids: &[i32]) -> bool {
    look.haproxies.iter().any(|haproxy| {
        let at = |gauge: super::facts::Gauge| gauge.limit > 0 && gauge.used >= gauge.limit;
        pids.contains(&haproxy.pid)
            && (at(haproxy.connections)
                || haproxy
                    .proxies
                    .iter()
                    .any(|proxy| proxy.name.starts_with("frontend") && at(proxy.sessions)))
    })
}

/// The broker keeps it. Who has a lease on it must end before it can be released.
fn kept_by_broker(held: &Held) -> (String, Vec<String>) {
    let name = &held.name;
    let kept = format!("the broker keeps the listener {name:?} and no service accepts on it");
    match held.users.first() {
        None => {
            let start = "bindonce run -- haproxy -f FILE   # start what serves it, or";
            (kept, vec![format!("{start}: bindonce release {name}")])
        }
        Some(User { generation: Some((service, id)), .. }) => (
            format!("{kept}; {service} generation {id} still has it"),
            vec![format!(
                "bindonce retire --name {service} {id}   # ends it, if it drains; then: bindonce release {name}"
            )],
        ),
        Some(User { pid, generation: None }) => (
            format!("{kept}; pid {pid} has claimed it"),
            vec![format!("kill {pid}   # ends its claim; then: bindonce release {name}")],
        ),
    }
}

fn unserved_of(
    look: &Look,
    before: Option<&Look>,
    socket: &Socket,
    holders: &[&Process],
    hung: bool,
) -> Finding {
    let held = look.held.iter().find(|held| held.inode == socket.inode);
    let waits = socket.queue.used > 0;
    let since = match socket.waiting {
        Some(time) if waits => format!(", the oldest for {}", text::span(time)),
        _ => String::new(),
    };
    let queue = if waits {
        format!(
            "{} of {} wait in the queue{since}{}",
            socket.queue.used,
            socket.queue.limit + 1,
            until_full(look, before, socket)
        )
    } else {
        "the next client will wait and get no answer".to_owned()
    };
    let stopped: Vec<&Process> =
        holders.iter().copied().filter(|one| matches!(one.state, 'T' | 't')).collect();
    let proxies: Vec<&Process> =
        holders.iter().copied().filter(|process| process.is_haproxy()).collect();
    // A broker that holds it as well is not the cause.
    let causes = if proxies.is_empty() { holders } else { &proxies };
    let mut culprits: Vec<i32> = causes.iter().map(|process| process.pid).collect();
    let (cause, remedy) = if holders.is_empty() {
        culprits.clear();
        (
            "no process holds the socket any more; a container or another pid namespace may"
                .to_owned(),
            vec![format!("ss -ltnpe 'sport = :{}'", socket.address.port().unwrap_or(0))],
        )
    } else if !stopped.is_empty() {
        let pids: Vec<i32> = stopped.iter().map(|process| process.pid).collect();
        (
            format!("{} is stopped (SIGSTOP, or a debugger)", text::processes(look, &stopped)),
            vec![format!("kill -CONT {}", text::pids(&pids))],
        )
    } else if hung {
        (
            format!(
                "{0} ask{1} for connections and take{1} none: it hangs",
                text::processes(look, holders),
                text::s(holders.len() as u64),
            ),
            vec![format!(
                "cat /proc/{}/stack /proc/{}/wchan   # where it hangs; then restart it",
                culprits[0], culprits[0]
            )],
        )
    } else if let Some(proxy) = proxies.first() {
        ("haproxy holds the socket and does not ask for connections: paused (SIGTTOU), told to stop, or at a limit (maxconn, a rate) that its stats socket would tell".to_owned(),
         vec![format!("kill -TTIN {}   # resumes a paused one; nothing happens to one that is not", proxy.pid)])
    } else if let Some(known) = look.serving_elsewhere(socket) {
        (
            format!(
                "{} generation {} serves it, whose process is in another container and takes none",
                known.service, known.id
            ),
            vec![format!(
                "bindonce doctor {}   # in the container of its supervisor, which sees it",
                known.service
            )],
        )
    } else if let Some(held) = held {
        kept_by_broker(held)
    } else if holders.iter().all(|process| process.program == "bindonce") {
        let path = holders.iter().find_map(|process| control_socket(&process.command));
        let option = path.map(|path| format!(" --socket {path}")).unwrap_or_default();
        (
            format!(
                "{} keep{} the listener and no service accepts on it; the broker was not asked",
                text::processes(look, holders),
                text::s(holders.len() as u64)
            ),
            vec![format!(
                "bindonce doctor{option}   # asks the broker, which knows what should serve"
            )],
        )
    } else {
        (
            format!(
                "{} hold{} the socket and do{} not ask for connections",
                text::processes(look, holders),
                text::s(holders.len() as u64),
                if holders.len() == 1 { "es" } else { "" },
            ),
            vec![format!(
                "ps -o pid,ppid,stat,wchan:20,args -p {}   # restart it if it should serve",
                text::pids(&culprits).replace(' ', ",")
            )],
        )
    };
    let serious = waits || !proxies.is_empty() || !stopped.is_empty();
    let generation = holders.iter().find_map(|process| look.generation(process.pid));
    let generation = generation.or_else(|| look.serving_elsewhere(socket));
    Finding {
        kind: Kind::Unserved,
        severity: if serious { Severity::Error } else { Severity::Warning },
        network: look.network_name(socket),
        address: Some(socket.address.clone()),
        also: Vec::new(),
        service: generation.map(|known| known.service.clone()),
        culprits,
        summary: format!("nobody accepts: {queue}"),
        evidence: vec![
            ("queue", socket.queue.used.into()),
            ("queue_limit", socket.queue.limit.into()),
            ("waiting_seconds", socket.waiting.unwrap_or_default().as_secs_f64().into()),
            ("holders", holders.len().into()),
            ("inode", socket.inode.into()),
        ],
        cause,
        remedy,
    }
}

/// The control socket on a command line of ours; none where it is the environment's or the default.
fn control_socket(command: &[String]) -> Option<&str> {
    let mut words = command.iter().take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        if word == "--socket" {
            return words.next().map(String::as_str);
        }
        if let Some(path) = word.strip_prefix("--socket=") {
            return Some(path);
        }
    }
    None
}

/// When the queue will be full, from how it grew between two looks.
fn until_full(look: &Look, before: Option<&Look>, socket: &Socket) -> String {
    let limit = socket.queue.limit + 1;
    if socket.queue.used >= limit {
        return "; it is full, further clients get no answer at all".to_owned();
    }
    let grown = before.and_then(|before| {
        let old = before.sockets.iter().find(|old| old.inode == socket.inode)?;
        let grown = socket.queue.used.checked_sub(old.queue.used).filter(|grown| *grown > 0)?;
        Some((grown, look.at.0.saturating_sub(before.at.0)))
    });
    match grown {
        Some((grown, millis)) => {
            let left = (limit - socket.queue.used) * millis / grown;
            format!("; at this rate it is full in {}", text::span(Duration::from_millis(left)))
        }
        None => String::new(),
    }
}

/// Sockets that have their address and do not listen: clients are refused.
pub(super) fn paused(look: &Look, found: &mut Vec<Finding>) {
    for socket in &look.sockets {
        let held = look.held.iter().find(|held| held.inode == socket.inode);
        let silent = held.is_some_and(|held| !held.listening) && socket.mode != Mode::Listening;
        if socket.mode != Mode::Bound && !silent {
            continue;
        }
        let holders: Vec<&Process> = look.holders(socket.inode).collect();
        // One that nobody shares may be about to connect, or to listen.
        let ours = held.is_some() || holders.len() > 1 || holders.iter().any(|p| p.is_haproxy());
        let others = |other: &&Socket| {
            other.mode == Mode::Listening
                && other.address == socket.address
                && other.network == socket.network
        };
        let answered = look.sockets.iter().any(|other| others(&other));
        if (holders.is_empty() && held.is_none()) || answered {
            continue;
        }
        let culprits: Vec<i32> = holders.iter().map(|process| process.pid).collect();
        let remedy = match held {
            Some(held) => format!(
                "bindonce list   # the broker makes {} listen again by itself; restart it if it does not",
                held.name
            ),
            None if holders.iter().any(|one| one.is_haproxy()) => {
                format!("kill -TTIN {}   # a paused haproxy listens again", text::pids(&culprits))
            }
            None => format!(
                "ps -o pid,stat,args -p {}   # it must call listen(), or give the address up",
                text::pids(&culprits).replace(' ', ",")
            ),
        };
        found.push(Finding {
            kind: Kind::Paused,
            severity: if ours { Severity::Error } else { Severity::Warning },
            network: look.network_name(socket),
            address: Some(socket.address.clone()),
            also: Vec::new(),
            service: None,
            culprits,
            summary: format!(
                "bound and not listening: clients are refused, and nobody else can bind it (held by {})",
                text::processes(look, &holders)
            ),
            evidence: vec![("inode", socket.inode.into()), ("holders", holders.len().into())],
            cause: "a process that shares the socket has disconnected or shut it down, as haproxy does on SIGTTOU with sockets that came by -x, or listen() was never called".to_owned(),
            remedy: vec![remedy],
        });
    }
}

/// Full queues, and connections dropped for want of room.
pub(super) fn overflow(look: &Look, before: Option<&Look>, found: &mut Vec<Finding>) {
    let unserved: BTreeSet<_> = found
        .iter()
        // A first look cannot tell a queue that nobody empties from a full one.
        .filter(|finding| finding.kind == Kind::Unserved && before.is_some())
        .filter_map(|finding| finding.address.clone())
        .collect();
    for socket in look.sockets.iter().filter(|socket| socket.mode == Mode::Listening) {
        let old = before.and_then(|look| look.sockets.iter().find(|old| old.inode == socket.inode));
        let fresh = old.map_or(0, |old| socket.drops.saturating_sub(old.drops));
        // The kernel lets one more in than the limit says.
        let is_full = socket.queue.limit > 0 && socket.queue.used > socket.queue.limit;
        if (is_full || socket.drops > 0) && !unserved.contains(&socket.address) {
            found.push(overflow_of(look, socket, fresh, is_full, before.is_some()));
        }
    }
}

fn overflow_of(look: &Look, socket: &Socket, fresh: u64, is_full: bool, twice: bool) -> Finding {
    let network = look.network(socket);
    let somaxconn = network.map_or(0, |network| network.somaxconn);
    let by_system = somaxconn > 0 && socket.queue.limit >= somaxconn;
    let holders: Vec<&Process> = look.holders(socket.inode).collect();
    let taker = holders.iter().find(|process| process.accepting(socket.inode) == Accepting::Yes);
    let now = fresh > 0 || is_full;
    let (which, remedy) = if by_system {
        let double = socket.queue.limit * 2;
        (
            "net.core.somaxconn",
            format!(
                "sysctl -w net.core.somaxconn={double}   # then a backlog of {double} where it is bound, and a restart"
            ),
        )
    } else {
        let backlog = somaxconn.max(socket.queue.limit * 2);
        (
            "the backlog given to listen()",
            format!(
                "# bind with a backlog of {backlog} (haproxy: `backlog {backlog}` in the frontend; bindonce: ,backlog={backlog}); somaxconn allows {somaxconn}"
            ),
        )
    };
    let drops = match (socket.drops, fresh, twice) {
        (0, ..) => String::new(),
        (all, 0, _) => {
            format!("{} dropped since the socket exists", text::count(all, "connection attempt"))
        }
        (all, fresh, _) => format!(
            "{} dropped since the socket exists, {fresh} of them while looking",
            text::count(all, "connection attempt")
        ),
    };
    let queue = if is_full {
        format!("the accept queue is full ({} of {})", socket.queue.used, socket.queue.limit + 1)
    } else {
        String::new()
    };
    let parts: Vec<String> = [queue, drops].into_iter().filter(|part| !part.is_empty()).collect();
    let slow = match taker {
        Some(process) => {
            format!("{} takes connections more slowly than they come", text::process(look, process))
        }
        None => "connections come faster than they are taken".to_owned(),
    };
    Finding {
        kind: Kind::Overflow,
        severity: if now { Severity::Error } else { Severity::Note },
        network: look.network_name(socket),
        address: Some(socket.address.clone()),
        also: Vec::new(),
        service: holders
            .iter()
            .find_map(|one| look.generation(one.pid))
            .map(|one| one.service.clone()),
        culprits: Vec::new(),
        summary: format!("{}; {which} is the limit", parts.join(", ")),
        evidence: vec![
            ("queue", socket.queue.used.into()),
            ("queue_limit", socket.queue.limit.into()),
            ("somaxconn", somaxconn.into()),
            ("drops", socket.drops.into()),
            ("new_drops", fresh.into()),
            ("listen_overflows", network.map_or(0, |network| network.overflows).into()),
            ("listen_drops", network.map_or(0, |network| network.drops).into()),
        ],
        cause: slow,
        remedy: vec![remedy],
    }
}
