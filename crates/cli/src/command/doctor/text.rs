//! The report for people: what is wrong first, one screen.

use std::fmt::Write as _;
use std::time::Duration;

use bindonce_core::diagnosis::{Accepting, Finding, Look, Mode, Process, Severity, Socket};
use bindonce_core::text::printable;

use super::target::Target;

/// Findings in full; a screen has an end.
const SHOWN: usize = 6;
/// Processes that a finding shows with their commands.
const CULPRITS: usize = 3;
/// A command line is cut off here.
const WIDE: usize = 100;

/// Everything, as text.
pub(super) fn report(
    look: &Look,
    found: &[Finding],
    target: Option<&Target>,
    spent: Duration,
) -> String {
    let mut text = String::new();
    let (notes, bad): (Vec<&Finding>, Vec<&Finding>) =
        found.iter().partition(|finding| finding.severity == Severity::Note);
    for finding in bad.iter().take(SHOWN) {
        one(&mut text, look, finding);
        text.push('\n');
    }
    if bad.len() > SHOWN {
        line(&mut text, &format!("and {} more: bindonce doctor --json\n", bad.len() - SHOWN));
    }
    if bad.is_empty() {
        line(&mut text, "healthy: nothing found");
    }
    if let Some(target) = target {
        let sockets: Vec<&Socket> = look.sockets.iter().filter(|one| target.has(one)).collect();
        for socket in sockets.iter().take(SHOWN) {
            text.push_str(&describe(look, socket));
        }
        if sockets.len() > SHOWN {
            line(&mut text, &format!("and {} more sockets", sockets.len() - SHOWN));
        }
    }
    for finding in notes.iter().take(SHOWN) {
        line(&mut text, &format!("note: {}: {}", head(finding), finding.summary));
    }
    line(&mut text, &checked(look, spent));
    for unseen in look.unseen.iter().take(SHOWN) {
        line(&mut text, &format!("not seen: {unseen}"));
    }
    text
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// `split 127.0.0.1:80`, with the network namespace where it is another.
fn head(finding: &Finding) -> String {
    let mut head = finding.kind.to_string();
    if let Some(address) = &finding.address {
        // Writing to a String does not fail.
        let _ = write!(head, " {address}");
    }
    match finding.also.as_slice() {
        [] => {}
        [one] => drop(write!(head, " and {one}")),
        more => drop(write!(head, " and {} more addresses", more.len())),
    }
    if let Some(network) = &finding.network {
        let _ = write!(head, " in network namespace {network}");
    }
    head
}

fn one(text: &mut String, look: &Look, finding: &Finding) {
    line(text, &format!("{}: {}", head(finding), finding.summary));
    line(text, &format!("  because  {}", finding.cause));
    for pid in finding.culprits.iter().take(CULPRITS) {
        if let Some(process) = look.processes.get(pid) {
            line(text, &format!("  pid {pid}  {}", command(process)));
        }
    }
    if finding.culprits.len() > CULPRITS {
        line(text, &format!("  and {} more processes", finding.culprits.len() - CULPRITS));
    }
    for remedy in &finding.remedy {
        line(text, &format!("  do       {remedy}"));
    }
}

fn command(process: &Process) -> String {
    let words = process.command.join(" ");
    let command = printable(if words.is_empty() { &process.program } else { &words });
    let mut shown: String = command.chars().take(WIDE).collect();
    if command.chars().count() > WIDE {
        shown.push_str(" ...");
    }
    shown
}

/// A socket with those who hold it, and who of them accepts.
fn describe(look: &Look, socket: &Socket) -> String {
    let state = match socket.mode {
        Mode::Listening => format!(
            "listening, queue {} of {}, {} dropped",
            socket.queue.used, socket.queue.limit, socket.drops
        ),
        Mode::Datagram => format!("datagrams, {} dropped", socket.drops),
        Mode::Bound => "bound, not listening".to_owned(),
    };
    let shared = if socket.reuseport == Some(true) { ", SO_REUSEPORT" } else { "" };
    let mut text = format!("{}  {state}{shared}, inode {}\n", socket.address, socket.inode);
    for process in look.holders(socket.inode) {
        let does = match process.accepting(socket.inode) {
            Accepting::Yes => "accepts",
            Accepting::Stopped => "is stopped",
            Accepting::NotAsking => "holds it, does not accept",
            Accepting::Unknown => "holds it",
        };
        line(&mut text, &format!("  pid {} {does}: {}", process.pid, command(process)));
    }
    text
}

fn checked(look: &Look, spent: Duration) -> String {
    let mut addresses: Vec<_> =
        look.sockets.iter().map(|one| (one.network, &one.address)).collect();
    let sockets = addresses.len();
    addresses.sort_unstable();
    addresses.dedup();
    let holders = look.processes.values().filter(|process| !process.holds.is_empty()).count();
    format!(
        "checked {}, {}, {} that hold{} them, {}, {} of haproxy, {}; in {} ms",
        count(addresses.len(), "address", "addresses"),
        count(sockets, "socket", "sockets"),
        count(holders, "process", "processes"),
        if holders == 1 { "s" } else { "" },
        count(look.networks.len(), "network namespace", "network namespaces"),
        count(look.haproxies.len(), "stats socket", "stats sockets"),
        if look.broker.is_some() { "the broker" } else { "no broker" },
        spent.as_millis(),
    )
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
