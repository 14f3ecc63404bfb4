//! Two configurations at once: on several sockets of one address, or on one socket.

use std::collections::BTreeMap;

use super::accepting::Accepting;
use super::facts::{Life, Look, Mode, Process, Socket, percent};
use super::finding::{Finding, Kind, Severity};
use super::text;
use crate::address::Address;

/// A socket with the processes that count for it: those that may accept, or if
/// there is none, all that hold it (the kernel gives it connections all the same).
fn takers<'a>(look: &'a Look, socket: &Socket) -> Vec<&'a Process> {
    let holders: Vec<&Process> = look.holders(socket.inode).collect();
    let accepting: Vec<&Process> =
        holders.iter().copied().filter(|process| process.may_accept(socket.inode)).collect();
    if accepting.is_empty() { holders } else { accepting }
}

/// Several sockets on one address, held by different instances: the kernel spreads new
/// connections over them by a hash, evenly.
pub(super) fn split(look: &Look, found: &mut Vec<Finding>) {
    let mut groups: BTreeMap<(u64, &Address, &Option<String>), Vec<&Socket>> = BTreeMap::new();
    for socket in &look.sockets {
        let shares = match socket.mode {
            Mode::Listening => matches!(socket.address, Address::Tcp(_)),
            // Other programs than proxies share a datagram port on purpose, as for multicast.
            Mode::Datagram => look.holders(socket.inode).any(Process::is_haproxy),
            Mode::Bound => false,
        };
        if shares {
            let key = (socket.network, &socket.address, &socket.interface);
            groups.entry(key).or_default().push(socket);
        }
    }
    for sockets in groups.values().filter(|sockets| sockets.len() > 1) {
        found.extend(split_of(look, sockets));
    }
}

fn split_of(look: &Look, sockets: &[&Socket]) -> Option<Finding> {
    // Who takes what is given to each socket: the youngest, if several do.
    let mut parts: BTreeMap<i32, (u64, Vec<&Process>)> = BTreeMap::new();
    for socket in sockets {
        let takers = takers(look, socket);
        let taker = takers.iter().max_by_key(|process| (process.started, process.pid))?;
        let part = parts.entry(taker.instance()).or_default();
        part.0 += 1;
        if part.1.iter().all(|known| known.pid != taker.pid) {
            part.1.push(taker);
        }
    }
    if parts.len() < 2 {
        return None;
    }
    let born = |part: &(u64, Vec<&Process>)| part.1.iter().map(|one| (one.started, one.pid)).max();
    let (newest, _) = parts.iter().max_by_key(|(_, part)| born(part))?;
    let newest = *newest;
    let newest_process = parts.get(&newest)?.1.first().copied()?;
    let mut older: Vec<&Process> = parts
        .iter()
        .filter(|(instance, _)| **instance != newest)
        .flat_map(|(_, part)| part.1.iter().copied())
        .collect();
    older.sort_by_key(|process| process.started);
    let stale: u64 =
        parts.iter().filter(|(instance, _)| **instance != newest).map(|(_, part)| part.0).sum();
    let total = sockets.len() as u64;
    let share = percent(stale, total);
    let same_program = older.iter().all(|process| process.program == newest_process.program);
    let proxy = older.iter().any(|process| process.is_haproxy());
    let socket = sockets.first()?;
    let mut evidence = vec![
        ("sockets", total.into()),
        ("stale_sockets", stale.into()),
        ("stale_percent", share.into()),
        ("newest_pid", u64::from(newest_process.pid.unsigned_abs()).into()),
    ];
    for part in parts.values() {
        let pids: Vec<i32> = part.1.iter().map(|process| process.pid).collect();
        let own = percent(part.0, total);
        evidence.push(("share", format!("pid {}: {own:.0} %", text::pids(&pids)).into()));
    }
    let newest_word = if same_program {
        format!("older than pid {} with the newest configuration", newest_process.pid)
    } else {
        format!("not {}", text::process(look, newest_process))
    };
    let culprits: Vec<i32> = older.iter().map(|process| process.pid).collect();
    Some(Finding {
        kind: Kind::Split,
        severity: if proxy { Severity::Error } else { Severity::Warning },
        network: look.network_name(socket),
        address: Some(socket.address.clone()),
        also: Vec::new(),
        service: look.generation(newest_process.pid).map(|known| known.service.clone()),
        summary: format!(
            "{stale} of {total} connections, {share:.0} %, go to {}: {newest_word}",
            text::processes(look, &older)
        ),
        evidence,
        cause: format!(
            "each process bound the address for itself, with SO_REUSEPORT: the kernel spreads new connections over all sockets by a hash of addresses and ports, whoever has the right configuration{}",
            not_answering(look, &older, sockets),
        ),
        remedy: stop(look, &older),
        culprits,
    })
}

/// What is worse than a stale answer: none.
fn not_answering(look: &Look, older: &[&Process], sockets: &[&Socket]) -> String {
    let silent = |process: &&&Process| {
        let mut held = sockets.iter().filter(|socket| process.holds.contains(&socket.inode));
        held.all(|socket| {
            matches!(process.accepting(socket.inode), Accepting::Stopped | Accepting::NotAsking)
        })
    };
    let pids: Vec<i32> = older.iter().filter(silent).map(|process| process.pid).collect();
    if pids.is_empty() || look.processes.is_empty() {
        return String::new();
    }
    format!("; pid {} does not accept, so what goes there hangs", text::pids(&pids))
}

/// How to get older generations to stop.
fn stop(look: &Look, older: &[&Process]) -> Vec<String> {
    let mut remedy = Vec::new();
    let stopped: Vec<i32> =
        older.iter().filter(|one| matches!(one.state, 'T' | 't')).map(|one| one.pid).collect();
    let all: Vec<i32> = older.iter().map(|process| process.pid).collect();
    let proxies: Vec<i32> =
        older.iter().filter(|process| process.is_haproxy()).map(|process| process.pid).collect();
    if proxies.is_empty() {
        remedy.push(format!(
            "# if these belong together, all is well; else end the older: kill -TERM {}",
            text::pids(&all)
        ));
        return remedy;
    }
    if older.iter().all(|process| process.stop_pending || stopped.contains(&process.pid)) {
        let why = if stopped.is_empty() { "told to stop and did not" } else { "it is stopped" };
        remedy.push(format!(
            "kill -TERM {0}; kill -CONT {0}   # {why}: this ends its connections",
            text::pids(&all)
        ));
    } else {
        remedy.push(format!(
            "kill -USR1 {}   # closes its listeners, finishes its connections",
            text::pids(&proxies)
        ));
    }
    if older.iter().all(|process| look.generation(process.pid).is_none()) {
        remedy.push(
            "# so that it cannot happen again: bindonce run -- haproxy -f FILE binds the address once".to_owned(),
        );
    }
    remedy
}

/// One socket from which several instances accept: the older ones answer with an
/// older configuration, or at all although they were told to stop.
pub(super) fn stale(look: &Look, found: &mut Vec<Finding>) {
    let mut cases: BTreeMap<Vec<i32>, Vec<&Socket>> = BTreeMap::new();
    for socket in &look.sockets {
        let accepting: Vec<&Process> = look
            .holders(socket.inode)
            .filter(|process| process.accepting(socket.inode) == Accepting::Yes)
            .collect();
        let pids: Vec<i32> = stale_on(look, &accepting).iter().map(|process| process.pid).collect();
        if !pids.is_empty() {
            cases.entry(pids).or_default().push(socket);
        }
    }
    for (pids, sockets) in &cases {
        found.extend(stale_of(look, pids, sockets));
    }
}

/// Those of the processes that accept from one socket that should not.
fn stale_on<'a>(look: &Look, accepting: &[&'a Process]) -> Vec<&'a Process> {
    let draining = |process: &Process| {
        let stopping =
            look.haproxies.iter().any(|haproxy| haproxy.pid == process.pid && haproxy.stopping);
        let known = look.generation(process.pid);
        stopping || known.is_some_and(|generation| generation.life == Life::Draining)
    };
    let newest = accepting.iter().max_by_key(|process| (process.started, process.pid));
    accepting
        .iter()
        .copied()
        .filter(|process| {
            let replaced = newest.is_some_and(|newest| {
                newest.instance() != process.instance() && newest.program == process.program
            });
            replaced || draining(process)
        })
        .collect()
}

fn stale_of(look: &Look, pids: &[i32], sockets: &[&Socket]) -> Option<Finding> {
    let socket = sockets.first()?;
    let older: Vec<&Process> = pids.iter().filter_map(|pid| look.processes.get(pid)).collect();
    if look.handover_under_way(pids) {
        return None;
    }
    let newest = look
        .holders(socket.inode)
        .filter(|process| {
            !pids.contains(&process.pid) && process.accepting(socket.inode) == Accepting::Yes
        })
        .max_by_key(|process| process.started);
    let beside = match newest {
        Some(newest) => format!("beside {}", text::process(look, newest)),
        None => "and nobody else does".to_owned(),
    };
    let more = match sockets.len() {
        1 => String::new(),
        more => format!(" and {} more", text::count(more as u64 - 1, "listener")),
    };
    let proxy = older.iter().any(|process| process.is_haproxy());
    let service = pids.iter().find_map(|pid| look.generation(*pid)).map(|one| one.service.clone());
    let mut remedy = stop(look, &older);
    if let Some(service) = &service {
        remedy.insert(0, format!("bindonce reload --name {service}   # proves that older generations have stopped, or ends them"));
    }
    Some(Finding {
        kind: Kind::Stale,
        severity: if proxy || service.is_some() { Severity::Error } else { Severity::Warning },
        network: look.network_name(socket),
        address: Some(socket.address.clone()),
        also: Vec::new(),
        service,
        culprits: pids.to_vec(),
        summary: format!(
            "{} still accept{} here{more}, {beside}",
            text::processes(look, &older),
            text::s(older.len() as u64),
        ),
        evidence: vec![
            ("stale_processes", pids.len().into()),
            ("listeners", sockets.len().into()),
            ("inode", socket.inode.into()),
        ],
        cause: "on one socket the process that is woken first takes the connection; measured, the older generation takes 50 to 99 % of them".to_owned(),
        remedy,
    })
}
