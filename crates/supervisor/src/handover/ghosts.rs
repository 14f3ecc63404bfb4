//! Ghosts: epoll entries of a generation's closed listeners, each of which wakes it for every new
//! connection. They are removed as far as the kernel permits.

use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::event;
use bindonce_core::generation::GenerationId;
use bindonce_sys::ghosts::{self, Ghost};
use bindonce_sys::process::Pidfd;
use bindonce_sys::worker;
use nix::libc::EPERM;

use crate::context::Context;
use crate::error::Error;
use crate::generations::generation::Generation;
use crate::message::Detached;
use crate::message::Message;
use crate::settings::Ghosts;
use crate::settings::Settings;

/// How long searching for ghosts, or removing them, may take.
const LOOKS: Duration = Duration::from_secs(10);

/// Removes the ghosts of a generation that has closed its listeners.
pub(crate) fn detach(cx: &Context, generation: &Generation) {
    let (cx, id, pid) = (cx.clone(), generation.id, generation.pid());
    tracing::info!(generation = id.0, pid, "stopped accepting");
    cx.record(id, Some(pid), event::Kind::GenerationDraining, "stopped accepting");
    if matches!(cx.settings.handover.ghosts, Ghosts::Ignore) {
        return cx.send(Message::Closed(id));
    }
    let listeners = generation.listeners.clone();
    let pidfd = Rc::clone(&generation.pidfd);
    crate::tasks::spawn(async move {
        let inodes: Vec<_> = listeners.iter().map(|held| held.inode).collect();
        let found = find(&cx.settings, pid, inodes.clone()).await;
        if found.is_empty() {
            return cx.send(Message::Closed(id));
        }
        let ours = listeners
            .iter()
            .filter(|held| found.iter().any(|ghost| ghost.inode == held.inode))
            .map(|held| Ok((held.inode, held.fd.try_clone()?)))
            .collect::<std::io::Result<Vec<_>>>();
        let ghosts = found.clone();
        let removed = worker::within(LOOKS, move || {
            let ours = ours.map_err(Error::system("copy a listener's descriptor"))?;
            let ours: Vec<_> = ours.iter().map(|(inode, fd)| (*inode, fd.as_fd())).collect();
            let mut removed = 0;
            for of_one in ghosts.chunk_by(|a, b| a.pid == b.pid) {
                let Some(first) = of_one.first() else { continue };
                let pidfd = Pidfd::open(first.pid).map_err(Error::system("open a generation"))?;
                removed += ghosts::detach(&pidfd, of_one, &ours)?;
            }
            Ok::<_, Error>(removed)
        })
        .await;
        drop(pidfd); // Not reaped before: until here the pid cannot be reused.
        match removed {
            Ok(Ok(removed)) => {
                let left = find(&cx.settings, pid, inodes).await.len();
                cx.send(Message::Detached(id, Detached { removed, left, refused: false }));
            }
            Ok(Err(error)) => {
                let refused = matches!(&error, Error::Sys(error) if error.errno() == Some(EPERM));
                tracing::debug!(generation = id.0, pid, %error, "ghosts not removed");
                let left = found.len();
                cx.send(Message::Detached(id, Detached { removed: 0, left, refused }));
            }
            // Not in time.
            Err(error) => tracing::warn!(generation = id.0, pid, %error, "ghosts not removed"),
        }
        cx.send(Message::Closed(id));
    });
}

/// Whether ghosts can be removed here, judged by the attempts so far.
pub(crate) struct Removal {
    /// Generations start without epoll.
    no_epoll: bool,
    /// The warning about remaining ghosts was logged; once is enough.
    logged: bool,
}

impl Removal {
    pub(crate) fn new(ghosts: Ghosts) -> Self {
        Self { no_epoll: ghosts == Ghosts::NoEpoll, logged: false }
    }

    /// Whether haproxy must not use epoll.
    pub(crate) fn no_epoll(&self) -> bool {
        self.no_epoll
    }

    /// Reports the removal of one generation's ghosts. `is_last`: no generation will start after
    /// it.
    pub(crate) fn ended(
        &mut self,
        cx: &Context,
        (id, pid): (GenerationId, i32),
        detached: Detached,
        is_last: bool,
    ) {
        let Detached { removed, left, refused } = detached;
        if removed > 0 {
            tracing::info!(generation = id.0, pid, removed, "removed ghosts from its epoll sets");
            let text = format!("removed {removed} ghosts from its epoll sets");
            cx.record(id, Some(pid), event::Kind::GhostsRemoved, text);
        }
        if left == 0 {
            return;
        }
        if is_last {
            return tracing::debug!(
                generation = id.0,
                pid,
                left,
                "ghosts stay until it has drained"
            );
        }
        let is_haproxy = cx.settings.kind.haproxy().is_some();
        if refused && is_haproxy && matches!(cx.settings.handover.ghosts, Ghosts::Auto) {
            self.no_epoll = true;
        }
        if std::mem::replace(&mut self.logged, true) {
            return;
        }
        let then = if self.no_epoll {
            "from now on generations start without epoll (-de)"
        } else if is_haproxy {
            "run as root or with CAP_SYS_PTRACE, or choose --ghosts noepoll"
        } else {
            "run as root or with CAP_SYS_PTRACE, or let the program not use epoll"
        };
        let text = format!(
            "this generation is woken for connections that it cannot accept, and burns CPU \
             until it has drained; the kernel did not let us remove it from its epoll sets; {then}"
        );
        tracing::warn!(generation = id.0, pid, ghosts = left, "{text}");
        cx.record(id, Some(pid), event::Kind::GhostsLeft, text);
    }
}

async fn find(settings: &Settings, pid: i32, inodes: Vec<u64>) -> Vec<Ghost> {
    let processes = settings.kind.processes(pid);
    let find = move || processes.iter().flat_map(|p| ghosts::find(*p, &inodes)).collect();
    worker::within(LOOKS, find).await.unwrap_or_default()
}
