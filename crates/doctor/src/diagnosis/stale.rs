//! Finds sockets from which several instances accept: the older ones answer with an older
//! configuration, or although they should have stopped.

use std::collections::BTreeMap;

use bindonce::State;

use super::condition::{Condition, Stale};
use super::finding::Finding;
use super::kind::Severity;
use crate::facts::{Accepting, Look, Process, Socket};

pub(super) fn find(look: &Look, found: &mut Vec<Finding>) {
    let mut cases: BTreeMap<Vec<i32>, Vec<&Socket>> = BTreeMap::new();
    for socket in &look.sockets {
        let pids: Vec<i32> = stale_on(look, socket).iter().map(|process| process.pid).collect();
        if !pids.is_empty() {
            cases.entry(pids).or_default().push(socket);
        }
    }
    for (pids, sockets) in &cases {
        if !look.handover_under_way(pids) {
            found.extend(stale(look, pids, sockets));
        }
    }
}

fn accepting<'a>(look: &'a Look, socket: &Socket) -> impl Iterator<Item = &'a Process> {
    let inode = socket.inode;
    look.holders(inode).filter(move |process| process.accepting(inode) == Accepting::Yes)
}

/// The processes that accept from a socket and should not: replaced by a newer one of the same
/// program, or in soft stop.
fn stale_on<'a>(look: &'a Look, socket: &Socket) -> Vec<&'a Process> {
    let accepting: Vec<&Process> = accepting(look, socket).collect();
    let Some(newest) = accepting.iter().max_by_key(|one| (one.started, one.pid)).copied() else {
        return Vec::new();
    };
    let is_stale = |process: &&Process| {
        newest.instance() != process.instance() && newest.program == process.program
            || look.haproxies.iter().any(|haproxy| haproxy.pid == process.pid && haproxy.stopping)
            || look.generation(process.pid).is_some_and(|(_, known)| known.state == State::Draining)
    };
    accepting.into_iter().filter(is_stale).collect()
}

fn stale(look: &Look, pids: &[i32], sockets: &[&Socket]) -> Option<Finding> {
    let socket = sockets.first()?;
    let older = look.processes_of(pids);
    let newest = accepting(look, socket)
        .filter(|process| !pids.contains(&process.pid))
        .max_by_key(|process| process.started);
    let condition = Condition::Stale(Stale {
        stale_processes: pids.len(),
        listeners: sockets.len(),
        inode: socket.inode,
        beside: newest.map(|process| process.pid),
    });
    let service = look.service_of(pids.iter());
    let serious = service.is_some() || older.iter().any(|process| process.is_haproxy());
    let severity = if serious { Severity::Error } else { Severity::Warning };
    Some(Finding::on(look, socket, severity, condition).caused_by(older).of(service))
}
