//! `show proc`: the processes that the master shows.

use super::MODES;
use crate::cli::Version;

/// A process of haproxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// How many reloads it has survived.
    pub reloads: u64,
    /// For how many seconds it has lived.
    pub uptime: u64,
    /// haproxy's version, as haproxy writes it.
    pub version: String,
}

/// What the master knows of its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processes {
    /// The master itself, with how many reloads there were.
    pub master: Process,
    /// How many reloads have failed since the last that succeeded.
    pub failed: u64,
    /// The one that serves.
    pub current: Option<Process>,
    /// Those that drain, the newest first.
    pub old: Vec<Process>,
}

impl Processes {
    /// The process that a prefix without its `@` names: None if it is none, 0 for the master.
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
                    // Relative numbers have no meaning any more but this one.
                    Ok(1) => Some(self.current.as_ref()?.pid),
                    _ => None,
                },
            },
        }
    }

    /// For how many seconds a process has lived; 0 is the master.
    pub fn uptime(&self, pid: i32) -> Option<u64> {
        if pid == 0 {
            return Some(self.master.uptime);
        }
        let mut all = self.current.iter().chain(&self.old);
        all.find(|process| process.pid == pid).map(|process| process.uptime)
    }

    /// The answer to `show proc`.
    pub fn show(&self, version: Version, debug: bool) -> String {
        // The numbers of descriptors between master and workers: there are none.
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
