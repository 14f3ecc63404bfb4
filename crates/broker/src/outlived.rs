//! Generations that may outlive their connections to the broker, and those that do.
//! [`crate::parting`] decides what happens to their listeners.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io;

use bindonce_core::policy::Peer;
use bindonce_core::registry::{ConnectionId, Label, Process, State};
use bindonce_sys::Errno;
use bindonce_sys::process::{self, Pidfd};
use tokio::sync::Notify;

/// A process, and its pidfd unless it has ended meanwhile.
pub(crate) type Survivor = (Process, io::Result<Option<Pidfd>>);

#[derive(Debug, Default)]
pub(crate) struct Outlived {
    /// For generations that have not served: processes that were children of the peer, with their
    /// start times.
    children: RefCell<HashMap<ConnectionId, (i32, u64)>>,
    /// Processes of generations that live on.
    survivors: RefCell<HashSet<Process>>,
    /// Those that no task watches yet.
    new: RefCell<Vec<Survivor>>,
    changed: Notify,
}

impl Outlived {
    /// Notes that a connection has joined as this generation.
    pub(crate) fn joined(&self, connection: ConnectionId, peer: &Peer, label: &Label) {
        let pid = label.pid.cast_signed();
        let mut children = self.children.borrow_mut();
        let is_child = || process::parent(pid) == Some(peer.pid.cast_signed());
        if label.state == State::Starting
            && label.pid != peer.pid
            && let Some(start) = process::start_time(pid)
            && is_child()
        {
            children.insert(connection, (pid, start));
        } else {
            children.remove(&connection);
        }
    }

    /// Forgets a connection that ends. Returns the process that may outlive it.
    pub(crate) fn forget(&self, connection: ConnectionId) -> Option<(i32, u64)> {
        self.children.borrow_mut().remove(&connection)
    }

    /// Notes that generations live on in these processes.
    pub(crate) fn live_on(&self, processes: impl IntoIterator<Item = Process>) {
        for process in processes {
            if self.survivors.borrow_mut().insert(process) {
                self.new.borrow_mut().push((process, open(process)));
                self.changed.notify_one();
            }
        }
    }

    /// Takes the processes that no task watches yet.
    pub(crate) fn take(&self) -> Vec<Survivor> {
        self.new.take()
    }

    /// Forgets a process that has ended.
    pub(crate) fn ended(&self, process: Process) {
        self.survivors.borrow_mut().remove(&process);
    }

    /// Waits until there may be more of them.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// The pidfd of a process; None if it has ended.
fn open(process: Process) -> io::Result<Option<Pidfd>> {
    let pid = process.pid.cast_signed();
    let is_another = || process::start_time(pid).is_some_and(|start| start != process.start);
    match Pidfd::open(pid) {
        // Asked after it was opened, so that no later process with this pid is taken for it.
        _ if is_another() => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(None),
        opened => opened.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_watched_once_and_another_with_its_pid_is_not_taken_for_it() {
        let outlived = Outlived::default();
        let pid = std::process::id();
        let start = process::start_time(pid.cast_signed()).expect("this process");
        let (this, other) = (Process { pid, start }, Process { pid, start: start + 1 });
        outlived.live_on([this, other, this]);
        let found = outlived.take();
        let runs = |pidfd: &io::Result<Option<Pidfd>>| pidfd.as_ref().expect("told").is_some();
        let found: Vec<_> = found.iter().map(|(it, pidfd)| (*it, runs(pidfd))).collect();
        assert_eq!(found, [(this, true), (other, false)]);
        outlived.live_on([this]);
        assert!(outlived.take().is_empty());
        outlived.ended(this);
        outlived.live_on([this]);
        assert_eq!(outlived.take().len(), 1);
    }
}
