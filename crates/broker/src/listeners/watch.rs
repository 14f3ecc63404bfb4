//! The watch on a listener: whether the kernel reports when it leaves the LISTEN state, and how
//! often it was made to listen again. [`crate::guard`] makes the repairs.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use bindonce_core::address::Address;
use bindonce_core::registry::ListenerId;
use bindonce_sys::guard;
use bindonce_sys::options::Change;
use tokio::sync::Notify;

/// Watches all listeners of one broker.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) kernel: guard::Guard,
    /// Listeners that do not listen and could not be repaired yet.
    pub(crate) broken: RefCell<BTreeSet<ListenerId>>,
    /// Listeners that need another socket, with the inode of the one that was shut down.
    pub(crate) shut_down: RefCell<BTreeMap<ListenerId, u64>>,
    /// Notified when there is one of them.
    pub(crate) to_replace: Notify,
    /// Listeners that were made to listen again, and how often, since the last report.
    pub(crate) unreported: RefCell<BTreeMap<ListenerId, u64>>,
    /// Notified when there is something to report.
    pub(crate) repaired: Notify,
    /// Notified when a reply has left more than one turn's work.
    pub(crate) unsettled: Notify,
}

impl Guard {
    pub(crate) fn new() -> std::io::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            kernel: guard::Guard::new()?,
            broken: RefCell::default(),
            shut_down: RefCell::default(),
            to_replace: Notify::new(),
            unreported: RefCell::default(),
            repaired: Notify::new(),
            unsettled: Notify::new(),
        }))
    }

    /// The watch for a listener that is not watched yet.
    pub(crate) fn watch(self: &Rc<Self>) -> Watch {
        Watch {
            guard: Rc::clone(self),
            watched: OnceCell::new(),
            repaired: Cell::new(0),
            noticed: RefCell::default(),
        }
    }
}

/// The watch on one listener.
#[derive(Debug)]
pub(crate) struct Watch {
    guard: Rc<Guard>,
    /// The listener and its socket, once the kernel watches it.
    watched: OnceCell<(ListenerId, Rc<OwnedFd>)>,
    /// How often it was made to listen again.
    repaired: Cell<u64>,
    /// Changed options that are logged already.
    pub(crate) noticed: RefCell<Vec<Change>>,
}

impl Watch {
    /// Begins to watch the listener, until this is dropped. The kernel reports earlier events too.
    pub(crate) fn begin(&self, id: ListenerId, fd: &Rc<OwnedFd>, address: &Address) {
        if !address.listens() || self.watched.get().is_some() {
            return;
        }
        match self.guard.kernel.add(fd.as_fd(), id.number()) {
            Ok(()) => {
                // Cannot fail: it was empty a moment ago.
                let _ = self.watched.set((id, Rc::clone(fd)));
            }
            Err(error) => {
                let hint = guard::is_full(&error).then_some("raise fs.epoll.max_user_watches");
                tracing::warn!(%address, %error, hint, "a listener is not guarded");
            }
        }
    }

    /// How often the listener was made to listen again.
    pub(crate) fn repaired(&self) -> u64 {
        self.repaired.get()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some((id, fd)) = self.watched.get() {
            // Other processes still have the socket, so closing our descriptor would not end the
            // registration.
            let _ = self.guard.kernel.remove(fd.as_fd());
            self.guard.broken.borrow_mut().remove(id);
        }
    }
}

impl Watch {
    /// Counts a repair of the listener.
    pub(crate) fn count(&self, id: ListenerId) {
        self.repaired.set(self.repaired.get() + 1);
        *self.guard.unreported.borrow_mut().entry(id).or_default() += 1;
        self.guard.repaired.notify_one();
    }
}
