//! A listener's socket with its data, and how many listeners each user has created.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use bindonce_core::registry::{self, Closing, Opened, Process};
use bindonce_sys::hidden;
use bindonce_sys::listen::{self, FileOwner, UnixPath};
use bindonce_wire::manifest::{self, Entry};

use super::watch::Watch;
use crate::persistence::{Mark, Recorded};

/// A listener that is held.
pub(crate) type Held = registry::Held<Socket>;

/// The reason, the closed listener, and its user.
pub(super) type Closed = (Closing, Arc<Listener>, u32);

/// A listener's socket. A reply on its way shares it.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) fd: Rc<OwnedFd>,
    pub(crate) watch: Watch,
    /// The user whose claim created it, counted for as long as it is held.
    pub(crate) owned: Option<Owned>,
    /// What was last recorded about it.
    mark: RefCell<Option<Mark>>,
    /// Cached text for replies that did not create the listener, and the edition of that text.
    pub(crate) reply_text: RefCell<Option<(u32, Box<[u8]>)>>,
    pub(crate) path: Option<UnixPath>,
    /// The owner of that file since the last change in place.
    pub(crate) file_owner: Cell<FileOwner>,
    /// Whether it was hidden when it was opened or taken over, and has not been shown since.
    pub(crate) hidden: Cell<bool>,
}

/// Makes a hidden listener reachable again. A claim hid it, or a handover whose supervisor died.
pub(crate) fn show(held: &Held) {
    let Held { opened, listener, .. } = held;
    if !matches!(listener.address, Address::Tcp(_)) {
        return;
    }
    let shown = hidden::show(opened.handle.fd.as_fd(), listener.options.interface.as_deref());
    opened.handle.hidden.set(!shown);
    if !shown {
        let listener = listener.label();
        tracing::warn!(
            listener,
            hint = "run the broker with that capability; or stop what uses the listener, release it \
                    and claim it again",
            "listener {listener} stays hidden from new connections: showing it needs CAP_NET_RAW, and \
             its interface where it has one"
        );
    }
}

/// Number of listeners that claims of each user have created.
#[derive(Debug, Default)]
pub(crate) struct Owners(Rc<RefCell<HashMap<u32, usize>>>);

impl Owners {
    pub(super) fn count(&self, uid: u32) -> usize {
        self.0.borrow().get(&uid).copied().unwrap_or(0)
    }

    /// Adds listeners to a user's count.
    pub(super) fn add(&self, uid: u32, count: usize) -> Vec<Owned> {
        if count != 0 {
            *self.0.borrow_mut().entry(uid).or_default() += count;
        }
        (0..count).map(|_| Owned { uid, counts: Rc::clone(&self.0) }).collect()
    }
}

/// One listener in a user's count, until this is dropped.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) uid: u32,
    counts: Rc<RefCell<HashMap<u32, usize>>>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        let mut counts = self.counts.borrow_mut();
        if let Some(count) = counts.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

/// Files of UNIX sockets that are being opened for claims. An upgrade in place that does not wait
/// for such a claim ends it, and the next image removes the files.
#[derive(Debug, Default)]
pub(crate) struct Unfinished(RefCell<BTreeMap<PathBuf, UnixPath>>);

impl Unfinished {
    pub(crate) fn add(&self, path: Option<&UnixPath>) {
        if let Some(path) = path {
            self.0.borrow_mut().insert(path.path.clone(), path.clone());
        }
    }

    pub(crate) fn remove(&self, path: Option<&UnixPath>) {
        if let Some(path) = path {
            self.0.borrow_mut().remove(&path.path);
        }
    }

    /// All files, as written for the next image.
    pub(crate) fn written(&self) -> Vec<(String, manifest::File)> {
        let written = |(path, file): (&PathBuf, &UnixPath)| {
            Some((path.to_str()?.to_owned(), recorded(file, file.owner)))
        };
        self.0.borrow().iter().filter_map(written).collect()
    }
}

/// A newly opened socket as the registry holds it.
pub(super) fn opened(socket: listen::Opened, watch: Watch, backlog: u32) -> Opened<Socket> {
    Opened {
        exclusive: socket.bound.is_exclusive(),
        handle: Socket {
            fd: Rc::new(socket.fd),
            watch,
            owned: None,
            mark: RefCell::new(None),
            reply_text: RefCell::new(None),
            file_owner: Cell::new(socket.path.as_ref().map(|path| path.owner).unwrap_or_default()),
            path: socket.path,
            hidden: Cell::new(socket.hidden),
        },
        bound: socket.bound,
        inode: socket.inode,
        cookie: socket.cookie,
        backlog,
    }
}

/// The file of a UNIX path as it is recorded.
fn recorded(path: &UnixPath, owner: FileOwner) -> manifest::File {
    manifest::File { dev: path.dev, ino: path.ino, uid: owner.user, gid: owner.group }
}

impl Recorded for Held {
    fn edition(&self) -> u32 {
        // The registry's own method, after which this one is named.
        registry::Held::edition(self)
    }

    fn fd(&self) -> &Rc<OwnedFd> {
        &self.opened.handle.fd
    }

    fn mark(&self) -> &RefCell<Option<Mark>> {
        &self.opened.handle.mark
    }

    fn inode(&self) -> u64 {
        self.opened.inode
    }

    fn cookie(&self) -> u64 {
        self.opened.cookie
    }

    fn entry(&self) -> Entry {
        let Self { opened, listener, .. } = self;
        let file = opened.handle.path.as_ref();
        Entry {
            listen: listener.to_string(),
            bound: opened.bound.to_string(),
            inode: opened.inode,
            cookie: opened.cookie,
            backlog: opened.backlog,
            exclusive: opened.exclusive,
            since: self.since.0,
            tentative: self.tentative,
            owner: opened.handle.owned.as_ref().map(|owned| owned.uid),
            file: file.map(|path| recorded(path, opened.handle.file_owner.get())),
            process: self.outlived.map(|Process { pid, start }| (pid, start)),
            descriptor: None,
        }
    }
}
