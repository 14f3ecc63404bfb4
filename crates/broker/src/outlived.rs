//! Generations that may outlive their connections to the broker, and those that do.
//! [`crate::parting`] decides what happens to their listeners.

use std::cell::RefCell;
use std::collections::HashMap;

use bindonce_core::policy::Peer;
use bindonce_core::registry::{ConnectionId, Label, State};
use bindonce_sys::process::{self, Pidfd};
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Outlived {
    /// For generations that have not served: processes that were children of the peer, with their
    /// start times.
    children: RefCell<HashMap<ConnectionId, (i32, u64)>>,
    /// Generations that live on and that no task watches yet.
    new: RefCell<Vec<(ConnectionId, Pidfd)>>,
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

    /// Notes that the generation of this ending connection lives on in this process.
    pub(crate) fn lives_on(&self, connection: ConnectionId, process: Pidfd) {
        self.new.borrow_mut().push((connection, process));
        self.changed.notify_one();
    }

    /// Takes the generations that live on and that no task watches yet.
    pub(crate) fn take(&self) -> Vec<(ConnectionId, Pidfd)> {
        self.new.take()
    }

    /// Waits until there may be more of them.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
