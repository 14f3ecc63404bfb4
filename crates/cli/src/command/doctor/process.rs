//! Processes as facts: which program each is, whose worker, since when.

use std::collections::BTreeMap;
use std::time::Duration;

use bindonce_core::diagnosis::{Gauge, Process, Watch};
use bindonce_core::time::Timestamp;
use bindonce_sys::survey;

/// Signals that tell haproxy to stop: SIGUSR1 and SIGTERM.
const STOP: u64 = 1 << (10 - 1) | 1 << (15 - 1);

/// EPOLLIN.
const INPUT: u32 = 1;

/// When the system started, from /proc/stat; 0 where it does not tell.
pub(super) fn boot_time() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0)
}

/// A haproxy may have been started through the loader of another system's libraries.
pub(super) fn is_haproxy(name: &str) -> bool {
    name.starts_with("haproxy") || name.starts_with("ld-linux")
}

/// A process as it was seen. `boot` is when the system started, in seconds.
pub(super) fn describe(
    seen: &survey::Process,
    family: &BTreeMap<i32, (i32, String)>,
    boot: u64,
) -> Process {
    let ticks = survey::ticks_per_second();
    let mut holds: Vec<u64> = seen.holds.iter().map(|(inode, _)| *inode).collect();
    holds.dedup();
    Process {
        pid: seen.pid,
        program: program(&seen.name, &seen.command),
        command: seen.command.clone(),
        network: None,
        root: root(seen.pid, family),
        parent: seen.parent,
        started: Timestamp(boot * 1000 + seen.started * 1000 / ticks),
        state: seen.state,
        used: Duration::from_millis(seen.used * 1000 / ticks),
        memory: seen.memory,
        descriptors: Gauge {
            used: seen.descriptors as u64,
            limit: seen.descriptor_limit.unwrap_or(0),
        },
        sockets: seen.sockets as u64,
        stop_pending: seen.pending & STOP != 0,
        holds,
        watches: seen
            .registrations
            .iter()
            .map(|one| Watch { inode: one.inode, input: one.events & INPUT != 0, live: one.live })
            .collect(),
        waits: seen.waits.clone(),
        all_known: seen.all_known,
        epoll: seen.epoll,
        connections: None,
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

/// The topmost ancestor that runs the same program. Programs that write their role into
/// their name do so behind a space or a colon.
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

#[cfg(test)]
mod tests {
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
}
