//! Finds sockets that other processes could join, and sockets that haproxy bound itself.

use std::net::SocketAddr;

use bindonce::State;
use bindonce_core::address::Address;

use super::condition::{Condition, Fallback, Foreign, NotExclusive};
use super::finding::Finding;
use super::kind::Severity;
use crate::facts::{Look, Mode, Process, Socket};

/// Number of addresses to show, to keep the report short.
const SHOWN: usize = 4;

/// Finds sockets with SO_REUSEPORT: another process of the same user can bind beside them. For a
/// listener of the broker that is a fault; a plain haproxy works that way.
pub(super) fn not_exclusive(look: &Look, found: &mut Vec<Finding>) {
    let joinable = |socket: &&Socket| {
        matches!(socket.address, Address::Tcp(_))
            && socket.mode == Mode::Listening
            && (socket.reuseport == Some(true)
                || look.listener(socket.inode).is_some_and(|listener| !listener.exclusive))
    };
    let (held, plain): (Vec<&Socket>, Vec<&Socket>) = look
        .sockets
        .iter()
        .filter(joinable)
        .partition(|socket| look.listener(socket.inode).is_some());
    let mut add = |socket: &Socket, held: bool, sockets: usize| {
        let setter = setter(look, socket);
        let condition = NotExclusive { sockets, inode: socket.inode, setter };
        let severity = if held { Severity::Warning } else { Severity::Note };
        let finding = Finding::on(look, socket, severity, Condition::NotExclusive(condition));
        found.push(finding.caused_by(look.holders(socket.inode)));
    };
    for socket in held {
        add(socket, true, 1);
    }
    if let Some(first) = plain.first() {
        add(first, false, plain.len());
    }
}

/// The program other than haproxy that has set SO_REUSEPORT on a socket: it holds the socket, and
/// another one on the same address.
fn setter(look: &Look, socket: &Socket) -> Option<String> {
    let beside: Vec<u64> = look
        .sockets
        .iter()
        .filter(|other| other.inode != socket.inode && other.address == socket.address)
        .map(|other| other.inode)
        .collect();
    let of_it = |process: &&Process| {
        !process.is_haproxy() && beside.iter().any(|inode| process.holds(*inode))
    };
    look.holders(socket.inode).find(of_it).map(|process| process.program.clone())
}

/// Finds a haproxy that serves QUIC on a port that it may not bind because it has given up root. A
/// connection then has no socket of its own, and its packets go to any process that reads the
/// listener.
pub(super) fn fallback(look: &Look, found: &mut Vec<Finding>) {
    for socket in look.sockets.iter().filter(|socket| socket.mode == Mode::Datagram) {
        let network = look.network(socket.network);
        let Some(port) = look.quic(socket.inode).map(|at| at.port()) else { continue };
        let from = network.map_or(0, |network| network.unprivileged);
        let falls = |process: &&Process| {
            process.is_haproxy() && !process.binds_any_port && process.may_accept(socket.inode)
        };
        for process in look.holders(socket.inode).filter(falls).filter(|_| port < from) {
            let condition = Condition::Fallback(Fallback { port, unprivileged_from: from });
            let finding = Finding::on(look, socket, Severity::Warning, condition);
            found.push(finding.caused_by([process]).of(look.service_of([process.pid].iter())));
        }
    }
}

/// Finds sockets of a generation that the broker does not hold: each reload binds them again.
pub(super) fn foreign(look: &Look, found: &mut Vec<Finding>) {
    for (service, generation) in look.generations() {
        let process = look.processes.get(&generation.pid.cast_signed());
        let Some(process) = process.filter(|one| one.is_haproxy()) else {
            continue;
        };
        let own = |socket: &&Socket| {
            generation.state == State::Serving
                && process.holds(socket.inode)
                && socket.mode != Mode::Bound
                && matches!(socket.address, Address::Tcp(_) | Address::Udp(_))
                && look.listener(socket.inode).is_none()
                && !is_transient(socket)
                && !is_for_a_connection(look, process, socket)
        };
        let sockets: Vec<&Socket> = look.sockets.iter().filter(own).collect();
        if let Some(socket) = sockets.first() {
            let first = sockets.iter().take(SHOWN).map(|one| one.address.clone()).collect();
            let condition = Condition::Foreign(Foreign { sockets: sockets.len(), first });
            let finding = Finding::on(look, socket, Severity::Warning, condition);
            found.push(finding.caused_by([process]).of(Some(service.to_owned())));
        }
    }
}

/// Whether a UDP socket is on the port of a QUIC listener of the same process, which will connect
/// it to a client.
fn is_for_a_connection(look: &Look, process: &Process, socket: &Socket) -> bool {
    let beside = |at: SocketAddr| Some(at.port()) == socket.address.port();
    let mut held = process.activity.holds.iter().filter_map(|(inode, _)| look.quic(*inode));
    matches!(socket.address, Address::Udp(_)) && held.any(beside)
}

/// Whether it is a datagram socket on a port of the kernel's choice, as resolvers and logs use.
fn is_transient(socket: &Socket) -> bool {
    const EPHEMERAL: u16 = 32_768;
    matches!(&socket.address, Address::Udp(ip) if ip.port() >= EPHEMERAL)
}
