//! Sockets that others could join, and sockets that haproxy made by itself.

use super::facts::{Life, Look, Mode, Process, Socket};
use super::finding::{Finding, Kind, Severity};
use super::text;
use crate::address::Address;

/// Sockets with SO_REUSEPORT: another process of the same user can bind beside them. For a
/// listener of the broker that is a fault, for a plain haproxy it is how it works.
pub(super) fn not_exclusive(look: &Look, found: &mut Vec<Finding>) {
    let joinable = |socket: &&Socket| {
        let held = look.held.iter().find(|held| held.inode == socket.inode);
        matches!(socket.address, Address::Tcp(_))
            && socket.mode == Mode::Listening
            && (socket.reuseport == Some(true) || held.is_some_and(|held| !held.exclusive))
    };
    let sockets: Vec<&Socket> = look.sockets.iter().filter(joinable).collect();
    let is_held = |socket: &&&Socket| look.held.iter().any(|held| held.inode == socket.inode);
    for socket in sockets.iter().filter(is_held) {
        let cause = match setter(look, socket) {
            Some(program) => format!(
                "{program} has set SO_REUSEPORT on it, and binds sockets of its own beside it: those are not handed over, and connections that wait in them are reset when it stops"
            ),
            None => "it was taken over from a process that bound it with SO_REUSEPORT, and clearing the option does not help".to_owned(),
        };
        found.push(finding(look, socket, Severity::Warning, 1, cause));
    }
    let plain: Vec<&Socket> = sockets.iter().filter(|socket| !is_held(socket)).copied().collect();
    if let Some(first) = plain.first() {
        found.push(finding(look, first, Severity::Note, plain.len(),
            "a second process that binds the address by mistake gets its share of the connections instead of an error".to_owned()));
    }
}

fn finding(
    look: &Look,
    socket: &Socket,
    severity: Severity,
    count: usize,
    cause: String,
) -> Finding {
    let holders: Vec<&Process> = look.holders(socket.inode).collect();
    let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
    Finding {
        kind: Kind::NotExclusive,
        severity,
        network: look.network_name(socket),
        address: Some(socket.address.clone()),
        also: Vec::new(),
        service: None,
        culprits: holders.iter().map(|process| process.pid).collect(),
        summary: format!(
            "another process can bind beside this{more}: SO_REUSEPORT is set (held by {})",
            text::processes(look, &holders)
        ),
        evidence: vec![("sockets", count.into()), ("inode", socket.inode.into())],
        cause,
        remedy: vec![match setter(look, socket) {
            Some(program) => format!(
                "# take SO_REUSEPORT out of the configuration of {program} (nginx: `reuseport` of the listen line): all its workers accept from one socket as well"
            ),
            None => {
                "# bindonce run -- haproxy -f FILE binds each address once and without SO_REUSEPORT"
                    .to_owned()
            }
        }],
    }
}

/// The program other than haproxy that has set SO_REUSEPORT on a socket: one that holds it, and has
/// another for the same address.
fn setter<'a>(look: &'a Look, socket: &Socket) -> Option<&'a str> {
    let beside: Vec<u64> = look
        .sockets
        .iter()
        .filter(|other| other.inode != socket.inode && other.address == socket.address)
        .map(|other| other.inode)
        .collect();
    let of_it = |process: &&Process| {
        !process.is_haproxy() && process.holds.iter().any(|inode| beside.contains(inode))
    };
    look.holders(socket.inode).find(of_it).map(|process| process.program.as_str())
}

/// Sockets of a generation that the broker does not hold: each reload binds them anew.
pub(super) fn foreign(look: &Look, found: &mut Vec<Finding>) {
    for generation in look.generations.iter().filter(|one| one.life == Life::Serving) {
        let Some(process) = look.processes.get(&generation.pid).filter(|one| one.is_haproxy())
        else {
            continue;
        };
        let own = |socket: &&Socket| {
            process.holds.contains(&socket.inode)
                && socket.mode != Mode::Bound
                && matches!(socket.address, Address::Tcp(_) | Address::Udp(_))
                && look.held.iter().all(|held| held.inode != socket.inode)
                && !is_transient(socket)
        };
        let sockets: Vec<&Socket> = look.sockets.iter().filter(own).collect();
        let Some(first) = sockets.first() else {
            continue;
        };
        let addresses: Vec<String> =
            sockets.iter().take(4).map(|one| one.address.to_string()).collect();
        found.push(Finding {
            kind: Kind::Foreign,
            severity: Severity::Warning,
            network: look.network_name(first),
            address: Some(first.address.clone()),
            also: Vec::new(),
            service: Some(generation.service.clone()),
            culprits: vec![process.pid],
            summary: format!(
                "haproxy bound {} by itself ({} in all): {}",
                text::join(&addresses),
                text::count(sockets.len() as u64, "socket"),
                text::process(look, process)
            ),
            evidence: vec![("sockets", sockets.len().into())],
            cause: "bindonce left the line alone (peers, quic, namespaces, log-forward ...), so during a reload two generations share the address by SO_REUSEPORT".to_owned(),
            remedy: vec!["bindonce render --explain FILE   # names the line and the reason".to_owned()],
        });
    }
}

/// A datagram socket on a port of the kernel's choice: resolvers and logs use these.
fn is_transient(socket: &Socket) -> bool {
    const EPHEMERAL: u16 = 32_768;
    matches!(&socket.address, Address::Udp(ip) if ip.port() >= EPHEMERAL)
}
