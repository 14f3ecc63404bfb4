//! A listener's socket, and the count of who had it created.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bindonce_core::listener::Listener;
use bindonce_core::registry::Opened;
use bindonce_sys::listen::{self, UnixPath};

use crate::answer::Described;
use crate::guard::Care;
use crate::records::Noted;
use crate::state::State;
use crate::store::Kept;

/// A listener's socket. A reply that is on its way shares it.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) fd: Rc<OwnedFd>,
    pub(crate) described: Described,
    pub(crate) care: Care,
    /// Its place in the service manager's store; boxed, because most brokers have none.
    pub(crate) kept: RefCell<Option<Box<Kept>>>,
    /// Whose claim created it, for as long as it is held.
    pub(crate) owned: Option<Owned>,
    /// Its place in the state file.
    pub(crate) noted: RefCell<Option<Noted>>,
    pub(crate) path: Option<UnixPath>,
}

/// One listener of a user's count.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) uid: u32,
    pub(crate) counts: Rc<RefCell<HashMap<u32, usize>>>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(count) = self.counts.borrow_mut().get_mut(&self.uid) {
            *count -= 1;
        }
    }
}

impl State {
    /// One more listener in a user's count.
    pub(crate) fn owned(&self, uid: u32) -> Owned {
        *self.owned.borrow_mut().entry(uid).or_default() += 1;
        Owned { uid, counts: Rc::clone(&self.owned) }
    }

    /// A socket as the registry has it; [`Care::begin`] is left to do.
    pub(crate) fn opened(&self, listener: &Listener, socket: listen::Opened) -> Opened<Socket> {
        let backlog = match listener.options.backlog {
            _ if !listener.address.listens() => 0,
            // listen(2) clamps it silently.
            Some(backlog) => backlog.min(self.somaxconn),
            None => self.somaxconn,
        };
        let fd = Rc::new(socket.fd);
        Opened {
            handle: Socket {
                care: self.guard.care(),
                kept: RefCell::new(None),
                noted: RefCell::new(None),
                owned: None,
                fd,
                described: Described::new(listener, &socket.bound, socket.inode),
                path: socket.path,
            },
            bound: socket.bound,
            inode: socket.inode,
            cookie: socket.cookie,
            backlog,
            // `listen::open` never sets SO_REUSEPORT.
            exclusive: true,
        }
    }
}
