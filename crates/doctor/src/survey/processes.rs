//! Finds the relation of every process to a set of sockets, in one pass over /proc.
//!
//! This module only reads, and stops no process. It costs about two microseconds for each open
//! descriptor of the system, and memory only for facts about the requested sockets.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bindonce_core::text::printable;
use bindonce_core::time::Timestamp;
use bindonce_sys::epoll;
use bindonce_sys::process::{self, Stat, numbered};

use super::descriptors::{self, Descriptors, Wanted};
use super::namespaces::Namespaces;
use super::waits;
use crate::facts::{Activity, Process, Usage};

/// Signals that make haproxy stop: SIGUSR1 and SIGTERM.
const STOP: u64 = 1 << (10 - 1) | 1 << (15 - 1);

/// The processes that matter, collected from /proc.
#[derive(Debug, Default)]
pub(super) struct Processes {
    /// Processes that hold or watch one of the sockets, every haproxy, and processes that have
    /// nearly used up their descriptors, by pid.
    pub(super) seen: BTreeMap<i32, Process>,
    /// Number of other users' processes, which do not show their descriptors.
    pub(super) hidden: usize,
    /// Parent and short name of every process.
    family: BTreeMap<i32, (i32, String)>,
}

/// The context for a look at a process.
struct Surroundings<'a> {
    wanted: Wanted<'a>,
    namespaces: &'a Namespaces,
    boot: Timestamp,
}

impl<'a> Surroundings<'a> {
    fn new(inodes: &'a HashSet<u64>, namespaces: &'a Namespaces) -> Self {
        let device = epoll::socket_device().unwrap_or_default();
        let boot = process::boot_time().unwrap_or_default();
        Self { wanted: Wanted { inodes, device }, namespaces, boot }
    }
}

impl Processes {
    /// Looks at every process once, for the sockets with these inodes. A few threads share the
    /// work, most of which the kernel does.
    pub(super) fn survey(inodes: &HashSet<u64>, namespaces: &Namespaces) -> Self {
        const THREADS: usize = 4;
        let surroundings = Surroundings::new(inodes, namespaces);
        let pids = numbered(Path::new("/proc")).unwrap_or_default();
        let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
        let next = AtomicUsize::new(0);
        let part = || {
            let mut found = Self::default();
            // One process at a time, because one can have more to read than all others together.
            while let Some(pid) = pids.get(next.fetch_add(1, Ordering::Relaxed)) {
                found.look_at(*pid, &surroundings);
            }
            found
        };
        let mut found = thread::scope(|scope| {
            // If a thread cannot be started, the others do its part.
            let others: Vec<_> = (1..threads)
                .filter_map(|_| thread::Builder::new().spawn_scoped(scope, part).ok())
                .collect();
            let mut found = part();
            for other in others {
                match other.join() {
                    Ok(part) => {
                        found.seen.extend(part.seen);
                        found.family.extend(part.family);
                        found.hidden += part.hidden;
                    }
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            found
        });
        found.find_roots();
        found
    }

    /// Looks again at some processes and their children, and for the first time at processes that
    /// have started since. A survey takes a while. In that time a socket can pass from a process
    /// that is looked at too late to one that was looked at too early, or that is newer than the
    /// list of processes.
    pub(super) fn see_again(
        &mut self,
        pids: &BTreeSet<i32>,
        inodes: &HashSet<u64>,
        namespaces: &Namespaces,
    ) {
        let surroundings = Surroundings::new(inodes, namespaces);
        let meant = |pid: i32, parent: i32| pids.contains(&pid) || pids.contains(&parent);
        let mut again = numbered(Path::new("/proc")).unwrap_or_default();
        again.retain(|pid| self.family.get(pid).is_none_or(|(parent, _)| meant(*pid, *parent)));
        // A process that has ended no longer holds anything.
        self.seen.retain(|_, process| !meant(process.pid, process.parent));
        for pid in again {
            self.look_at(pid, &surroundings);
        }
        self.find_roots();
    }

    fn look_at(&mut self, pid: i32, surroundings: &Surroundings<'_>) {
        let Some(stat) = Stat::of(pid) else {
            return;
        };
        self.family.insert(pid, (stat.parent, stat.name.clone()));
        // Ended processes and kernel threads have no descriptors.
        if stat.has_ended() || stat.is_of_the_kernel() {
            return;
        }
        let Some(found) = descriptors::read(pid, stat.threads > 1, &surroundings.wanted) else {
            self.hidden += usize::from(process::start_time(pid).is_some());
            return;
        };
        let limit = descriptor_limit(pid);
        if !found.holds.is_empty()
            || !found.registrations.is_empty()
            || limit.is_some_and(|limit| found.count * 10 >= limit * 8)
            || is_haproxy(&stat.name)
        {
            self.seen.insert(pid, describe(&stat, found, limit, surroundings));
        }
    }

    fn find_roots(&mut self) {
        for process in self.seen.values_mut() {
            process.root = root(process.pid, &self.family);
        }
    }
}

/// Whether a name may be haproxy's. The process may have been started through the loader of another
/// system's libraries.
pub(super) fn is_haproxy(name: &str) -> bool {
    name.starts_with("haproxy") || name.starts_with("ld-linux")
}

fn describe(
    stat: &Stat,
    found: Descriptors,
    limit: Option<u64>,
    surroundings: &Surroundings<'_>,
) -> Process {
    let Descriptors { count, sockets, holds, registrations, uring, epoll } = found;
    let pid = stat.pid;
    let blocked = if holds.is_empty() { waits::Waits::default() } else { waits::of(pid) };
    let waited = holds.iter().filter(|(_, number)| blocked.on.contains(number));
    let mut waits: Vec<u64> = waited.map(|(inode, _)| *inode).collect();
    waits.dedup();
    let command = process::command(pid).unwrap_or_default();
    Process {
        pid,
        parent: stat.parent,
        root: pid,
        program: program(&printable(&stat.name), &command),
        command,
        network: surroundings.namespaces.of_process(pid),
        started: Timestamp(surroundings.boot.0 + stat.started().as_millis() as u64),
        state: stat.state,
        stop_pending: pending(pid) & STOP != 0,
        binds_any_port: process::binds_any_port(pid).unwrap_or(true),
        usage: Usage {
            processor: stat.processor,
            memory: process::memory(pid).unwrap_or(0),
            descriptors: count,
            descriptor_limit: limit.unwrap_or(0),
            sockets,
        },
        activity: Activity {
            holds,
            registrations,
            waits,
            all_known: blocked.complete && !uring,
            epoll,
        },
    }
}

fn program(name: &str, command: &[String]) -> String {
    let base = |word: &str| word.rsplit('/').next().unwrap_or(word).to_owned();
    if name.starts_with("ld-linux")
        && let Some(word) = command.iter().find(|word| base(word) == "haproxy")
    {
        return base(word);
    }
    if name.starts_with("haproxy") { "haproxy".to_owned() } else { name.to_owned() }
}

/// The topmost ancestor that runs the same program. Programs that write their role into their name
/// put it after a space or a colon.
fn root(pid: i32, family: &BTreeMap<i32, (i32, String)>) -> i32 {
    let kind = |name: &str| name.split([' ', ':']).next().unwrap_or(name).to_owned();
    let mut root = pid;
    while let Some((parent, name)) = family.get(&root)
        && let Some((_, above)) = family.get(parent)
        && kind(above) == kind(name)
        && *parent != root
    {
        root = *parent;
    }
    root
}

/// The soft limit in the line `Max open files 1024 524288 files` of /proc/PID/limits.
fn descriptor_limit(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Signals pending for the process or its main thread (ShdPnd and SigPnd): bit N-1 for signal N.
fn pending(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let bits = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).ok()
    };
    bits("SigPnd").unwrap_or(0) | bits("ShdPnd").unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd as _, OwnedFd};
    use std::os::unix::fs::MetadataExt as _;

    use rustix::event::epoll;

    use super::*;

    #[test]
    fn workers_belong_to_their_master() {
        let family = BTreeMap::from([
            (1, (0, "init".to_owned())),
            (7, (1, "gunicorn: maste".to_owned())),
            (8, (7, "gunicorn: worke".to_owned())),
            (9, (8, "sh".to_owned())),
        ]);
        assert_eq!([1, 7, 8, 9].map(|pid| root(pid, &family)), [1, 7, 7, 9]);
    }

    #[test]
    fn a_haproxy_behind_a_loader_is_one() {
        let words = ["/x/ld-linux-x86-64.so.2", "--library-path", "/x", "/x/haproxy", "-db"];
        let command = words.map(str::to_owned);
        assert_eq!(program("ld-linux-x86-64", &command), "haproxy");
        assert_eq!(program("nginx", &[]), "nginx");
    }

    fn listener() -> (std::net::TcpListener, u64) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let inode = fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd()));
        (listener, inode.expect("inode").ino())
    }

    fn survey(inode: u64) -> Processes {
        Processes::survey(&HashSet::from([inode]), &Namespaces::default())
    }

    #[test]
    fn this_process_is_seen_with_its_listener_and_its_ghost() {
        let (listener, inode) = listener();
        let other: OwnedFd = listener.try_clone().expect("clone").into();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
        let data = epoll::EventData::new_u64(1);
        epoll::add(&epoll, &listener, data, epoll::EventFlags::IN).expect("add");
        epoll::add(&epoll, &other, data, epoll::EventFlags::IN).expect("add");
        let number = other.as_raw_fd();
        drop(other);
        let seen = survey(inode);
        let this = &seen.seen[&std::process::id().cast_signed()];
        assert_eq!(this.activity.holds, [(inode, listener.as_raw_fd())]);
        let mut live: Vec<_> =
            this.activity.registrations.iter().map(|one| (one.number, one.live)).collect();
        live.sort_unstable();
        let mut expected = [(listener.as_raw_fd(), true), (number, false)];
        expected.sort_unstable();
        assert_eq!(live, expected);
        assert!(this.activity.registrations[0].input);
        let Usage { memory, descriptors, descriptor_limit, .. } = this.usage;
        assert!(descriptors > 3 && memory > 100_000 && descriptor_limit > 0);
        assert!(this.started > Timestamp(1_577_836_800_000), "{}", this.started);
        assert!(seen.family.contains_key(&1));
    }

    #[test]
    fn what_changes_hands_after_the_survey_is_seen_again() {
        let (listener, inode) = listener();
        let again = |seen: &mut Processes, pid| {
            let namespaces = Namespaces::default();
            seen.see_again(&BTreeSet::from([pid]), &HashSet::from([inode]), &namespaces);
        };
        let own = std::process::id().cast_signed();
        let mut seen = survey(inode);
        let mut sleep = std::process::Command::new("sleep");
        let mut heir = sleep.arg("1000").stdin(OwnedFd::from(listener)).spawn().expect("sleep");
        drop(sleep); // The command has the listener too.
        let pid = heir.id().cast_signed();
        // Both processes have the socket until the child executes the other program.
        while process::name(pid).as_deref() != Some("sleep") {
            std::thread::yield_now();
        }
        again(&mut seen, own);
        let holders: Vec<_> = seen.seen.keys().copied().collect();
        heir.kill().and_then(|()| heir.wait()).expect("ending it");
        assert!(holders.contains(&pid) && !holders.contains(&own), "{holders:?}");
        again(&mut seen, pid);
        assert!(!seen.seen.contains_key(&pid), "it has ended");
    }
}
