//! What the haproxies of this host say of themselves.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bindonce_core::address::Address;
use bindonce_core::diagnosis::{Accepting, Gauge, Haproxy, Look, Proxy, Socket};
use bindonce_haproxy::stats;
use bindonce_sys::survey::Processes;

/// How long one haproxy may take to answer (one that is at its limits still does), and all
/// of them together.
const ANSWER: Duration = Duration::from_millis(500);
const ALL: Duration = Duration::from_secs(1);

/// haproxy binds a path under a temporary name, `PATH.PID.tmp`, and renames it. The kernel
/// tells the first name; people know the other.
pub(super) fn names(look: &mut Look) {
    for socket in &mut look.sockets {
        let Address::Unix(path) = &mut socket.address else {
            continue;
        };
        let mut holders = look.processes.values().filter(|one| one.is_haproxy());
        let holder = holders.find(|process| process.holds.contains(&socket.inode));
        let name = holder.and_then(|one| path.strip_suffix(&format!(".{}.tmp", one.pid)));
        if let Some(name) = name.map(str::to_owned) {
            *path = name;
        }
    }
}

/// Asks each haproxy that listens on a stats socket for its limits.
pub(super) fn ask(look: &mut Look, processes: &Processes) {
    let mut asked: HashSet<PathBuf> = HashSet::new();
    let deadline = Instant::now() + ALL;
    let mut silent = Vec::new();
    let mut mute = Vec::new();
    for seen in processes.all.iter().rev() {
        let Some(process) = look.processes.get(&seen.pid).filter(|one| one.is_haproxy()) else {
            continue;
        };
        // One that is stopped or paused, or has no such socket, would not answer.
        let answers = |socket: &Socket| {
            matches!(socket.address, Address::Unix(_) | Address::Abstract(_))
                && process.holds.contains(&socket.inode)
                && process.accepting(socket.inode) == Accepting::Yes
        };
        if !look.sockets.iter().any(answers) {
            if !process.holds.is_empty() {
                mute.push(seen.pid.to_string());
            }
            continue;
        }
        let directory = std::fs::read_link(format!("/proc/{}/cwd", seen.pid)).unwrap_or_default();
        for path in stats::sockets_of(&seen.command, &directory) {
            if !asked.insert(path.clone()) {
                continue;
            }
            match stats::ask(&path, ANSWER.min(deadline.saturating_duration_since(Instant::now())))
            {
                Ok(said) => look.haproxies.push(haproxy(said)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => silent.push(unanswered(&path, seen.pid, &error)),
            }
        }
    }
    if !mute.is_empty() {
        look.unseen.push(format!(
            "the limits (maxconn, queues) of haproxy pid {}: no stats socket that answers",
            mute.join(", ")
        ));
    }
    look.unseen.extend(silent);
}

fn unanswered(path: &Path, pid: i32, error: &std::io::Error) -> String {
    format!("the limits of haproxy pid {pid}: {}: {error}", path.display())
}

fn haproxy(said: stats::Stats) -> Haproxy {
    Haproxy {
        pid: said.pid,
        stopping: said.stopping,
        connections: Gauge { used: said.connections, limit: said.limit },
        proxies: said
            .proxies
            .into_iter()
            .map(|one| Proxy {
                name: one.name,
                sessions: Gauge { used: one.sessions, limit: one.limit },
                queued: one.queued,
            })
            .collect(),
    }
}
