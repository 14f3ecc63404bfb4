//! The report for programs: findings, and everything that was seen. Members may be
//! added; those that are here keep their names and meanings.

use std::time::Duration;

use bindonce_core::diagnosis::{Accepting, Finding, Look, Mode, Process, Severity, Socket, Value};
use bindonce_core::text::printable;
use serde_json::{Map, json};

use super::target::Target;

/// Everything, as one object.
pub(super) fn report(
    look: &Look,
    found: &[Finding],
    target: Option<&Target>,
    spent: Duration,
) -> serde_json::Value {
    let meant = |socket: &&Socket| target.is_none_or(|target| target.has(socket));
    let sockets: Vec<&Socket> = look.sockets.iter().filter(meant).collect();
    let holds = |process: &&Process| {
        target.is_none() || sockets.iter().any(|one| process.holds.contains(&one.inode))
    };
    json!({
        "healthy": found.iter().all(|finding| finding.severity == Severity::Note),
        "at": look.at.to_string(),
        "milliseconds": u64::try_from(spent.as_millis()).unwrap_or(u64::MAX),
        "findings": found.iter().map(|one| finding(look, one)).collect::<Vec<_>>(),
        "sockets": sockets.iter().map(|one| socket(look, one)).collect::<Vec<_>>(),
        "processes": look.processes.values().filter(holds).map(|one| process(look, one)).collect::<Vec<_>>(),
        "networks": look.networks.iter().map(|one| json!({
            "id": one.id, "name": one.name, "somaxconn": one.somaxconn,
            "listen_overflows": one.overflows, "listen_drops": one.drops,
        })).collect::<Vec<_>>(),
        "broker": look.broker,
        "unseen": look.unseen,
    })
}

fn finding(look: &Look, one: &Finding) -> serde_json::Value {
    let evidence = |(name, value): &(&'static str, Value)| {
        let value = match value {
            Value::Count(count) => json!(count),
            Value::Decimal(number) => json!(number),
            Value::Text(text) => json!(text),
        };
        ((*name).to_owned(), value)
    };
    // A name that comes several times (a share for each process) becomes a list.
    let mut numbers = Map::new();
    for (name, value) in one.evidence.iter().map(evidence) {
        match numbers.get_mut(&name) {
            None => drop(numbers.insert(name, value)),
            Some(serde_json::Value::Array(list)) => list.push(value),
            Some(first) => *first = json!([first.clone(), value]),
        }
    }
    json!({
        "kind": one.kind.to_string(),
        "severity": one.severity.to_string(),
        "network": one.network,
        "address": one.address.as_ref().map(ToString::to_string),
        "also": one.also.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "service": one.service,
        "pids": one.culprits,
        "commands": one.culprits.iter().filter_map(|pid| Some(command(look.processes.get(pid)?))).collect::<Vec<_>>(),
        "summary": one.summary,
        "evidence": numbers,
        "cause": one.cause,
        "remedy": one.remedy,
    })
}

fn socket(look: &Look, one: &Socket) -> serde_json::Value {
    let mode = match one.mode {
        Mode::Listening => "listening",
        Mode::Datagram => "datagram",
        Mode::Bound => "bound",
    };
    let holder = |process: &Process| {
        let accepts = match process.accepting(one.inode) {
            Accepting::Yes => "yes",
            Accepting::Stopped => "stopped",
            Accepting::NotAsking => "no",
            Accepting::Unknown => "unknown",
        };
        json!({"pid": process.pid, "accepts": accepts})
    };
    json!({
        "network": one.network,
        "address": one.address.to_string(),
        "interface": one.interface,
        "inode": one.inode,
        "cookie": one.cookie,
        "state": mode,
        "queue": one.queue.used,
        "queue_limit": one.queue.limit,
        "drops": one.drops,
        "reuseport": one.reuseport,
        "name": look.held.iter().find(|held| held.inode == one.inode).map(|held| &held.name),
        "holders": look.holders(one.inode).map(holder).collect::<Vec<_>>(),
    })
}

/// The command line, which a reader may print as it is.
fn command(process: &Process) -> String {
    printable(&process.command.join(" ")).into_owned()
}

fn process(look: &Look, one: &Process) -> serde_json::Value {
    let generation = look.generations.iter().find(|known| known.pid == one.pid);
    json!({
        "pid": one.pid,
        "program": one.program,
        "command": command(one),
        "started": one.started.to_string(),
        "state": one.state.to_string(),
        "memory": one.memory,
        "descriptors": one.descriptors.used,
        "descriptor_limit": one.descriptors.limit,
        "service": generation.map(|known| &known.service),
        "generation": generation.map(|known| known.id),
    })
}
