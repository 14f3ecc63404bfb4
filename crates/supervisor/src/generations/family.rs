//! Which processes of a generation have its listeners. The generation has stopped only when none
//! has.
//!
//! haproxy's "Stopping: 1" is no proof: `grace` delays the close, and in master-worker mode only
//! one worker reports it, while the master may have been reloaded and have another worker.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::rc::Rc;

use bindonce_core::generation::GenerationId;
use bindonce_sys::{holders, process};

use crate::generations::generation::Generation;
use crate::kind::Kind;
use bindonce_haproxy::cli::Info;

/// The processes of one generation, and the listeners that it was given.
pub(crate) struct Family {
    kind: Kind,
    pub(crate) id: GenerationId,
    /// The process that was started.
    pub(crate) pid: i32,
    /// Whether that is haproxy's own master.
    pub(crate) has_master: bool,
    /// Inodes of the listeners. `queues` are those among them in which connections wait.
    pub(crate) all: Vec<u64>,
    queues: Vec<u64>,
}

/// What was seen of the descriptors of a family.
pub(crate) enum Descriptors {
    /// No process has a listener.
    Closed,
    /// Some process has.
    Open,
    /// No process is seen to have one, but the descriptors of some may not be read.
    Hidden(io::Error),
}

impl Family {
    pub(crate) fn of(kind: &Kind, generation: &Generation) -> Rc<Self> {
        let pid = generation.pid();
        let inodes = generation.listeners.iter().map(|held| held.inode);
        let queues = generation.listeners.iter().filter(|held| held.bound.listens());
        Rc::new(Self {
            kind: kind.clone(),
            id: generation.id,
            pid,
            has_master: generation.has_master(),
            all: inodes.collect(),
            queues: queues.map(|held| held.inode).collect(),
        })
    }

    /// The processes that may accept.
    pub(crate) fn workers(&self) -> BTreeSet<i32> {
        self.without_master(process::family(self.pid))
    }

    fn without_master(&self, pids: Vec<i32>) -> BTreeSet<i32> {
        pids.into_iter().filter(|pid| !(self.has_master && *pid == self.pid)).collect()
    }

    /// Whether a process has one of the listeners.
    pub(crate) fn has(&self, pid: i32) -> bool {
        holders::holds(pid, &self.all).unwrap_or(false)
    }

    /// Looks at the descriptors of all processes. `latest` is the last answer of the process on the
    /// admin socket. The answer is trusted if the descriptors of that process are hidden, or if it
    /// keeps a UDP socket only for its open connections.
    pub(crate) fn look(&self, latest: Option<&Info>) -> Descriptors {
        // Without a free descriptor /proc shows no children.
        if let Err(error) = File::open("/proc/self/stat")
            && error.kind() != io::ErrorKind::NotFound
        {
            return Descriptors::Hidden(error);
        }
        // The first process and its descendants are quick to look at. If they have no listener, all
        // other processes are searched.
        match self.look_at(&self.workers(), latest) {
            Descriptors::Closed if self.kind.program().is_some() => {
                self.look_at(&self.without_master(self.kind.processes(self.pid)), latest)
            }
            seen => seen,
        }
    }

    fn look_at(&self, pids: &BTreeSet<i32>, latest: Option<&Info>) -> Descriptors {
        let closed = latest.filter(|info| self.reports_closed(info)).and_then(|info| info.pid);
        let mut hidden = None;
        for &pid in pids {
            let believed = closed == Some(pid);
            let inodes = if believed { &self.queues } else { &self.all };
            match holders::holds(pid, inodes) {
                Ok(true) => return Descriptors::Open,
                Err(error) if !believed => hidden = Some(error),
                Ok(false) | Err(_) => {}
            }
        }
        hidden.map_or(Descriptors::Closed, Descriptors::Hidden)
    }

    /// Whether haproxy reports that it has closed its listeners. A haproxy that does not count them
    /// is taken to have closed them when it stops. A worker has one left, to its master.
    pub(crate) fn reports_closed(&self, info: &Info) -> bool {
        let left = u64::from(self.has_master);
        info.stopping && info.listeners.is_none_or(|listeners| listeners <= left)
    }
}
