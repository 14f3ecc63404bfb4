//! Finds sockets that refuse clients, and queues that drop them.

use super::condition::{Condition, Overflow, Paused};
use super::finding::Finding;
use super::kind::Severity;
use crate::facts::{Accepting, Look, Mode, Process, Socket};

/// Finds sockets that are bound and do not listen: clients are refused.
pub(super) fn paused(look: &Look, found: &mut Vec<Finding>) {
    for socket in &look.sockets {
        let listener = look.listener(socket.inode);
        let silent = listener.is_some_and(|one| !one.listening) && socket.mode != Mode::Listening;
        if socket.mode != Mode::Bound && !silent {
            continue;
        }
        let holders: Vec<&Process> = look.holders(socket.inode).collect();
        let by_haproxy = holders.iter().any(|process| process.is_haproxy());
        let answered = look.sockets.iter().any(|other| {
            other.mode == Mode::Listening
                && other.address == socket.address
                && other.network == socket.network
        });
        if (holders.is_empty() && listener.is_none()) || answered {
            continue;
        }
        // A socket of a single process may be about to connect or to listen.
        let serious = listener.is_some() || holders.len() > 1 || by_haproxy;
        let severity = if serious { Severity::Error } else { Severity::Warning };
        let paused = Paused { inode: socket.inode, holders: holders.len() };
        let finding = Finding::on(look, socket, severity, Condition::Paused(paused));
        found.push(finding.caused_by(holders));
    }
}

/// Finds full queues, and connections dropped for lack of room.
pub(super) fn overflow(look: &Look, before: Option<&Look>, found: &mut Vec<Finding>) {
    // Many programs drop datagrams on purpose, so only proxies count.
    let matters = |socket: &&Socket| match socket.mode {
        Mode::Listening => true,
        Mode::Datagram => {
            look.listener(socket.inode).is_some()
                || look.holders(socket.inode).any(Process::is_haproxy)
        }
        Mode::Bound => false,
    };
    for socket in look.sockets.iter().filter(matters) {
        let old = before.and_then(|look| look.sockets.iter().find(|old| old.inode == socket.inode));
        let network = look.network(socket.network);
        let taker = look
            .holders(socket.inode)
            .find(|process| process.accepting(socket.inode) == Accepting::Yes);
        let overflow = Overflow {
            queue: socket.queue,
            queue_limit: socket.queue_limit,
            somaxconn: network.map_or(0, |network| network.somaxconn),
            drops: socket.drops,
            new_drops: old.map_or(0, |old| socket.drops.saturating_sub(old.drops)),
            listen_overflows: network.map_or(0, |network| network.listen_overflows),
            listen_drops: network.map_or(0, |network| network.listen_drops),
            taker: taker.map(|process| process.pid),
            datagrams: socket.mode == Mode::Datagram,
        };
        if !overflow.is_full() && overflow.drops == 0 {
            continue;
        }
        // Past drops are worth a note only.
        let now = overflow.new_drops > 0 || overflow.is_full();
        let severity = if now { Severity::Error } else { Severity::Note };
        let holders: Vec<i32> = look.holders(socket.inode).map(|process| process.pid).collect();
        let finding = Finding::on(look, socket, severity, Condition::Overflow(overflow));
        found.push(finding.of(look.service_of(holders.iter())));
    }
}
