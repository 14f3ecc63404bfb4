//! The process tree of a program: the process that was started, and everything that it started.
//!
//! A process belongs to the tree if it descends from the first process, or is in the process group
//! or session that the first process leads ([`crate::spawn`] makes it a leader). So a worker whose
//! parent has died is found too. A process that has left group and session *and* lost its parent is
//! not found. Each look for the members reads /proc from end to end. A process is signalled only if
//! it is still the one that was found.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::{Pidfd, Stat, numbered};

/// How many passes [`kill`] makes at most, to find processes created meanwhile.
const PASSES: usize = 16;

/// A process that descends from the first one by more steps does not count as part of the tree.
const ANCESTORS: usize = 256;

/// The pids of the live processes of this tree, the leader first.
pub fn members(leader: i32) -> Vec<i32> {
    find(leader).iter().map(|stat| stat.pid).collect()
}

/// The processor time used by the live processes of this tree.
pub fn processor(leader: i32) -> Duration {
    find(leader).iter().map(|stat| stat.processor).sum()
}

/// Whether a process belongs to this tree, itself or through an ancestor. Reads only the process
/// and its ancestors, not all of /proc.
pub fn has(leader: i32, pid: i32) -> bool {
    descends(leader, pid, Stat::of)
}

fn descends(leader: i32, pid: i32, stat: impl Fn(i32) -> Option<Stat>) -> bool {
    let mut next = pid;
    for _ in 0..ANCESTORS {
        let Some(stat) = stat(next).filter(|stat| !stat.has_ended()) else { return false };
        if is_first(leader, &stat) {
            return true;
        }
        next = stat.parent;
    }
    false
}

/// Sends a signal to every live process of the tree; returns how many received it.
pub fn signal(leader: i32, signal: Signal) -> usize {
    find(leader).iter().filter(|member| send(member, signal)).count()
}

/// The same, to all processes but the leader.
pub fn signal_others(leader: i32, signal: Signal) {
    find(leader).iter().filter(|member| member.pid != leader).for_each(|member| {
        send(member, signal);
    });
}

/// Kills the tree, including processes created meanwhile. Returns how many processes were killed.
pub fn kill(leader: i32) -> usize {
    let mut done = BTreeSet::new();
    // fork(2) fails in a process that has SIGKILL: the tree is complete when a pass finds nothing
    // new.
    for _ in 0..PASSES {
        let found = find(leader);
        let new: Vec<_> =
            found.iter().filter(|stat| done.insert((stat.pid, stat.start_time))).collect();
        if new.is_empty() {
            break;
        }
        for member in new {
            send(member, Signal::SIGKILL);
        }
    }
    done.len()
}

/// Stops (SIGSTOP) a tree, including processes created meanwhile.
///
/// SIGSTOP takes effect when its process is next scheduled. Until then the process can complete a
/// fork(2) that has begun, and the child does not have the signal. So the tree has stopped once
/// every known process has stopped and another pass finds no new one.
#[derive(Debug)]
pub struct Stopping {
    leader: i32,
    /// The pid and the start time of each process that got the signal.
    sent: Vec<(i32, u64)>,
    complete: bool,
}

impl Stopping {
    /// For the tree that this process leads. Sends nothing yet.
    pub fn of(leader: i32) -> Self {
        Self { leader, sent: Vec::new(), complete: false }
    }

    /// Sends SIGSTOP to each process that has not got it yet; true once the whole tree has stopped.
    /// Call it again until then. Does not wait.
    pub fn step(&mut self) -> bool {
        if self.complete || self.sent.iter().any(runs) {
            return self.complete;
        }
        let mut found = find(self.leader);
        found.retain(|stat| !self.sent.contains(&(stat.pid, stat.start_time)));
        self.complete = found.is_empty();
        for member in found {
            send(&member, Signal::SIGSTOP);
            self.sent.push((member.pid, member.start_time));
        }
        self.complete
    }
}

/// Whether a process still has a running thread; false if it is no longer the process that was
/// found.
fn runs((pid, start_time): &(i32, u64)) -> bool {
    let stands = |stat: Stat| stat.is_stopped() || stat.has_ended();
    let Some(stat) = Stat::of(*pid).filter(|stat| stat.start_time == *start_time) else {
        return false;
    };
    if stat.threads < 2 {
        return !stands(stat);
    }
    let threads = numbered(Path::new(&format!("/proc/{pid}/task"))).unwrap_or_default();
    threads.into_iter().filter_map(|tid| Stat::of_thread(*pid, tid)).any(|stat| !stands(stat))
}

/// Kills the rest of a tree whose leader has ended. The leader is not reaped yet, or was started at
/// `start_time`. Returns how many processes were killed.
pub fn kill_orphans(leader: i32, start_time: u64) -> usize {
    // Another process may have the pid by now, and lead a group with this number.
    match Stat::of(leader) {
        Some(stat) if stat.start_time != start_time => 0,
        _ => kill(leader),
    }
}

fn send(member: &Stat, signal: Signal) -> bool {
    // The descriptor is opened first: the process that it names cannot change during the
    // comparison.
    let Ok(pidfd) = Pidfd::open(member.pid) else { return false };
    let same = Stat::of(member.pid).is_some_and(|now| now.start_time == member.start_time);
    // A failure means that the process has ended meanwhile.
    same && pidfd.send(signal).is_ok()
}

fn find(leader: i32) -> Vec<Stat> {
    let pids = numbered(Path::new("/proc")).unwrap_or_default().into_iter();
    of(leader, &pids.filter_map(Stat::of).collect::<Vec<_>>())
}

/// Whether a process is the leader, or in the leader's group or session.
fn is_first(leader: i32, stat: &Stat) -> bool {
    stat.pid == leader || stat.group == leader || stat.session == leader
}

/// The members of the tree among these processes.
fn of(leader: i32, all: &[Stat]) -> Vec<Stat> {
    let mut members: Vec<Stat> = Vec::new();
    let mut pids = BTreeSet::from([leader]);
    loop {
        let belongs = |stat: &&Stat| is_first(leader, stat) || pids.contains(&stat.parent);
        // A process that has ended has no children or descriptors any more.
        let new: Vec<Stat> = all
            .iter()
            .filter(|stat| !stat.has_ended() && !members.contains(stat))
            .filter(belongs)
            .cloned()
            .collect();
        if new.is_empty() {
            break;
        }
        pids.extend(new.iter().map(|stat| stat.pid));
        members.extend(new);
    }
    members.sort_unstable_by_key(|stat| (stat.pid != leader, stat.pid));
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: i32, parent: i32, group: i32, session: i32) -> Stat {
        let text =
            format!("{pid} (a) S {parent} {group} {session} 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 1 0");
        Stat::read(pid, &text).expect("a process")
    }

    #[test]
    fn whatever_has_come_from_the_first_one_belongs_to_it() {
        let all = [
            stat(1, 0, 1, 1),
            stat(50, 1, 50, 50),
            stat(100, 50, 100, 50),
            stat(101, 100, 100, 50),
            // In a group of its own, then in a session of its own, further down.
            stat(102, 101, 102, 50),
            stat(103, 102, 103, 103),
            // Its parent has died: the group identifies it.
            stat(104, 1, 100, 50),
            stat(105, 104, 105, 105),
            // Another child of the supervisor, and an unrelated process.
            stat(200, 50, 200, 50),
            stat(201, 1, 201, 201),
        ];
        let pids = |leader| of(leader, &all).iter().map(|stat| stat.pid).collect::<Vec<_>>();
        assert_eq!(pids(100), [100, 101, 102, 103, 104, 105]);
        assert_eq!(pids(200), [200]);
        assert_eq!(pids(999), [0; 0]);
        let one = |pid| all.iter().find(|stat| stat.pid == pid).cloned();
        for leader in [100, 200, 999] {
            let has = all.iter().map(|stat| stat.pid).filter(|pid| descends(leader, *pid, one));
            assert_eq!(has.collect::<Vec<_>>(), pids(leader));
        }
    }

    #[test]
    fn the_dead_lead_and_do_not_count() {
        let mut dead = stat(100, 50, 100, 50);
        dead.state = 'Z';
        let all = [dead, stat(101, 1, 100, 50)];
        assert_eq!(of(100, &all), [all[1].clone()]);
    }
}
