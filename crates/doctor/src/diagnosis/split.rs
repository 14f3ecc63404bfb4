//! Several sockets on one address, held by different instances: the kernel spreads new
//! connections over them by a hash, evenly.

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
        found.extend(split(look, sockets));
    }
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
        silent: silent.map(|process| process.pid).collect(),
    });
    let proxy = older.iter().any(|process| process.is_haproxy());
    let severity = if proxy { Severity::Error } else { Severity::Warning };
    let finding = Finding::on(look, sockets.first()?, severity, condition);
    Some(finding.caused_by(older).of(look.service_of([newest_process.pid].iter())))
}

/// The process that counts for a socket: the youngest that may accept, or if there is none, the
/// youngest that holds it. The kernel gives it connections all the same.
fn taker<'a>(look: &'a Look, socket: &Socket) -> Option<&'a Process> {
    let youngest = |process: &&Process| (process.started, process.pid);
    let accepting = look.holders(socket.inode).filter(|one| one.may_accept(socket.inode));
    accepting.max_by_key(youngest).or_else(|| look.holders(socket.inode).max_by_key(youngest))
}
