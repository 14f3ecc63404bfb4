//! `show proc`: the processes that the master CLI shows.

use super::MODES;
use crate::cli::Version;

/// A process of haproxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Number of reloads that it has survived.
    pub reloads: u64,
    /// Uptime in seconds.
    pub uptime: u64,
    /// Version of haproxy, as haproxy writes it.
    pub version: String,
}

/// The master and its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processes {
    /// The master itself, with the number of reloads.
    pub master: Process,
    /// Number of failed reloads since the last successful one.
    pub failed: u64,
    /// The serving process.
    pub current: Option<Process>,
    /// The draining processes, newest first.
    pub old: Vec<Process>,
}

impl Processes {
    /// The pid of the process that a prefix (without its `@`) names; 0 for the master, None for an
    /// unknown process.
    pub fn find(&self, prefix: &str) -> Option<i32> {
        match prefix {
            "" | "master" => Some(0),
            _ => match prefix.strip_prefix('!') {
                Some(pid) => {
                    let pid = pid.parse().ok()?;
                    let mut all = self.current.iter().chain(&self.old);
                    all.any(|process| process.pid == pid).then_some(pid)
                }
                None => match prefix.parse::<i32>() {
                    Ok(0) => Some(0),
                    // Of the relative numbers only this one still has a meaning.
                    Ok(1) => Some(self.current.as_ref()?.pid),
                    _ => None,
                },
            },
        }
    }

    /// Uptime of a process in seconds; pid 0 is the master.
    pub fn uptime(&self, pid: i32) -> Option<u64> {
        if pid == 0 {
            return Some(self.master.uptime);
        }
        let mut all = self.current.iter().chain(&self.old);
        all.find(|process| process.pid == pid).map(|process| process.uptime)
    }

    /// The answer to `show proc`.
    pub fn show(&self, version: Version, debug: bool) -> String {
        // haproxy shows the descriptors between master and workers here; bindonce has none.
        let more = |text: &str, first: &str, second: &str| match debug && version >= MODES {
            true => format!("{text}\t\t {first:<15} {second:<15}\n"),
            false => format!("{text}\n"),
        };
        let row = |process: &Process, kind: &str, reloads: &str| {
            let up = process.uptime;
            let uptime = format!(
                "{}d{:02}h{:02}m{:02}s",
                up / 86400,
                up % 86400 / 3600,
                up % 3600 / 60,
                up % 60
            );
            let Process { pid, version, .. } = process;
            let text = format!("{pid:<15} {kind:<15} {reloads:<15} {uptime:<15} {version:<15}");
            more(&text, "-1", "-1")
        };
        let worker = |process: &Process| row(process, "worker", &process.reloads.to_string());
        let header = format!(
            "#{:<14} {:<15} {:<15} {:<15} {:<15}",
            "<PID>", "<type>", "<reloads>", "<uptime>", "<version>"
        );
        let mut text = more(&header, "<ipc_fd[0]>", "<ipc_fd[1]>");
        let reloads = format!("{} [failed: {}]", self.master.reloads, self.failed);
        text.push_str(&row(&self.master, "master", &reloads));
        text.push_str("# workers\n");
        text.extend(self.current.iter().map(worker));
        if !self.old.is_empty() {
            text.push_str("# old workers\n");
            text.extend(self.old.iter().map(worker));
        }
        if version < MODES {
            text.push_str("# programs\n");
        }
        text
    }
}
