//! Asks the haproxies of this host for their limits and counts.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bindonce_core::address::Address;
use bindonce_haproxy::names::renamed;
use bindonce_haproxy::stats::{self, Stats};
use bindonce_sys::exchange::exchange;

use crate::facts::{Accepting, Look, Socket, Unseen};

/// Time limits for the answer of one haproxy (one at its limits still answers) and of all together.
const ANSWER: Duration = Duration::from_millis(500);
const ALL: Duration = Duration::from_secs(1);

/// Replaces the temporary name under which haproxy binds a path, which the kernel keeps, by the
/// name that people know.
pub(super) fn names(look: &mut Look) {
    for socket in &mut look.sockets {
        let Address::Unix(path) = &mut socket.address else {
            continue;
        };
        let mut haproxies = look.processes.values().filter(|one| one.is_haproxy());
        let holder = haproxies.find(|process| process.holds(socket.inode));
        if let (Some((name, pid)), Some(holder)) = (renamed(path), holder)
            && i64::from(pid) == i64::from(holder.pid)
        {
            *path = name.to_owned();
        }
    }
}

/// Asks each haproxy that listens on a stats socket for its limits.
pub(super) fn ask(look: &mut Look) {
    let mut asked: HashSet<PathBuf> = HashSet::new();
    let mut left = ALL;
    let (mut silent, mut mute) = (Vec::new(), Vec::new());
    for process in look.processes.values().rev().filter(|process| process.is_haproxy()) {
        // A haproxy that is stopped or paused, or has no such socket, would not answer.
        let answers = |socket: &Socket| {
            socket.address.ip().is_none()
                && process.holds(socket.inode)
                && process.accepting(socket.inode) == Accepting::Yes
        };
        if !look.sockets.iter().any(answers) {
            mute.extend((!process.activity.holds.is_empty()).then_some(process.pid));
            continue;
        }
        let pid = process.pid;
        let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        for socket in stats::sockets_of(&process.command, &directory) {
            if !asked.insert(socket.clone()) {
                continue;
            }
            let (limit, asked) = (ANSWER.min(left), Instant::now());
            let answer = limits(&socket, limit);
            // Whatever took longer than the limit was a stop of this process.
            left -= asked.elapsed().min(limit);
            match answer {
                Ok(stats) => {
                    // Several sockets of one haproxy give the same answer.
                    let told = stats.pid == pid;
                    if look.haproxies.iter().all(|one| one.pid != stats.pid) {
                        look.haproxies.push(stats);
                    }
                    if told {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    silent.push(Unseen::Haproxy { pid, socket, error: error.to_string() });
                }
            }
        }
    }
    look.unseen.extend((!mute.is_empty()).then_some(Unseen::NoStatsSocket(mute)));
    look.unseen.extend(silent);
}

fn limits(socket: &Path, limit: Duration) -> io::Result<Stats> {
    let answer = exchange(socket, stats::QUESTION, stats::LONGEST, limit)?;
    let stats = stats::read(&String::from_utf8_lossy(&answer));
    stats.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
