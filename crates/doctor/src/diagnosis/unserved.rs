//! Finds listening sockets from which nobody accepts: the kernel completes connections, and they
//! wait.

use std::time::Duration;

use bindonce::{ListenerInfo, State};

use super::condition::{Condition, Lessee, NotAccepting, Unserved};
use super::finding::Finding;
use super::generations::is_full;
use super::kind::Severity;
use crate::facts::{Accepting, Details, Look, Mode, Process, Socket};

/// A connection that has waited this long was not merely missed.
const LONG: Duration = Duration::from_secs(1);

/// Finds these sockets. For uncertain ones [`lasts`] decides whether they count.
pub(super) fn find(look: &Look, before: Option<&Look>, found: &mut Vec<Finding>) {
    let mut sockets: Vec<&Socket> =
        look.sockets.iter().filter(|socket| socket.mode == Mode::Listening).collect();
    // If several are merged into one finding, the fullest queue represents them.
    sockets.sort_by_key(|socket| std::cmp::Reverse(socket.queue));
    for socket in sockets {
        let holders: Vec<&Process> = look.holders(socket.inode).collect();
        let pids: Vec<i32> = holders.iter().map(|process| process.pid).collect();
        let hangs = hangs(look, before, socket, &holders);
        let idle = holders.iter().all(|process| process.is_idle_on(socket.inode));
        // A server that handles one request at a time does not ask while it works; the kernel's own
        // servers and those of other pid namespaces show no holder. For these only a long wait is
        // proof.
        let certain = !holders.is_empty()
            && !hangs
            && look.serving_elsewhere(socket.inode).is_none()
            && (socket.queue == 0
                || holders.iter().any(|one| one.is_haproxy() || one.is_stopped()));
        // A draining generation's own sockets end with it: a master keeps its worker's admin socket
        // open.
        let drains =
            |pid| look.generation(pid).is_some_and(|(_, known)| known.state == State::Draining);
        let goes = socket.queue == 0
            && look.listener(socket.inode).is_none()
            && !pids.is_empty()
            && pids.iter().all(|pid| drains(*pid));
        // In a group of sockets on one address, the split is the finding.
        let shared = || {
            let beside = |other: &&Socket| {
                other.address == socket.address && other.network == socket.network
            };
            look.sockets.iter().filter(beside).count() > 1
        };
        if (certain || socket.queue > 0)
            && (idle || hangs)
            && !goes
            && !look.handover_under_way(&pids)
            && !look.haproxies.iter().any(|haproxy| pids.contains(&haproxy.pid) && is_full(haproxy))
            && (socket.queue > 0 || !shared())
        {
            found.push(unserved(look, before, socket, &holders, hangs, certain));
        }
    }
}

/// Whether an uncertain socket counts, once the wait of its queue is known.
pub(super) fn lasts(unserved: &mut Unserved, details: &Details) -> bool {
    unserved.waiting = details.waits.get(&unserved.inode).copied().filter(|_| unserved.queue > 0);
    unserved.certain
        || unserved.waiting.map_or(!unserved.holders.is_empty(), |waiting| waiting >= LONG)
}

/// Whether the holders ask for connections but take none: connections wait, none was taken since
/// the last look, and the processes used no processor time in between.
fn hangs(look: &Look, before: Option<&Look>, socket: &Socket, holders: &[&Process]) -> bool {
    if holders.iter().all(|process| process.accepting(socket.inode) != Accepting::Yes) {
        return false;
    }
    // Without an earlier look any non-empty queue may be one.
    let Some(before) = before else {
        return socket.queue > 0;
    };
    let Some(old) = earlier(before, socket) else {
        return false;
    };
    old.queue > 0
        && socket.queue >= old.queue
        && holders.iter().all(|one| look.processor_percent(Some(before), one) == Some(0.0))
}

fn earlier<'a>(before: &'a Look, socket: &Socket) -> Option<&'a Socket> {
    before.sockets.iter().find(|old| old.inode == socket.inode)
}

fn unserved(
    look: &Look,
    before: Option<&Look>,
    socket: &Socket,
    holders: &[&Process],
    hangs: bool,
    certain: bool,
) -> Finding {
    let cause = cause(look, socket, holders, hangs);
    let haproxies: Vec<&Process> =
        holders.iter().copied().filter(|process| process.is_haproxy()).collect();
    let serious =
        socket.queue > 0 || !haproxies.is_empty() || matches!(cause, NotAccepting::Stopped(_));
    let severity = if serious { Severity::Error } else { Severity::Warning };
    let holding: Vec<i32> = holders.iter().map(|process| process.pid).collect();
    let service = look
        .service_of(holding.iter())
        .or_else(|| look.serving_elsewhere(socket.inode).map(|(service, _)| service.to_owned()));
    let condition = Condition::Unserved(Unserved {
        queue: socket.queue,
        queue_limit: socket.queue_limit,
        waiting: None,
        holders: holding,
        inode: socket.inode,
        full_in: before.and_then(|before| full_in(look, before, socket)),
        cause,
        certain,
    });
    // A broker that holds the socket as well is not the cause.
    let causes = if haproxies.is_empty() { holders } else { &haproxies };
    Finding::on(look, socket, severity, condition).caused_by(causes.iter().copied()).of(service)
}

/// Time until the queue is full, by its growth between two looks.
fn full_in(look: &Look, before: &Look, socket: &Socket) -> Option<Duration> {
    let left = (socket.queue_limit + 1).checked_sub(socket.queue).filter(|left| *left > 0)?;
    let grown =
        socket.queue.checked_sub(earlier(before, socket)?.queue).filter(|grown| *grown > 0)?;
    let millis = look.at.0.saturating_sub(before.at.0);
    Some(Duration::from_millis(left.saturating_mul(millis) / grown))
}

/// Why nobody accepts: the most certain cause first.
fn cause(look: &Look, socket: &Socket, holders: &[&Process], hangs: bool) -> NotAccepting {
    let stopped: Vec<i32> =
        holders.iter().filter(|one| one.is_stopped()).map(|one| one.pid).collect();
    if holders.is_empty() {
        NotAccepting::NoHolder
    } else if !stopped.is_empty() {
        NotAccepting::Stopped(stopped)
    } else if hangs {
        NotAccepting::Hung
    } else if let Some(haproxy) = holders.iter().find(|process| process.is_haproxy()) {
        NotAccepting::HaproxyDoesNotAsk(haproxy.pid)
    } else if let Some((service, known)) = look.serving_elsewhere(socket.inode) {
        NotAccepting::Elsewhere { service: service.to_owned(), generation: known.generation }
    } else if let Some(listener) = look.listener(socket.inode) {
        NotAccepting::NoService { name: listener.name.clone(), leased_by: lessee(listener) }
    } else if holders.iter().all(|process| process.program == "bindonce") {
        let sockets = holders.iter().find_map(|process| control_socket(&process.command));
        NotAccepting::BrokerNotAsked(sockets.map(str::to_owned))
    } else {
        NotAccepting::HoldersDoNotAsk
    }
}

/// The holder of a lease on a listener, which must end before the listener can be released.
fn lessee(listener: &ListenerInfo) -> Option<Lessee> {
    let holder = listener.holders.first()?;
    Some(match (&holder.service, holder.generation) {
        (Some(service), Some(generation)) => Lessee::Generation(service.clone(), generation),
        _ if holder.pid == 0 => Lessee::Elsewhere,
        _ => Lessee::Process(holder.pid),
    })
}

/// The control socket on a bindonce command line; None if it comes from the environment or is the
/// default.
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
