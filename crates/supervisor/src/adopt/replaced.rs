//! A haproxy that runs without bindonce and is replaced (`-sf`, `-st`, `-x`). The broker takes its
//! listening sockets before the first generation is started. When that generation serves on them,
//! the old haproxy is told to stop, with proof.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bindonce::{Client, Give};
use bindonce_core::address::Address;
use bindonce_core::adoption;
use bindonce_core::listener::Listener;
use bindonce_sys::process::{self, Pidfd};
use bindonce_sys::signals::Signal;
use bindonce_sys::{diag, holders};
use rustix::net::{Shutdown, shutdown};

use super::{Error, Retired, Running, Served, command_of, configured, give, master_of, retire};

/// How long haproxy may take to hand its sockets over.
const HANDOVER: Duration = Duration::from_secs(5);

/// The haproxys to replace.
#[derive(Debug, Clone, Default)]
pub struct Replaced {
    /// The pids on the command line.
    pub pids: Vec<i32>,
    /// The stats socket to ask if the descriptors cannot be taken from the process.
    pub stats_socket: Option<PathBuf>,
    /// Whether its connections end at once (`-st`).
    pub at_once: bool,
}

impl Replaced {
    /// The haproxys among the pids, each by its topmost process. A pid that another program has now
    /// is left alone.
    fn masters(&self, known: &[i32]) -> Vec<i32> {
        let haproxys = self.pids.iter().filter(|pid| command_of(**pid).is_some());
        let mut masters: Vec<i32> = haproxys.map(|pid| master_of(*pid)).collect();
        masters.retain(|pid| !known.contains(pid) && *pid != std::process::id().cast_signed());
        masters.sort_unstable();
        masters.dedup();
        masters
    }

    /// Gives the broker duplicates of the sockets that these haproxys listen on, as far as their
    /// configurations name them; they do not notice. `known` are processes of the service itself.
    /// `ours` gives the listeners of the configuration that replaces one which cannot be read.
    pub(crate) fn take(
        &self,
        socket: &Path,
        known: &[i32],
        ours: &dyn Fn() -> Option<Vec<Listener>>,
    ) -> Result<Taken, crate::error::Error> {
        let masters = self.masters(known);
        let (mut lease, mut names) = (None, Vec::new());
        let mut had = HashSet::new();
        for &pid in &masters {
            let running = Running::of_process(pid).or_else(|error| match &self.stats_socket {
                Some(path) => Running::at_stats_socket(path, HANDOVER),
                None => Err(error),
            })?;
            let command = command_of(running.pid);
            let named = command.map(|command| configured(running.pid, &command));
            let wanted = match named.transpose() {
                Ok(wanted) => wanted,
                Err(error) => {
                    let Some(ours) = ours() else { return Err(error.into()) };
                    tracing::warn!(pid, "{error}; the new configuration says what to take");
                    Some(ours)
                }
            };
            let plan = adoption::plan(&running.candidates(), wanted.as_deref());
            let gives: Vec<Give<'_>> = plan
                .taken
                .iter()
                // If several haproxys have their own socket on one address, the first gives its
                // socket. The others close theirs when they are told to stop.
                .filter(|taken| had.insert(taken.listener.key()))
                .filter_map(|taken| {
                    let fd = running.sockets.get(taken.index)?.fd.as_fd();
                    Some(give(&taken.listener, fd))
                })
                .collect();
            if !gives.is_empty() {
                let stored = store(&mut lease, socket, &gives);
                let stored = stored.map_err(crate::error::Error::claim)?;
                tracing::info!(
                    pid,
                    listeners = stored.len(),
                    "took the listeners of the haproxy that is replaced"
                );
                names.extend(stored);
            }
        }
        Ok(Taken { pids: masters, names, lease })
    }
}

/// Gives the broker sockets, all on one connection. Returns their names there.
fn store(
    lease: &mut Option<Client>,
    socket: &Path,
    gives: &[Give<'_>],
) -> Result<Vec<String>, bindonce::Error> {
    let client = match lease.take() {
        Some(client) => client,
        None => Client::connect(socket)?,
    };
    lease.insert(client).store(gives)
}

/// The haproxys that are replaced, and what the broker has of theirs.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) pids: Vec<i32>,
    /// The names of their listeners.
    names: Vec<String>,
    /// Keeps these listeners. If no generation ever serves on them, the broker gives them up: after
    /// a reload of the older haproxy without bindonce, clients would wait in its copies.
    lease: Option<Client>,
}

impl Taken {
    /// The first generation serves, and has leases of its own. The broker closes what that did not
    /// claim. Returns the names of the listeners, which are the service's from now on.
    pub(crate) fn serves(&mut self) -> Vec<String> {
        self.lease = None;
        std::mem::take(&mut self.names)
    }
}

/// Shuts down the sockets that these processes and their children listen on at this address.
/// Clients are refused, and the address can be bound again.
pub(crate) fn shut_down(pids: &[i32], address: &Address) -> Result<(), crate::error::Error> {
    let at: Vec<u64> = diag::listening()?
        .into_iter()
        .filter_map(|socket| (socket.address == *address).then_some(socket.inode))
        .collect();
    for pid in pids.iter().flat_map(|pid| process::family(*pid)) {
        if let Some(holder) = holders::of_process(pid, &at).into_iter().next() {
            let failed = |source| Error::NotTaken { pid, number: holder.fd, source };
            let _ = shutdown(holder.take().map_err(failed)?, Shutdown::Both);
        }
    }
    Ok(())
}

/// Listeners that a generation serves on: the address, the inode and a descriptor of each.
pub(crate) type ServedNow = Vec<(Address, u64, Arc<OwnedFd>)>;

/// Tells a haproxy to stop, whose listeners another process serves, and waits for the proof. What
/// waits in its own sockets is moved or, where the kernel cannot, reset, as by haproxy alone. With
/// `at_once`, sends SIGTERM afterwards.
pub(crate) fn end(
    pid: i32,
    served: &ServedNow,
    at_once: bool,
    limit: Duration,
) -> Result<Retired, Error> {
    let pidfd = Pidfd::open(pid).map_err(|_| Error::NoProcess { pid })?;
    let served: Vec<Served<'_>> = served
        .iter()
        .map(|(address, inode, fd)| Served {
            address: address.clone(),
            inode: *inode,
            fd: fd.as_fd(),
        })
        .collect();
    let retired = match retire(pid, &served, false, limit) {
        Err(Error::WouldReset { .. }) => retire(pid, &served, true, limit),
        done => done,
    }?;
    if at_once {
        // It may have ended by now.
        let _ = pidfd.send(Signal::SIGTERM);
    }
    Ok(retired)
}
