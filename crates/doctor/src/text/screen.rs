//! The report for people: on one screen, the worst findings first.

use std::fmt::Write as _;

use bindonce_core::text::count;

use super::units::pids;
use super::words::words;
use crate::diagnosis::{Finding, Severity};
use crate::examination::Examination;
use crate::facts::{Accepting, Look, Mode, Socket, Unseen};

/// Number of findings shown in full, to fit on a screen.
const SHOWN: usize = 6;
/// Number of processes that a finding shows with their commands.
const COMMANDS: usize = 3;
/// Length in characters at which a command line is cut off.
const WIDE: usize = 100;

/// The whole report, as text.
pub fn screen(examination: &Examination) -> String {
    let Examination { look, found, target, .. } = examination;
    let (notes, bad): (Vec<&Finding>, Vec<&Finding>) =
        found.iter().partition(|finding| finding.severity == Severity::Note);
    let mut text = Lines(String::new());
    for one in bad.iter().take(SHOWN) {
        text.line(finding(look, one));
    }
    if bad.len() > SHOWN {
        text.line(format_args!("and {} more: bindonce doctor --json\n", bad.len() - SHOWN));
    }
    if bad.is_empty() {
        text.line("healthy: nothing found");
    }
    if let Some(target) = target {
        let sockets: Vec<&Socket> = look.sockets.iter().filter(|one| target.has(one)).collect();
        for one in sockets.iter().take(SHOWN) {
            text.0.push_str(&socket(look, one));
        }
        if sockets.len() > SHOWN {
            text.line(format_args!("and {} more sockets", sockets.len() - SHOWN));
        }
    }
    for one in notes.iter().take(SHOWN) {
        text.line(format_args!("note: {}: {}", head(one), words(look, one).summary));
    }
    text.line(checked(examination));
    for one in look.unseen.iter().take(SHOWN) {
        text.line(format_args!("not seen: {}", unseen(one)));
    }
    text.0
}

/// A text made of lines.
struct Lines(String);

impl Lines {
    fn line(&mut self, line: impl std::fmt::Display) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{line}");
    }
}

/// One finding, with its processes and its remedy.
pub(crate) fn finding(look: &Look, finding: &Finding) -> String {
    let words = words(look, finding);
    let mut text = Lines(String::new());
    text.line(format_args!("{}: {}", head(finding), words.summary));
    text.line(format_args!("  because  {}", words.cause));
    for process in look.processes_of(&finding.pids).iter().take(COMMANDS) {
        text.line(format_args!("  pid {}  {}", process.pid, cut_off(&process.command_line())));
    }
    if finding.pids.len() > COMMANDS {
        text.line(format_args!("  and {} more processes", finding.pids.len() - COMMANDS));
    }
    for remedy in &words.remedy {
        text.line(format_args!("  do       {remedy}"));
    }
    text.0
}

/// `split 127.0.0.1:80`, with the network namespace if it is not the observer's own.
fn head(finding: &Finding) -> String {
    let address = finding.address.as_ref().map(|address| format!(" {address}"));
    let also = match finding.also.as_slice() {
        [] => String::new(),
        [one] => format!(" and {one}"),
        more => format!(" and {} more addresses", more.len()),
    };
    let network = finding.network.as_ref().map(|name| format!(" in network namespace {name}"));
    format!(
        "{}{}{also}{}",
        finding.kind(),
        address.unwrap_or_default(),
        network.unwrap_or_default()
    )
}

fn cut_off(command: &str) -> String {
    match command.char_indices().nth(WIDE) {
        Some((end, _)) => format!("{} ...", &command[..end]),
        None => command.to_owned(),
    }
}

/// A socket, its holders, and which of them accept.
fn socket(look: &Look, socket: &Socket) -> String {
    let Socket { address, queue, queue_limit, drops, inode, .. } = socket;
    let state = match socket.mode {
        Mode::Listening => {
            let protocol = if socket.mptcp { ", MPTCP" } else { "" };
            format!("listening{protocol}, queue {queue} of {queue_limit}, {drops} dropped")
        }
        Mode::Datagram => {
            format!("datagrams, {queue} of {queue_limit} bytes wait, {drops} dropped")
        }
        Mode::Bound => "bound, not listening".to_owned(),
    };
    let shared = if socket.reuseport == Some(true) { ", SO_REUSEPORT" } else { "" };
    let mut text = Lines(String::new());
    text.line(format_args!("{address}  {state}{shared}, inode {inode}"));
    for process in look.holders(*inode) {
        let does = match process.accepting(*inode) {
            Accepting::Yes => "accepts",
            Accepting::Stopped => "is stopped",
            Accepting::No => "holds it, does not accept",
            Accepting::Unknown => "holds it",
        };
        let command = cut_off(&process.command_line());
        text.line(format_args!("  pid {} {does}: {command}", process.pid));
    }
    text.0
}

fn checked(examination: &Examination) -> String {
    let Examination { look, spent, .. } = examination;
    let mut addresses: Vec<_> =
        look.sockets.iter().map(|one| (one.network, &one.address)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let holders =
        look.processes.values().filter(|process| !process.activity.holds.is_empty()).count() as u64;
    let processes = match holders {
        1 => "1 process that holds".to_owned(),
        many => format!("{many} processes that hold"),
    };
    format!(
        "checked {}, {}, {processes} them, {}, {} of haproxy, {}; in {} ms",
        count(addresses.len() as u64, "address"),
        count(look.sockets.len() as u64, "socket"),
        count(look.networks.len() as u64, "network namespace"),
        count(look.haproxies.len() as u64, "stats socket"),
        if look.broker.is_some() { "the broker" } else { "no broker" },
        spent.as_millis(),
    )
}

/// A fact that could not be collected, with the reason.
pub(super) fn unseen(unseen: &Unseen) -> String {
    match unseen {
        Unseen::Processes(hidden) => format!(
            "{hidden} processes of other users: which sockets they hold, and whether they accept \
             (run as root)"
        ),
        Unseen::Holders { unheld, all } => format!(
            "who holds {unheld} of {all} sockets: processes of another user or pid namespace, or \
             the kernel"
        ),
        Unseen::Network { name, error } => format!("network namespace {name}: {error}"),
        Unseen::Broker { socket, error } => {
            format!("the state of the broker at {}: {error}", socket.display())
        }
        Unseen::Haproxy { pid, socket, error } => {
            format!("the limits of haproxy pid {pid}: {}: {error}", socket.display())
        }
        Unseen::Answers { service, error } => {
            format!("traffic of the generations of \"{service}\": {error}")
        }
        Unseen::NoStatsSocket(haproxies) => format!(
            "the limits (maxconn, queues) of haproxy pid {}: no stats socket that answers",
            pids(haproxies).replace(' ', ", ")
        ),
    }
}
