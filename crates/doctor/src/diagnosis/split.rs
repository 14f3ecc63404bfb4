//! Finds several sockets on one address, held by different instances: the kernel spreads new
//! connections over them evenly, by a hash. Among UDP sockets without SO_REUSEPORT one takes
//! everything.

use std::collections::BTreeMap;

use bindonce_core::address::Address;

use super::condition::{Condition, Split};
use super::finding::Finding;
use super::kind::Severity;
use crate::facts::{Look, Mode, Process, Socket, percent};

pub(super) fn find(look: &Look, found: &mut Vec<Finding>) {
    let mut groups: BTreeMap<(u64, &Address, &Option<String>), Vec<&Socket>> = BTreeMap::new();
    for socket in &look.sockets {
        let shares = match socket.mode {
            Mode::Listening => matches!(socket.address, Address::Tcp(_)),
            Mode::Datagram => true,
            Mode::Bound => false,
        };
        if shares {
            let key = (socket.network, &socket.address, &socket.interface);
            groups.entry(key).or_default().push(socket);
        }
    }
    for sockets in groups.values() {
        found.extend(wide(look, sockets[0]).and_then(|none| takes_all(look, sockets[0], &[none])));
        let (receive, none) = receivers(look, sockets);
        if !none.is_empty() {
            found.extend(takes_all(look, receive[0], &none));
        }
        // Programs other than proxies share a datagram port on purpose, as for multicast.
        let proxy = |socket: &&Socket| look.holders(socket.inode).any(Process::is_haproxy);
        if receive.len() > 1
            && (receive[0].mode == Mode::Listening
                || receive.iter().filter(|one| proxy(one)).count() > 1)
        {
            found.extend(split(look, &receive));
        }
    }
}

/// The sockets of an address that new clients reach, and those that they do not. Among UDP sockets
/// the last bound one takes everything, together with the others if it and they have SO_REUSEPORT.
fn receivers<'a>(look: &Look, sockets: &[&'a Socket]) -> (Vec<&'a Socket>, Vec<&'a Socket>) {
    let first = sockets[0];
    let alone = first.mode == Mode::Datagram
        && match first.reuseport {
            Some(reuseport) => !reuseport,
            // The broker's sockets do not have it.
            None => sockets.iter().any(|socket| look.quic(socket.inode).is_some()),
        };
    let reaches = |socket: &&'a Socket| {
        first.mode == Mode::Listening
            || socket.inode == first.inode
            || !alone && socket.reuseport != Some(false) && look.quic(socket.inode).is_none()
    };
    sockets.iter().copied().partition(reaches)
}

/// The broker's QUIC socket on a wildcard, if `socket` takes the packets for its own address from
/// it.
fn wide<'a>(look: &'a Look, socket: &Socket) -> Option<&'a Socket> {
    let Address::Udp(at) = socket.address else { return None };
    let takes_from = |other: &&Socket| {
        let Some(wide) = look.quic(other.inode) else { return false };
        let ipv6_only = || {
            let options = look.listener(other.inode).map(|listener| &listener.options);
            options.is_some_and(|options| options.contains_key("v6only"))
        };
        let covers = wide.is_ipv6() == at.is_ipv6() && !at.ip().is_unspecified()
            || wide.is_ipv6() && at.is_ipv4() && !ipv6_only();
        wide.ip().is_unspecified() && wide.port() == at.port() && covers
    };
    let near = look.sockets.iter().filter(|other| {
        other.network == socket.network
            && other.mode == Mode::Datagram
            && socket.mode == Mode::Datagram
    });
    near.filter(takes_from).find(|_| look.quic(socket.inode).is_none())
}

/// The finding that `first` takes everything from the other sockets, if one of them is a proxy's:
/// `first` belongs to another program, or to a haproxy beside the broker's socket. Sockets for QUIC
/// connections, also of a process that has the listener, do so for a moment until they are
/// connected.
fn takes_all(look: &Look, first: &Socket, none: &[&Socket]) -> Option<Finding> {
    let winner = taker(look, first)?;
    let named = none.iter().find_map(|socket| {
        let loser = taker(look, socket)?;
        let is_meant =
            loser.is_haproxy() && !winner.is_haproxy() || look.quic(socket.inode).is_some();
        (is_meant && !winner.holds(socket.inode)).then_some(loser)
    })?;
    let condition = Condition::Split(Split {
        sockets: none.len() as u64 + 1,
        stale_sockets: 1,
        stale_percent: 100.0,
        newest_pid: named.pid,
        share: vec![format!("pid {}: 100 %", winner.pid), format!("pid {}: 0 %", named.pid)],
        takes_all: true,
        silent: Vec::new(),
    });
    let finding = Finding::on(look, first, Severity::Error, condition);
    Some(finding.caused_by([winner]).of(look.service_of([named.pid].iter())))
}

/// The sockets of one running instance on the address.
#[derive(Default)]
struct Part<'a> {
    sockets: u64,
    takers: Vec<&'a Process>,
}

fn split(look: &Look, sockets: &[&Socket]) -> Option<Finding> {
    let mut parts: BTreeMap<i32, Part<'_>> = BTreeMap::new();
    for socket in sockets {
        let taker = taker(look, socket)?;
        let part = parts.entry(taker.instance()).or_default();
        part.sockets += 1;
        if part.takers.iter().all(|known| known.pid != taker.pid) {
            part.takers.push(taker);
        }
    }
    if parts.len() < 2 {
        return None;
    }
    let born = |part: &Part<'_>| part.takers.iter().map(|one| (one.started, one.pid)).max();
    let newest = *parts.iter().max_by_key(|(_, part)| born(part))?.0;
    let newest_process = parts.get(&newest)?.takers.first().copied()?;
    let whole = sockets.len() as u64;
    let shares = parts.values().map(|part| {
        let pids: Vec<String> = part.takers.iter().map(|process| process.pid.to_string()).collect();
        format!("pid {}: {:.0} %", pids.join(" "), percent(part.sockets, whole))
    });
    let share = shares.collect();
    parts.remove(&newest);
    let stale = parts.values().map(|part| part.sockets).sum();
    let mut older: Vec<&Process> = parts.into_values().flat_map(|part| part.takers).collect();
    older.sort_by_key(|process| process.started);
    let silent = older.iter().filter(|process| {
        let mut held = sockets.iter().filter(|socket| process.holds(socket.inode));
        held.all(|socket| process.is_idle_on(socket.inode))
    });
    let condition = Condition::Split(Split {
        sockets: whole,
        stale_sockets: stale,
        stale_percent: percent(stale, whole),
        newest_pid: newest_process.pid,
        share,
        takes_all: false,
        silent: silent.map(|process| process.pid).collect(),
    });
    let proxy = older.iter().any(|process| process.is_haproxy());
    let severity = if proxy { Severity::Error } else { Severity::Warning };
    let finding = Finding::on(look, sockets.first()?, severity, condition);
    Some(finding.caused_by(older).of(look.service_of([newest_process.pid].iter())))
}

/// The process that counts for a socket: the youngest that may accept or, if there is none, the
/// youngest that holds it. The kernel queues connections for the socket either way.
fn taker<'a>(look: &'a Look, socket: &Socket) -> Option<&'a Process> {
    let youngest = |process: &&Process| (process.started, process.pid);
    let accepting = look.holders(socket.inode).filter(|one| one.may_accept(socket.inode));
    accepting.max_by_key(youngest).or_else(|| look.holders(socket.inode).max_by_key(youngest))
}
