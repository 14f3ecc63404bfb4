//! Finds proxies at their limits, and generations that should be gone.

use std::collections::BTreeMap;
use std::time::Duration;

use bindonce::State;
use bindonce_core::address::Address;
use bindonce_haproxy::counters::Unit;
use bindonce_haproxy::stats::Stats;

use super::condition::{Answering, Condition, Ghost, Lingering, Saturated};
use super::finding::Finding;
use super::kind::Severity;
use crate::facts::{Answers, Details, Look, Mode, Process, Socket, percent};

/// Draining generations up to this number and this age are an ordinary reload.
const MANY: usize = 5;
const OLD: Duration = Duration::from_secs(600);

/// Draining generations may answer up to this percentage of their service's traffic. Amounts up to
/// the other two limits never count.
const SMALL: f64 = 5.0;
const FEW_REQUESTS: u64 = 10;
const FEW_BYTES: u64 = 1 << 20;

/// A ghost that uses this percentage of a core is an error.
const BURNS: f64 = 5.0;

/// Finds haproxies at a limit of their own: the listener is fine, but to clients it looks the same.
pub(super) fn saturated(look: &Look, found: &mut Vec<Finding>) {
    for haproxy in &look.haproxies {
        if let Some(process) = look.processes.get(&haproxy.pid) {
            found.extend(limits(haproxy).into_iter().map(|saturated| {
                let network = look.network_name(process.network);
                Finding::at(network, Severity::Error, Condition::Saturated(saturated))
                    .caused_by([process])
                    .of(look.service_of([process.pid].iter()))
            }));
        }
    }
}

/// Whether a haproxy is at a limit of its own, apart from its servers' queues.
pub(super) fn is_full(haproxy: &Stats) -> bool {
    limits(haproxy).iter().any(|limit| limit.queued == 0)
}

/// The limits that a haproxy has reached. The global one explains all others.
fn limits(haproxy: &Stats) -> Vec<Saturated> {
    let full = |used: u64, limit: u64| limit > 0 && used >= limit;
    if full(haproxy.connections, haproxy.limit) {
        let (sessions, limit) = (haproxy.connections, haproxy.limit);
        return vec![Saturated { sessions, limit, queued: 0, proxy: None }];
    }
    let at_limit = haproxy.proxies.iter().filter_map(|proxy| {
        let is_frontend = proxy.name.starts_with("frontend") && full(proxy.sessions, proxy.limit);
        let queued = if is_frontend { 0 } else { proxy.queued };
        (is_frontend || queued > 0).then(|| Saturated {
            sessions: proxy.sessions,
            limit: proxy.limit,
            queued,
            proxy: Some(proxy.name.clone()),
        })
    });
    at_limit.collect()
}

/// Finds processes that the kernel wakes for listeners that they have closed.
pub(super) fn ghosts(look: &Look, before: Option<&Look>, found: &mut Vec<Finding>) {
    for process in look.processes.values() {
        let registrations = &process.activity.registrations;
        let ghost = |socket: &&Socket| {
            registrations.iter().any(|one| one.inode == socket.inode && !one.live && one.input)
        };
        if registrations.iter().all(|one| one.live) {
            continue;
        }
        let sockets: Vec<&Socket> = look.sockets.iter().filter(ghost).collect();
        let Some(socket) = sockets.first() else {
            continue;
        };
        let processor_percent = look.processor_percent(before, process);
        let burns = processor_percent.is_some_and(|percent| percent >= BURNS);
        let severity = if burns { Severity::Error } else { Severity::Warning };
        let memory = process.usage.memory;
        let ghost = Ghost { listeners: sockets.len(), processor_percent, memory };
        let finding = Finding::on(look, socket, severity, Condition::Ghost(ghost));
        found.push(finding.caused_by([process]).of(look.service_of([process.pid].iter())));
    }
}

/// Finds generations that only drain.
pub(super) fn lingering(look: &Look, found: &mut Vec<Finding>) {
    let mut services: BTreeMap<(Option<u64>, String), Vec<&Process>> = BTreeMap::new();
    for process in look.processes.values() {
        if let Some(service) = drains(look, process) {
            services.entry((process.network, service)).or_default().push(process);
        }
    }
    for ((network, service), mut processes) in services {
        processes.sort_by_key(|process| process.started);
        let age = processes.first().map(|oldest| look.age(oldest)).unwrap_or_default();
        let many = processes.len() > MANY || age > OLD;
        let lingering = Lingering {
            generations: processes.len(),
            age,
            connections: 0,
            memory: processes.iter().map(|process| process.usage.memory).sum(),
            kept_by: None,
        };
        let severity = if many { Severity::Warning } else { Severity::Note };
        let condition = Condition::Lingering(lingering);
        let finding = Finding::at(look.network_name(network), severity, condition);
        found.push(finding.caused_by(processes).of(Some(service)));
    }
}

/// Finds draining generations that answer a large share of their service's traffic.
pub(super) fn answering(look: &Look, found: &mut Vec<Finding>) {
    let told = look.answers.iter().filter_map(|one| Some((one, one.told.as_ref().ok()?)));
    for (Answers { service, .. }, told) in told {
        let (unit, answered, all) = told.lately.draining();
        let few = match unit {
            Unit::Bytes => FEW_BYTES,
            Unit::Requests => FEW_REQUESTS,
        };
        let percent = percent(answered, all);
        if told.pids.is_empty() || answered < few || percent < SMALL {
            continue;
        }
        let (seconds, connections) = (told.lately.seconds, told.connections);
        let answering = Answering { percent, unit, answered, all, seconds, connections };
        let processes = look.processes_of(&told.pids);
        let network = processes.first().and_then(|process| process.network);
        let condition = Condition::Answering(answering);
        let finding = Finding::at(look.network_name(network), Severity::Warning, condition);
        let finding = Finding { pids: told.pids.clone(), ..finding };
        found.push(finding.of(Some(service.clone())));
    }
}

/// Adds the connections that keep the generations alive, once they are known.
pub(super) fn count(look: &Look, pids: &[i32], lingering: &mut Lingering, details: &Details) {
    let connections = |process: &&Process| {
        details.connections.get(&process.pid).map_or(process.usage.sockets, |known| known.count)
    };
    lingering.connections = look.processes_of(pids).iter().map(connections).sum();
    let oldest = pids.first().and_then(|oldest| details.connections.get(oldest));
    lingering.kept_by = oldest.and_then(|known| known.oldest.clone());
}

/// The service of a draining process: by the broker's report, by haproxy's report, or a haproxy
/// without any listener beside a younger one that has some.
fn drains(look: &Look, process: &Process) -> Option<String> {
    if let Some((service, known)) = look.generation(process.pid) {
        return (known.state == State::Draining).then(|| service.to_owned());
    }
    if look.haproxies.iter().any(|one| one.pid == process.pid && one.stopping) {
        return Some(process.program.clone());
    }
    if !process.is_haproxy() || process.usage.sockets == 0 {
        return None;
    }
    let listens = |process: &Process| {
        look.sockets.iter().any(|socket| {
            socket.mode == Mode::Listening
                && matches!(socket.address, Address::Tcp(_))
                && process.holds(socket.inode)
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
    let pairs = process.command.iter().zip(process.command.iter().skip(1));
    pairs.filter(|(word, _)| *word == "-f").map(|(_, file)| file)
}
