//! Reaps orphans (wait(2)), which the supervisor inherits as PID 1 of a container. Each part of the
//! supervisor reaps the children that it started itself. A child that stays a zombie for a second
//! is an orphan.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use bindonce_sys::process::Stat;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// How long a zombie is left to the part that started it.
const OURS: Duration = Duration::from_secs(1);

pub(crate) fn is_needed() -> bool {
    std::process::id() == 1
}

pub(crate) async fn reap() {
    let mut before = BTreeSet::new();
    loop {
        tokio::time::sleep(OURS).await;
        let zombies = zombies();
        for pid in zombies.intersection(&before).filter_map(|pid| Pid::from_raw(*pid)) {
            // It may have been reaped just now.
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
        before = zombies;
    }
}

/// Our children that have ended and were not reaped.
fn zombies() -> BTreeSet<i32> {
    let children = fs::read_to_string("/proc/self/task/1/children").unwrap_or_default();
    let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.filter(|pid| Stat::of(*pid).is_some_and(|stat| stat.has_ended())).collect()
}
