//! The state file beside the control socket: which listeners are held, for the broker that
//! follows one that was killed, or that ended while others used its listeners.
//!
//! Without a service manager that keeps descriptors, this file is how the next broker knows
//! what to ask back, from whom and under which names. It is replaced as a whole (written
//! beside it, synced, renamed: mode 0600) at the start and when too much of it is outdated;
//! in between records are appended, those of one claim in one write, and a reply that hands
//! out a new listener comes after its record. Appended records are not synced: they must outlive this process, which the
//! kernel's cache does; after a crash of the system there is no socket to ask back, and
//! the next broker sees by the boot that the file is about nothing.
//!
//! A file that cannot be written (a full disk) is written anew as a whole, with the next change and
//! again and again until it can be; meanwhile `status`, `list`, `doctor` and the metrics say so.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::registry::{Held, Holder};
use bindonce_sys::files::{self, Durability};
use bindonce_sys::{identity, whole};
use bindonce_wire::manifest::{self, Entry, Manifest, Service};
use bindonce_wire::result::Problem;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::recording::entry;
use crate::socket::Socket;
use crate::state::State;

/// So many outdated records are carried along before the file is written anew.
const OUTDATED: usize = 1024;

/// No state file is larger: a record of a million listeners.
const LARGEST: u64 = 256 << 20;

/// When to try again to write a file that could not be written, from the first time on, and at most.
const AGAIN: Duration = Duration::from_secs(1);
const AT_MOST: Duration = Duration::from_secs(30);

/// Between two attempts that changes bring about: at least this, and this many times what one took.
const BETWEEN: Duration = Duration::from_millis(50);
const TIMES: u32 = 10;

/// The state file of one broker.
#[derive(Debug)]
pub(crate) struct Records {
    path: PathBuf,
    inner: RefCell<Inner>,
    /// Rung when it could not be written.
    failing: Notify,
}

#[derive(Debug)]
struct Inner {
    /// None until it has been written, and after it could not be.
    file: Option<File>,
    outdated: usize,
    /// The broker ends or goes on as another image: what is written stays.
    ending: bool,
    /// Why it is not written, and when that was tried last.
    failed: Option<Failed>,
}

#[derive(Debug)]
struct Failed {
    error: String,
    /// When a change may try again.
    ready: Instant,
}

/// The state file of the broker on this control socket.
fn path(socket: &Path) -> PathBuf {
    let mut path = socket.to_owned().into_os_string();
    path.push(".state");
    path.into()
}

/// What the broker before has left written.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// The listeners that may still be held by somebody.
    pub(crate) listeners: Vec<Entry>,
    /// It ended in order: what nobody holds any more need not be had back.
    pub(crate) in_order: bool,
    /// The services whose order it kept.
    pub(crate) services: Vec<Service>,
    /// The number that those which it had forgotten did not go beyond.
    pub(crate) floor: u64,
}

/// What a broker has left written that did not end in order, or had something to leave.
pub(crate) fn left(socket: &Path) -> Left {
    let path = path(socket);
    let bytes = match whole::regular(&path, LARGEST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Left::default(),
        Err(error) => {
            tracing::error!(
                path = %path.display(), %error,
                "cannot read the state file: listeners of the broker before are not asked back"
            );
            return Left::default();
        }
    };
    match Manifest::decode(&bytes) {
        Ok(Manifest { header, listeners, services, .. }) if header.boot == identity::boot() => {
            Left { listeners, in_order: header.ended, services, floor: header.floor }
        }
        Ok(_) => {
            tracing::info!(path = %path.display(), "the state file is from before the last boot");
            Left::default()
        }
        Err(error) => {
            tracing::error!(
                path = %path.display(), %error,
                "cannot read the state file: listeners of the broker before are not asked back"
            );
            Left::default()
        }
    }
}

impl Records {
    /// The state file of the broker on this control socket, not written yet.
    pub(crate) fn new(socket: &Path) -> Rc<Self> {
        let inner = Inner { file: None, outdated: 0, ending: false, failed: None };
        let failing = Notify::new();
        Rc::new(Self { path: path(socket), inner: RefCell::new(inner), failing })
    }

    /// Replaces the file.
    pub(crate) fn rewrite(&self, manifest: &Manifest) {
        let begun = Instant::now();
        let written = files::replace(&self.path, &manifest.encode(), Durability::System);
        let mut inner = self.inner.borrow_mut();
        inner.outdated = 0;
        match written {
            Ok(file) => {
                inner.file = Some(file);
                if inner.failed.take().is_some() {
                    tracing::info!(path = %self.path.display(), "the state file is written again");
                }
            }
            Err(error) => self.failed(&mut inner, &error, begun.elapsed()),
        }
    }

    fn failed(&self, inner: &mut Inner, error: &io::Error, took: Duration) {
        inner.file = None;
        if inner.failed.is_none() {
            tracing::error!(
                path = %self.path.display(), %error, hint = HINT,
                "cannot write the state file: after a crash listeners are not asked back"
            );
        }
        let ready = Instant::now() + BETWEEN.max(took * TIMES);
        inner.failed = Some(Failed { error: error.to_string(), ready });
        self.failing.notify_one();
    }

    /// What is wrong with it, if it is not written.
    pub(crate) fn problem(&self) -> Option<Problem> {
        let inner = self.inner.borrow();
        let error = &inner.failed.as_ref()?.error;
        let path = self.path.display().to_string();
        let message = format!(
            "cannot write the state file {path}: {error}; after a crash the newest listeners are lost"
        );
        Some(Problem::new("state-not-written", path, message, Some(HINT.to_owned())))
    }

    /// Notes that listeners are held, or that something about them is new.
    pub(crate) fn record<'a>(self: &Rc<Self>, held: impl IntoIterator<Item = &'a Held<Socket>>) {
        let mut text = Vec::new();
        held.into_iter().for_each(|held| self.note(held, &mut text));
        if !text.is_empty() {
            self.append(&text);
        }
    }

    /// Adds the record of a listener to `text`, unless the last one says the same.
    fn note(self: &Rc<Self>, held: &Held<Socket>, text: &mut Vec<u8>) {
        let mut noted = held.opened.handle.noted.borrow_mut();
        let edition = held.edition();
        match &mut *noted {
            Some(noted) if noted.edition == edition => return,
            Some(noted) => {
                noted.edition = edition;
                self.inner.borrow_mut().outdated += 1;
            }
            None => {
                let (inode, cookie) = (held.opened.inode, held.opened.cookie);
                *noted = Some(Noted { records: Rc::clone(self), inode, cookie, edition });
            }
        }
        manifest::opened(text, &entry(held));
    }

    fn append(&self, text: &[u8]) {
        let mut inner = self.inner.borrow_mut();
        if let Some(file) = &mut inner.file
            && let Err(error) = file.write_all(text)
        {
            // Half a record may be in it: it must be written anew before anything follows.
            self.failed(&mut inner, &error, Duration::ZERO);
        }
    }

    /// Whether it should be written anew.
    fn is_outdated(&self, listeners: usize) -> bool {
        let inner = self.inner.borrow();
        match &inner.failed {
            Some(failed) => !inner.ending && Instant::now() >= failed.ready,
            None => inner.outdated > listeners + OUTDATED,
        }
    }

    /// What is written stays from now on.
    pub(crate) fn end(&self) {
        self.inner.borrow_mut().ending = true;
    }

    /// Notes how far a service is.
    pub(crate) fn record_service(&self, service: &Service) {
        let mut text = Vec::new();
        manifest::service(&mut text, service);
        self.inner.borrow_mut().outdated += 1;
        self.append(&text);
    }

    /// Removes the file: nothing is held any more.
    pub(crate) fn remove(&self) {
        self.end();
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the state file");
        }
    }
}

const HINT: &str = "make room, or run the broker as a user that may write there: it is tried again until it can be written";

/// Tries again to write a state file that could not be written, for as long as the broker runs.
pub(crate) async fn keep(state: &RefCell<State>) {
    let Some(records) = state.borrow().records.clone() else { return };
    loop {
        records.failing.notified().await;
        let mut pause = AGAIN;
        while records.inner.borrow().failed.is_some() {
            sleep(pause).await;
            pause = (pause * 2).min(AT_MOST);
            if records.inner.borrow().failed.is_some() {
                state.borrow().rewrite_records();
            }
        }
    }
}

/// A listener that is in the state file, until this is dropped.
#[derive(Debug)]
pub(crate) struct Noted {
    records: Rc<Records>,
    inode: u64,
    cookie: u64,
    /// The listener's edition that its record tells.
    edition: u32,
}

impl Drop for Noted {
    fn drop(&mut self) {
        if self.records.inner.borrow().ending {
            return;
        }
        let mut text = Vec::new();
        manifest::closed(&mut text, self.inode, self.cookie);
        self.records.inner.borrow_mut().outdated += 2;
        self.records.append(&text);
    }
}

impl State {
    /// Ends the state file. It stays where others use listeners now, so that the next broker asks
    /// for those; gives their inodes.
    pub(crate) fn end_records(&self) -> HashSet<u64> {
        let Some(records) = &self.records else { return HashSet::new() };
        let mut manifest = self.manifest();
        manifest.header.ended = true;
        let views = self.registry.list();
        // The broker's own metrics end with it.
        let other = |holder: &Holder| holder.peer.pid != std::process::id();
        let used =
            views.iter().filter(|view| !view.held.tentative && view.holders.iter().any(other));
        let used: HashSet<u64> = used.map(|view| view.held.opened.inode).collect();
        manifest.listeners.retain(|entry| used.contains(&entry.inode));
        manifest.listeners.extend(self.missing.iter().cloned());
        if manifest.listeners.is_empty() && manifest.services.is_empty() {
            records.remove();
        } else {
            if !manifest.listeners.is_empty() {
                tracing::info!(
                    count = manifest.listeners.len(),
                    "listeners are in use: written down for the next broker"
                );
            }
            records.rewrite(&manifest);
            records.end();
        }
        used
    }

    /// Writes the state file anew if too much of it is outdated.
    pub(crate) fn tidy_records(&self) {
        if let Some(records) = &self.records
            && records.is_outdated(self.registry.len())
        {
            self.rewrite_records();
        }
    }

    /// Writes the state file anew: what is held, and what has not been had back yet.
    pub(crate) fn rewrite_records(&self) {
        let Some(records) = &self.records else { return };
        let mut manifest = self.manifest();
        manifest.listeners.extend(self.missing.iter().cloned());
        records.rewrite(&manifest);
        for view in self.registry.list() {
            let (held, mut noted) = (view.held, view.held.opened.handle.noted.borrow_mut());
            let edition = held.edition();
            let (inode, cookie) = (held.opened.inode, held.opened.cookie);
            match &mut *noted {
                Some(noted) => noted.edition = edition,
                None => {
                    let records = Rc::clone(records);
                    *noted = Some(Noted { records, inode, cookie, edition });
                }
            }
        }
    }
}
