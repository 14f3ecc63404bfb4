//! What every process has to do with a set of sockets.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bindonce_core::text::printable;

use super::descriptors::{self, Descriptors};
use super::{numbered, waits};
use crate::process;

/// A registration of one of the sockets in an epoll instance of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// The socket.
    pub inode: u64,
    /// The number of the descriptor that was registered.
    pub number: i32,
    /// The events that it waits for (epoll_ctl(2)).
    pub events: u32,
    /// Whether that number still is the socket. If not, the process is woken for
    /// something that it has closed.
    pub live: bool,
}

/// A process that has to do with the sockets, or that was asked for by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its short name.
    pub name: String,
    /// Its command line.
    pub command: Vec<String>,
    /// Its state as in ps(1): `R`, `S`, `D`, `T` (stopped), `Z` ...
    pub state: char,
    /// When it started, in clock ticks since boot.
    pub started: u64,
    /// Processor time that it has used, in clock ticks.
    pub used: u64,
    /// Resident memory in bytes.
    pub memory: u64,
    /// How many descriptors it has open, and may have.
    pub descriptors: usize,
    /// The soft RLIMIT_NOFILE; none where it cannot be read or is unlimited.
    pub descriptor_limit: Option<u64>,
    /// How many of its descriptors are sockets.
    pub sockets: usize,
    /// Signals that it was sent and has not taken: bit N-1 for signal N.
    pub pending: u64,
    /// Inode and number of each descriptor of one of the sockets.
    pub holds: Vec<(u64, i32)>,
    /// Registrations of the sockets in its epoll instances.
    pub registrations: Vec<Registration>,
    /// The sockets that a thread is blocked in accept, poll or select for.
    pub waits: Vec<u64>,
    /// Every thread was blocked in something that is known, so what is in neither
    /// `waits` nor `registrations` is not waited for.
    pub all_known: bool,
    /// It has an epoll instance.
    pub epoll: bool,
}

/// What [`Processes::survey`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processes {
    /// Those that hold or watch one of the sockets, those with a name asked for, and
    /// those whose descriptors are nearly used up.
    pub all: Vec<Process>,
    /// Parent and short name of every process.
    pub family: BTreeMap<i32, (i32, String)>,
    /// How many processes do not show their descriptors, because they are another user's.
    pub hidden: usize,
}

impl Processes {
    /// Looks at every process once. `wanted` are inodes of sockets; processes for
    /// whose short name `named` is true are described in any case.
    ///
    /// Nearly all of the time is the kernel's, one call for each descriptor of the system: a
    /// few threads share it.
    pub fn survey(wanted: &HashSet<u64>, named: impl Fn(&str) -> bool + Sync) -> Self {
        const THREADS: usize = 4;
        let pids = numbered(Path::new("/proc")).unwrap_or_default();
        let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
        let next = AtomicUsize::new(0);
        let named = &named;
        let part = || {
            let mut found = Self::default();
            let sockfs = descriptors::socket_device().unwrap_or_default();
            // One by one, because one process can have more to read than all others together.
            while let Some(pid) = pids.get(next.fetch_add(1, Ordering::Relaxed)) {
                found.look_at(*pid, wanted, sockfs, named);
            }
            found
        };
        let mut found = thread::scope(|scope| {
            // A thread that cannot be had leaves its part to the others.
            let others: Vec<_> = (1..threads)
                .filter_map(|_| thread::Builder::new().spawn_scoped(scope, part).ok())
                .collect();
            let mut found = part();
            for other in others {
                match other.join() {
                    Ok(part) => found.add(part),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            found
        });
        found.all.sort_by_key(|process| process.pid);
        found
    }

    /// Looks again at some processes and their children, and for the first time at those that have begun
    /// since. A survey takes a while, in which a socket can pass from a process that is looked at too late
    /// to one that was looked at too early, or is younger than the list of all.
    pub fn see_again(
        &mut self,
        pids: &BTreeSet<i32>,
        wanted: &HashSet<u64>,
        named: impl Fn(&str) -> bool,
    ) {
        let meant = |pid: i32, parent: i32| pids.contains(&pid) || pids.contains(&parent);
        let mut again = numbered(Path::new("/proc")).unwrap_or_default();
        again.retain(|pid| self.family.get(pid).is_none_or(|(parent, _)| meant(*pid, *parent)));
        // Whoever has ended since holds nothing any more.
        self.all.retain(|process| !meant(process.pid, process.parent));
        let sockfs = descriptors::socket_device().unwrap_or_default();
        for pid in again {
            self.look_at(pid, wanted, sockfs, &named);
        }
        self.all.sort_by_key(|process| process.pid);
    }

    fn add(&mut self, part: Self) {
        self.all.extend(part.all);
        self.family.extend(part.family);
        self.hidden += part.hidden;
    }

    fn look_at(
        &mut self,
        pid: i32,
        wanted: &HashSet<u64>,
        sockfs: u32,
        named: impl Fn(&str) -> bool,
    ) {
        let Some(stat) = Stat::read(pid) else {
            return;
        };
        self.family.insert(pid, (stat.parent, stat.name.clone()));
        // Neither has descriptors.
        if stat.state == 'Z' || stat.is_of_the_kernel() {
            return;
        }
        let Some(descriptors) = descriptors::read(pid, stat.threads > 1, wanted, sockfs) else {
            self.hidden += usize::from(process::start_time(pid).is_some());
            return;
        };
        let limit = descriptor_limit(pid);
        let full = limit.is_some_and(|limit| descriptors.count as u64 * 10 >= limit * 8);
        if !descriptors.holds.is_empty()
            || !descriptors.registrations.is_empty()
            || full
            || named(&stat.name)
        {
            self.all.push(describe(pid, &stat, descriptors, limit));
        }
    }
}

fn describe(pid: i32, stat: &Stat, found: Descriptors, limit: Option<u64>) -> Process {
    let Descriptors { count, sockets, holds, registrations, uring, epoll } = found;
    let waits = if holds.is_empty() { waits::Waits::default() } else { waits::of(pid) };
    let waited = holds.iter().filter(|(_, number)| waits.on.contains(number));
    let mut waited: Vec<u64> = waited.map(|(inode, _)| *inode).collect();
    waited.dedup();
    Process {
        pid,
        parent: stat.parent,
        name: printable(&stat.name).into_owned(),
        command: process::command(pid).unwrap_or_default(),
        state: stat.state,
        started: stat.started,
        used: stat.used,
        memory: process::memory(pid).unwrap_or(0),
        descriptors: count,
        descriptor_limit: limit,
        sockets,
        pending: pending(pid),
        waits: waited,
        all_known: waits.complete && !uring,
        epoll,
        holds,
        registrations,
    }
}

/// What is needed of /proc/PID/stat (proc_pid_stat(5)).
struct Stat {
    name: String,
    state: char,
    parent: i32,
    used: u64,
    started: u64,
    flags: u64,
    threads: u64,
}

impl Stat {
    /// PF_KTHREAD of the kernel's sched.h: in a container pid 2 is anybody.
    fn is_of_the_kernel(&self) -> bool {
        self.flags & 0x0020_0000 != 0
    }

    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name may hold anything, also parentheses: the last one ends it.
        let (head, rest) = stat.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Some(Self {
            name: name.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            used: number(11)? + number(12)?,
            started: number(19)?,
            flags: number(6)?,
            threads: number(17)?,
        })
    }
}

/// The soft limit in the line `Max open files 1024 524288 files` of /proc/PID/limits.
fn descriptor_limit(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Signals pending for the process or its main thread (ShdPnd and SigPnd).
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
    fn stat_is_read_behind_any_name() {
        let text = "9 (a) S b) T 7 3 4 5 6 7 8 9 10 11 40 2 14 15 16 17 18 19 777 20 21";
        let stat = Stat::parse(text).expect("stat");
        assert_eq!(stat.name, "a) S b");
        assert_eq!((stat.state, stat.parent, stat.used, stat.started), ('T', 7, 42, 777));
        assert!(Stat::parse("9 (x) S 1").is_none());
    }

    #[test]
    fn this_process_is_seen_with_its_listener_and_its_ghost() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let other: OwnedFd = listener.try_clone().expect("clone").into();
        let inode = fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd()));
        let inode = inode.expect("inode").ino();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
        let data = epoll::EventData::new_u64(1);
        epoll::add(&epoll, &listener, data, epoll::EventFlags::IN).expect("add");
        epoll::add(&epoll, &other, data, epoll::EventFlags::IN).expect("add");
        let number = other.as_raw_fd();
        drop(other);
        let seen = Processes::survey(&HashSet::from([inode]), |_| false);
        let pid = std::process::id().cast_signed();
        let this = seen.all.iter().find(|process| process.pid == pid).expect("this process");
        assert_eq!(this.holds, [(inode, listener.as_raw_fd())]);
        let mut live: Vec<_> = this.registrations.iter().map(|r| (r.number, r.live)).collect();
        live.sort_unstable();
        let mut expected = [(listener.as_raw_fd(), true), (number, false)];
        expected.sort_unstable();
        assert_eq!(live, expected);
        assert_eq!(this.registrations[0].events & 1, 1);
        assert!(this.descriptors > 3 && this.memory > 100_000 && this.descriptor_limit > Some(0));
        assert!(seen.family.contains_key(&1));
    }

    #[test]
    fn what_changes_hands_after_the_survey_is_seen_again() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let inode = fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd()));
        let wanted = HashSet::from([inode.expect("inode").ino()]);
        let own = std::process::id().cast_signed();
        let mut seen = Processes::survey(&wanted, |_| false);
        let mut sleep = std::process::Command::new("sleep");
        let mut heir = sleep.arg("1000").stdin(OwnedFd::from(listener)).spawn().expect("sleep");
        drop(sleep); // It has the listener too.
        let pid = heir.id().cast_signed();
        // Both have the socket until the child has become another program.
        while process::name(pid).as_deref() != Some("sleep") {
            std::thread::yield_now();
        }
        seen.see_again(&BTreeSet::from([own]), &wanted, |_| false);
        let holders: Vec<_> = seen.all.iter().map(|process| process.pid).collect();
        heir.kill().and_then(|()| heir.wait()).expect("ending it");
        assert!(holders.contains(&pid) && !holders.contains(&own), "{holders:?}");
        seen.see_again(&BTreeSet::from([pid]), &wanted, |_| false);
        assert!(seen.all.iter().all(|process| process.pid != pid), "it has ended");
    }
}
