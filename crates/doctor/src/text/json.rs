//! The report for programs: findings, and all facts. New members may be added; those here, in
//! [`crate::facts`] and in `diagnosis/condition.rs` keep their names and meanings.

use serde::Serialize;
use serde_json::{Value, json};

use super::screen::unseen;
use super::words::{Words, words};
use crate::diagnosis::{Finding as Found, Kind};
use crate::examination::Examination;
use crate::facts::{Look, Process as Seen, Socket as Bound};

/// A finding, with its text.
#[derive(Serialize)]
struct Finding<'a> {
    kind: Kind,
    #[serde(flatten)]
    finding: &'a Found,
    commands: Vec<String>,
    #[serde(flatten)]
    words: Words,
}

/// A socket, with its name and the processes that hold it.
#[derive(Serialize)]
struct Socket<'a> {
    #[serde(flatten)]
    socket: &'a Bound,
    name: Option<&'a str>,
    holders: Vec<Value>,
}

/// A process, with its generation.
#[derive(Serialize)]
struct Process<'a> {
    #[serde(flatten)]
    process: &'a Seen,
    service: Option<&'a str>,
    generation: Option<u64>,
}

/// The whole report, as one object.
pub fn json(examination: &Examination) -> Value {
    let Examination { look, found, target, spent } = examination;
    let meant = |socket: &&Bound| target.as_ref().is_none_or(|target| target.has(socket));
    let sockets: Vec<&Bound> = look.sockets.iter().filter(meant).collect();
    let holds = |process: &&Seen| {
        target.is_none() || sockets.iter().any(|socket| process.holds(socket.inode))
    };
    let processes = look.processes.values().filter(holds);
    json!({
        "healthy": examination.is_healthy(),
        "at": look.at.to_string(),
        "milliseconds": u64::try_from(spent.as_millis()).unwrap_or(u64::MAX),
        "findings": found.iter().map(|one| finding(look, one)).collect::<Vec<_>>(),
        "sockets": sockets.iter().map(|one| socket(look, one)).collect::<Vec<_>>(),
        "processes": processes.map(|one| process(look, one)).collect::<Vec<_>>(),
        "networks": look.networks,
        "broker": look.broker.as_ref().map(|broker| broker.status.broker.pid),
        "unseen": look.unseen.iter().map(unseen).collect::<Vec<_>>(),
    })
}

fn finding<'a>(look: &Look, finding: &'a Found) -> Finding<'a> {
    Finding {
        kind: finding.kind(),
        finding,
        commands: look.processes_of(&finding.pids).iter().map(|one| one.command_line()).collect(),
        words: words(look, finding),
    }
}

fn socket<'a>(look: &'a Look, socket: &'a Bound) -> Socket<'a> {
    let holder =
        |process: &Seen| json!({ "pid": process.pid, "accepts": process.accepting(socket.inode) });
    Socket {
        socket,
        name: look.listener(socket.inode).map(|listener| listener.name.as_str()),
        holders: look.holders(socket.inode).map(holder).collect(),
    }
}

fn process<'a>(look: &'a Look, process: &'a Seen) -> Process<'a> {
    let known = look.generation(process.pid);
    Process {
        process,
        service: known.map(|(service, _)| service),
        generation: known.map(|(_, known)| known.generation),
    }
}
