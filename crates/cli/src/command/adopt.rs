//! `bindonce adopt`: the broker takes over the listening sockets of a running program, without a
//! gap. `bindonce adopt --retire` ends that program once something else serves on them.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use bindonce::{Claim, Client, Give, ListenerInfo, State};
use bindonce_core::adoption::{self, Plan};
use bindonce_core::duration;
use bindonce_core::listener::{ListenSpec, Listener};
use bindonce_core::text::count;
use bindonce_supervisor::adopt::{self, Error, Migration, Retired, Running, Served};
use bindonce_sys::process;

use crate::globals::Globals;
use crate::output;

/// How long haproxy may take to hand its sockets over.
const HANDOVER: Duration = Duration::from_secs(5);

const HELP: &str = "\
Examples:
  bindonce adopt --dry-run --stats-socket /run/haproxy/admin.sock
      What would be taken over, and what other processes could still join
  bindonce adopt --stats-socket /run/haproxy/admin.sock
      The broker holds the sockets; haproxy keeps accepting
  bindonce adopt --pid 812 web=0.0.0.0:80
      One listener of a program, with a name
  bindonce adopt --retire --pid 812
      Ends this haproxy once another process serves on the same sockets

Exit codes:
  0  Done; with --dry-run: it can be done
  1  Not done, or another socket still listens after --retire; the message says what to do
  2  Wrong usage";

/// Take over the listening sockets of a running haproxy or other program
///
/// The program keeps accepting; no connection is refused or lost. Without addresses, adopt takes the
/// listeners that `bindonce run` would claim for haproxy's configuration. Then start the next haproxy with
/// `bindonce run`, and end the old one with --retire.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Get the sockets from haproxy's stats socket (level admin, expose-fd listeners)
    #[arg(long, value_name = "PATH", required_unless_present = "pid", conflicts_with = "pid")]
    stats_socket: Option<PathBuf>,
    /// Take the sockets from this process and its children; needs permission to trace the process
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// Show what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// End the adopted haproxy: prove that it has stopped accepting, and let it finish its connections
    #[arg(long, requires = "pid", conflicts_with_all = ["listen", "command"])]
    retire: bool,
    /// With --retire: how long haproxy may take to stop accepting
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse, requires = "retire")]
    retire_timeout: Duration,
    /// With --retire: continue even if connections in the accept queues of haproxy's own sockets will be reset
    #[arg(long, requires = "retire")]
    lossy: bool,
    /// The listeners to take, with their names here
    #[arg(value_name = "[NAME=]ADDR[,OPT]...")]
    listen: Vec<ListenSpec>,
    /// The command of that haproxy, if it cannot be read from /proc: -- haproxy -f FILE
    #[arg(last = true, value_name = "HAPROXY")]
    command: Vec<OsString>,
}

/// Adopts, or retires.
pub(crate) fn run(args: &Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    match args.pid {
        Some(pid) if args.retire => retire(pid, args, globals),
        _ => take(args, globals),
    }
}

fn take(args: &Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let running = match (&args.stats_socket, args.pid) {
        (Some(path), _) => Running::at_stats_socket(path, HANDOVER)?,
        (None, Some(pid)) => Running::of_process(pid)?,
        (None, None) => bail!("give --stats-socket or --pid"),
    };
    let command = match args.command.as_slice() {
        [] => adopt::command_of(running.pid),
        given => Some(given.to_vec()),
    };
    let wanted: Option<Vec<Listener>> = match (args.listen.as_slice(), &command) {
        ([], Some(command)) => Some(adopt::configured(running.pid, command)?),
        ([], None) => None,
        (given, _) => {
            Some(given.iter().flat_map(|spec| spec.expand().collect::<Vec<_>>()).collect())
        }
    };
    let plan = adoption::plan(&running.candidates(), wanted.as_deref());
    if plan.taken.is_empty() {
        let name = process::name(running.pid).unwrap_or_default();
        bail!(
            "process {} ({name}) has no listening socket that is asked for\n{}",
            running.pid,
            left(&running, &plan)
        );
    }
    let held = if args.dry_run { Vec::new() } else { store(&running, &plan, globals)? };
    if args.json {
        output::print_json(&json(&running, &plan, args, &held))?;
    } else {
        output::print(&text(&running, &plan, args, globals, command.as_deref()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives the sockets to the broker, and returns their names.
fn store(running: &Running, plan: &Plan, globals: &Globals) -> anyhow::Result<Vec<String>> {
    let gives: Vec<Give<'_>> = plan
        .taken
        .iter()
        .filter_map(|taken| {
            let socket = running.sockets.get(taken.index)?;
            Some(Give::new(taken.listener.to_string(), socket.fd.as_fd()))
        })
        .collect();
    Ok(Client::connect(&globals.socket_path())?.store(&gives)?)
}

fn text(
    running: &Running,
    plan: &Plan,
    args: &Args,
    globals: &Globals,
    command: Option<&[OsString]>,
) -> String {
    let pid = running.pid;
    let name = if command.is_some() {
        "haproxy".to_owned()
    } else {
        process::name(pid).unwrap_or_default()
    };
    let done = if args.dry_run { "would adopt" } else { "adopted" };
    let mut text = format!("{done} from {name} pid {pid}:\n");
    let (mut joinable, mut siblings) = (0, 0);
    for taken in &plan.taken {
        let Some(socket) = running.sockets.get(taken.index) else { continue };
        let mut notes = Vec::new();
        if !socket.exclusive {
            joinable += 1;
            notes.push("joinable".to_owned());
        }
        if !taken.siblings.is_empty() {
            siblings += taken.siblings.len();
            let further = count(taken.siblings.len(), "further socket");
            notes.push(format!("{further} of pid {pid} on this address"));
        }
        let notes =
            if notes.is_empty() { String::new() } else { format!("  ({})", notes.join("; ")) };
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {}  inode {}{notes}", taken.listener, socket.candidate.inode);
    }
    text.push_str(&left(running, plan));
    if joinable > 0 {
        text.push_str(
            "joinable: SO_REUSEPORT was set when it was bound, and cannot be taken back. Another process of\n\
             \x20 the same user can still bind beside it, until the listener is released and bound again.\n",
        );
    }
    if siblings > 0 {
        text.push_str(
            "further sockets: one socket serves an address from now on; the others stay open in that process\n\
             \x20 and close with it. --retire has the kernel move the connections in their accept queues.\n",
        );
    }
    if let Some(command) = command.filter(|_| !args.dry_run) {
        let words: Vec<_> = command.iter().map(|word| quoted(word)).collect();
        let socket = globals.socket.as_ref().map(|path| quoted(path.as_os_str()));
        let socket = socket.map(|path| format!("--socket {path} ")).unwrap_or_default();
        let master = adopt::master_of(pid);
        let place = args.command.is_empty().then(|| adopt::needs_directory(pid, command)).flatten();
        let place = place.map(|path| format!("  cd {}\n", quoted(path.as_os_str())));
        let _ = write!(
            text,
            "next:\n{}  bindonce run {socket}-- {}\n  bindonce adopt {socket}--pid {master} --retire\n",
            place.unwrap_or_default(),
            words.join(" ")
        );
        if let Some(unit) = adopt::belongs_to(master) {
            let _ = writeln!(
                text,
                "pid {master} belongs to {unit}: with Restart= systemd starts it again when it ends; give the\n  \
                 unit Restart=no first (docs/migrating.md)"
            );
        }
    }
    text
}

/// A word as a shell reads it.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What was not taken, one line each.
fn left(running: &Running, plan: &Plan) -> String {
    let mut text = String::new();
    for (index, reason) in &plan.left {
        let Some(socket) = running.sockets.get(*index) else { continue };
        let _ = writeln!(text, "  {}  not taken: {reason}", socket.candidate.listener);
    }
    for listener in &plan.missing {
        let _ = writeln!(text, "  {listener}  not there: it does not listen on it");
    }
    text
}

fn json(running: &Running, plan: &Plan, args: &Args, held: &[String]) -> serde_json::Value {
    let inode = |index: &usize| running.sockets.get(*index).map(|one| one.candidate.inode);
    let adopted = plan.taken.iter().enumerate().filter_map(|(number, taken)| {
        let socket = running.sockets.get(taken.index)?;
        Some(serde_json::json!({
            "name": held.get(number),
            "listen": taken.listener.to_string(),
            "inode": socket.candidate.inode,
            "exclusive": socket.exclusive,
            "siblings": taken.siblings.iter().filter_map(inode).collect::<Vec<_>>(),
        }))
    });
    let left = plan.left.iter().filter_map(|(index, reason)| {
        let one = &running.sockets.get(*index)?.candidate;
        let address = one.listener.to_string();
        Some(serde_json::json!({ "address": address, "inode": one.inode, "reason": reason.to_string() }))
    });
    serde_json::json!({
        "pid": running.pid,
        "retire": adopt::master_of(running.pid),
        "dry_run": args.dry_run,
        "adopted": adopted.collect::<Vec<_>>(),
        "left": left.collect::<Vec<_>>(),
        "missing": plan.missing.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// Ends a haproxy whose listeners another process serves.
fn retire(pid: i32, args: &Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let mut client = Client::connect(&globals.socket_path())?;
    let status = client.status()?;
    let family = process::family(pid);
    let ours = status.services.iter().flat_map(|service| {
        service.generations.iter().map(move |generation| (&service.name, generation))
    });
    for (service, generation) in ours {
        if family.iter().any(|member| u32::try_from(*member) == Ok(generation.pid)) {
            bail!(
                "process {pid} is generation {} of {service}, which `bindonce reload --name {service}` replaces",
                generation.generation
            );
        }
    }
    adopt::expect_haproxy(pid)?;
    // The listeners of this process that the broker holds must be served by another process.
    let own = adopt::listening_of(&family)?;
    let inodes: HashSet<u64> = own.iter().map(|socket| socket.inode).collect();
    let addresses: HashSet<String> = own.iter().map(|socket| socket.address.to_string()).collect();
    let its = |one: &&ListenerInfo| inodes.contains(&one.inode) || addresses.contains(&one.bound);
    let mut names = Vec::new();
    for listener in status.listeners.iter().filter(its) {
        if !is_served(listener, &family) {
            let address = listener.bound.parse()?;
            return Err(Error::NotServed { address }.into());
        }
        names.push(Claim::listen(listener.name.clone()).tentative());
    }
    if names.is_empty() {
        bail!("the broker holds none of the listeners of process {pid}: adopt them first");
    }
    let leases = client.claim(&names)?;
    let served: Vec<Served<'_>> = leases
        .iter()
        .map(|lease| {
            Ok(Served { address: lease.bound().parse()?, inode: lease.inode(), fd: lease.as_fd() })
        })
        .collect::<anyhow::Result<_>>()?;
    let retired = match args.dry_run {
        true => adopt::would_retire(pid, &served, args.lossy)?,
        false => adopt::retire(pid, &served, args.lossy, args.retire_timeout)?,
    };
    if args.json {
        output::print_json(&retired_json(&retired, args.dry_run))?;
    } else {
        output::print(&retired_text(pid, &retired, args.dry_run))?;
    }
    Ok(if retired.others.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether a process outside the family holds the listener, and has joined as serving.
fn is_served(listener: &ListenerInfo, family: &[i32]) -> bool {
    listener.holders.iter().any(|holder| {
        holder.state == Some(State::Serving)
            && i32::try_from(holder.pid).is_ok_and(|pid| !family.contains(&pid))
    })
}

fn retired_text(pid: i32, retired: &Retired, dry_run: bool) -> String {
    let (mut text, alone, closed, were) = match dry_run {
        true => (
            format!("would tell pid {pid} to stop accepting\n"),
            "belongs to it alone, and would be closed",
            "would close",
            "would be",
        ),
        false => (
            format!("pid {pid} has stopped accepting; it finishes its connections and ends\n"),
            "belonged to it alone, and is closed",
            "closed",
            "were",
        ),
    };
    for (address, inode) in &retired.addresses {
        // Writing to a String does not fail.
        let _ = match inode {
            Some(inode) => writeln!(text, "  {address}  is served by inode {inode}"),
            None => writeln!(text, "  {address}  {alone}"),
        };
    }
    let further = count(retired.siblings, "further socket");
    let moved = match retired.migration {
        Migration::NotNeeded => None,
        Migration::Moved => Some("moved"),
        Migration::Reset => Some("reset"),
    };
    if let Some(moved) = moved {
        let _ = writeln!(
            text,
            "{further} of pid {pid} {closed} with it; connections in their accept queues {were} {moved}"
        );
    }
    if let Some(error) = &retired.ghosts_left {
        let _ = writeln!(
            text,
            "until it ends, every connection wakes it, and it may use a whole core: {error}"
        );
    }
    for (address, pids) in &retired.others {
        let _ = writeln!(
            text,
            "another socket still listens on {address}, of pid {pids:?}: `bindonce doctor {address}` tells more"
        );
    }
    text
}

fn retired_json(retired: &Retired, dry_run: bool) -> serde_json::Value {
    let addresses = retired.addresses.iter().map(
        |(address, inode)| serde_json::json!({ "address": address.to_string(), "inode": inode }),
    );
    let others = retired
        .others
        .iter()
        .map(|(address, pids)| serde_json::json!({ "address": address.to_string(), "pids": pids }));
    serde_json::json!({
        "dry_run": dry_run,
        "retired": retired.pids,
        "addresses": addresses.collect::<Vec<_>>(),
        "closed_beside": retired.siblings,
        "migration": match retired.migration {
            Migration::NotNeeded => "not needed",
            Migration::Moved => "moved",
            Migration::Reset => "reset",
        },
        "ghosts_removed": retired.ghosts,
        "ghosts_left": retired.ghosts_left.as_ref().map(ToString::to_string),
        "others": others.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_haproxy_that_was_retired() {
        let address = |text: &str| text.parse().expect("an address");
        let retired = Retired {
            pids: vec![812],
            addresses: vec![(address("0.0.0.0:80"), Some(4711)), (address("127.0.0.1:9000"), None)],
            siblings: 3,
            migration: Migration::Moved,
            ghosts: 1,
            ghosts_left: None,
            others: vec![(address("0.0.0.0:80"), vec![7, 8])],
        };
        insta::assert_snapshot!("retired", retired_text(812, &retired, false));
        let retired = Retired { migration: Migration::Reset, others: Vec::new(), ..retired };
        insta::assert_snapshot!("retired-with-losses", retired_text(812, &retired, false));
        assert_eq!(
            retired_text(812, &retired, true),
            "would tell pid 812 to stop accepting\n\
             \x20 0.0.0.0:80  is served by inode 4711\n\
             \x20 127.0.0.1:9000  belongs to it alone, and would be closed\n\
             3 further sockets of pid 812 would close with it; \
             connections in their accept queues would be reset\n"
        );
        assert_eq!(retired_json(&retired, true)["dry_run"], true);
    }

    #[test]
    fn a_shell_reads_each_word_of_what_comes_next_as_it_is() {
        for (word, written) in [
            ("/etc/haproxy/a-1.cfg", "/etc/haproxy/a-1.cfg"),
            ("", "''"),
            ("a b", "'a b'"),
            ("$(it)'s", r"'$(it)'\''s'"),
        ] {
            assert_eq!(quoted(OsStr::new(word)), written);
        }
    }
}
