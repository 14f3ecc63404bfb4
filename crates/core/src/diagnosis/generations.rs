//! Proxies at their limits, and generations that should be gone.

use std::collections::BTreeMap;
use std::time::Duration;

use super::facts::{Gauge, Haproxy, Life, Look, Mode, Process, Socket};
use super::finding::{Finding, Kind, Severity};
use super::text;
use crate::address::Address;

/// Draining generations up to this number, and this age, are a reload like any other.
const MANY: usize = 5;
const OLD: Duration = Duration::from_secs(600);

/// Limits of haproxy's own: not a listener's problem, but it looks like one to clients.
pub(super) fn saturated(look: &Look, found: &mut Vec<Finding>) {
    for haproxy in &look.haproxies {
        if let Some(process) = look.processes.get(&haproxy.pid) {
            saturated_in(look, haproxy, process, found);
        }
    }
}

fn saturated_in(look: &Look, haproxy: &Haproxy, process: &Process, found: &mut Vec<Finding>) {
    let full = |gauge: Gauge| gauge.limit > 0 && gauge.used >= gauge.limit;
    let mut say = |sessions: Gauge, queued: u64, what: &str, cause: &str, remedy: String| {
        found.push(Finding {
            kind: Kind::Saturated,
            severity: Severity::Error,
            network: look.network_of(process),
            address: None,
            also: Vec::new(),
            service: look.generation(process.pid).map(|known| known.service.clone()),
            culprits: vec![process.pid],
            summary: format!("{what}, in {}", text::process(look, process)),
            evidence: vec![
                ("sessions", sessions.used.into()),
                ("limit", sessions.limit.into()),
                ("queued", queued.into()),
            ],
            cause: cause.to_owned(),
            remedy: vec![remedy],
        });
    };
    let Gauge { used, limit } = haproxy.connections;
    if full(haproxy.connections) {
        say(
            haproxy.connections,
            0,
            &format!("haproxy is at its maxconn: {used} of {limit} connections"),
            "it accepts no more on any address until a connection ends; clients wait in the kernel's queues",
            format!(
                "# raise `maxconn` in the global section above {limit} and reload; what keeps connections: echo 'show sess' | socat - UNIX:STATS_SOCKET"
            ),
        );
        return;
    }
    for proxy in &haproxy.proxies {
        let Gauge { used, limit } = proxy.sessions;
        let name = &proxy.name;
        if name.starts_with("frontend") && full(proxy.sessions) {
            say(
                proxy.sessions,
                0,
                &format!("{name} is at its maxconn: {used} of {limit} sessions"),
                "clients of this frontend wait in the kernel's queue while other addresses work",
                format!("# raise `maxconn` of {name} above {limit} and reload"),
            );
        } else if proxy.queued > 0 {
            let of =
                if limit > 0 { format!(" ({used} of {limit} sessions)") } else { String::new() };
            let waiting = text::count(proxy.queued, "request");
            say(
                proxy.sessions,
                proxy.queued,
                &format!("{waiting} wait{} for {name}{of}", text::s(proxy.queued)),
                "the servers are at their limit, so clients of this backend hang while others work",
                format!("# look at {name}: slow, down, or with a `maxconn` that is too low"),
            );
        }
    }
}

/// Processes that are woken for listeners which they have closed.
pub(super) fn ghosts(look: &Look, before: Option<&Look>, found: &mut Vec<Finding>) {
    for process in look.processes.values() {
        let ghost = |socket: &&Socket| {
            process
                .watches
                .iter()
                .any(|watch| watch.inode == socket.inode && !watch.live && watch.input)
        };
        let sockets: Vec<&Socket> = look.sockets.iter().filter(ghost).collect();
        let Some(socket) = sockets.first() else {
            continue;
        };
        let processor = look.processor(before, process);
        let burns = processor.unwrap_or(0.0);
        let used = match processor {
            Some(percent) => format!(", and uses {percent:.0} % of a core"),
            None => String::new(),
        };
        let more = match sockets.len() {
            1 => String::new(),
            count => format!(" and {} more", text::count(count as u64 - 1, "listener")),
        };
        let generation = look.generation(process.pid);
        let mut remedy = Vec::new();
        if let Some(known) = generation {
            remedy.push(format!(
                "bindonce reload --name {}   # the supervisor removes ghosts of its generations",
                known.service
            ));
        }
        remedy.push(format!(
            "kill -TERM {}   # ends it, and the {} that it still has",
            process.pid,
            text::count(process.sockets, "socket")
        ));
        found.push(Finding {
            kind: Kind::Ghost,
            severity: if burns >= 5.0 { Severity::Error } else { Severity::Warning },
            network: look.network_name(socket),
            address: Some(socket.address.clone()),
            also: Vec::new(),
            service: generation.map(|known| known.service.clone()),
            culprits: vec![process.pid],
            summary: format!(
                "{} is woken for every connection here{more} although it has closed the listener{used}",
                text::process(look, process)
            ),
            evidence: vec![
                ("listeners", sockets.len().into()),
                ("processor_percent", burns.into()),
                ("memory", process.memory.into()),
            ],
            cause: "epoll watches the open socket, not the descriptor: closing the one while others hold the other leaves the registration behind, and the process cannot remove it".to_owned(),
            remedy,
        });
    }
}

/// Generations that only drain.
pub(super) fn lingering(look: &Look, found: &mut Vec<Finding>) {
    let mut services: BTreeMap<(Option<u64>, String), Vec<&Process>> = BTreeMap::new();
    for process in look.processes.values() {
        if let Some(service) = drains(look, process) {
            services.entry((process.network, service)).or_default().push(process);
        }
    }
    for ((_, service), mut processes) in services {
        processes.sort_by_key(|process| process.started);
        found.extend(lingering_of(look, service, &processes));
    }
}

/// The service of a process that drains: as the broker says, as haproxy says, or a haproxy
/// without any listener beside a younger one that has some.
fn drains(look: &Look, process: &Process) -> Option<String> {
    if let Some(known) = look.generation(process.pid) {
        return (known.life == Life::Draining).then(|| known.service.clone());
    }
    let said = look.haproxies.iter().any(|one: &Haproxy| one.pid == process.pid && one.stopping);
    if said {
        return Some(process.program.clone());
    }
    if !process.is_haproxy() || process.sockets == 0 {
        return None;
    }
    let listens = |process: &Process| {
        look.sockets.iter().any(|socket| {
            socket.mode == Mode::Listening
                && matches!(socket.address, Address::Tcp(_))
                && process.holds.contains(&socket.inode)
        })
    };
    let is_master =
        look.processes.values().any(|other| other.is_haproxy() && other.parent == process.pid);
    let younger = look.processes.values().any(|other| {
        other.is_haproxy()
            && other.started > process.started
            && other.network == process.network
            && listens(other)
            && configurations(other).any(|file| configurations(process).any(|own| own == file))
    });
    (!listens(process) && !is_master && younger).then(|| process.program.clone())
}

/// The configuration files on a haproxy's command line.
fn configurations(process: &Process) -> impl Iterator<Item = &String> {
    let words = process.command.iter();
    words
        .zip(process.command.iter().skip(1))
        .filter(|(word, _)| *word == "-f")
        .map(|(_, file)| file)
}

fn lingering_of(look: &Look, service: String, processes: &[&Process]) -> Option<Finding> {
    let oldest = *processes.first()?;
    let age = look.age(oldest);
    let memory: u64 = processes.iter().map(|process| process.memory).sum();
    let connections: u64 = processes
        .iter()
        .map(|one| one.connections.as_ref().map_or(one.sockets, |known| known.count))
        .sum();
    let kept = oldest.connections.as_ref().and_then(|known| known.oldest.as_ref());
    let why = match kept {
        Some((ends, idle)) => format!(
            "the oldest is kept by {ends}, on which nothing has moved for {}",
            text::span(*idle)
        ),
        None => format!("the oldest has {} open", text::count(oldest.sockets, "socket")),
    };
    let known = look.generation(oldest.pid).is_some();
    let mut remedy =
        vec![format!("kill -TERM {}   # ends the oldest and its connections", oldest.pid)];
    if known {
        remedy.insert(0, format!("bindonce status --name {service}"));
    } else {
        remedy.push(
            "# set `hard-stop-after` in the global section, so that none lingers for ever"
                .to_owned(),
        );
    }
    let many = processes.len() > MANY || age > OLD;
    Some(Finding {
        kind: Kind::Lingering,
        severity: if many { Severity::Warning } else { Severity::Note },
        network: look.network_of(oldest),
        address: None,
        also: Vec::new(),
        service: Some(service),
        culprits: processes.iter().map(|process| process.pid).collect(),
        summary: format!(
            "{} {}, the oldest, {}, for {}; together {} and {} of memory",
            text::count(processes.len() as u64, "replaced generation"),
            if processes.len() == 1 { "drains" } else { "drain" },
            text::process(look, oldest),
            text::span(age),
            text::count(connections, "connection"),
            text::bytes(memory),
        ),
        evidence: vec![
            ("generations", processes.len().into()),
            ("oldest_seconds", age.as_secs_f64().into()),
            ("connections", connections.into()),
            ("memory", memory.into()),
        ],
        cause: why,
        remedy,
    })
}
