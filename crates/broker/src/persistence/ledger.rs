//! The records for the next broker: one for each listener, in the [state file](super::file) or
//! beside the [service manager's store](super::store).
//!
//! A listener is recorded when it is opened, and again when it changes. Its [`Mark`] remembers what
//! was written last; dropping the mark asks for the record of the listener's end.
//!
//! When too many records are outdated, all are rewritten: a snapshot is made in many steps, changes
//! made meanwhile are added behind it, and the whole replaces the records.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bindonce_core::registry::ListenerId;
use bindonce_core::succession::Record;
use bindonce_wire::manifest::{self, Entry, Manifest, Records};
use bindonce_wire::result::Problem;

use super::file::StateFile;
use super::store::Store;

/// Outdated records tolerated, beyond one for each listener, before all are rewritten.
const OUTDATED: usize = 1024;

/// A listener that can be recorded.
pub(crate) trait Recorded {
    /// A number that differs whenever the record would differ.
    fn edition(&self) -> u32;
    fn fd(&self) -> &Rc<OwnedFd>;
    /// Where the listener's mark is kept.
    fn mark(&self) -> &RefCell<Option<Mark>>;
    fn inode(&self) -> u64;
    fn cookie(&self) -> u64;
    /// The contents of the record.
    fn entry(&self) -> Entry;
}

/// Where records are written.
#[derive(Debug, Default)]
enum Place {
    #[default]
    Nowhere,
    File(Rc<StateFile>),
    Store(Rc<Store>),
}

/// Records that will replace all others.
#[derive(Debug, Default)]
struct Renewal {
    listeners: Records,
    /// The last listener in these records.
    last: Option<ListenerId>,
    /// What was written since the renewal began.
    since: Vec<u8>,
}

/// The records of one broker.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    place: RefCell<Place>,
    /// Number of records that later ones have replaced.
    outdated: Cell<usize>,
    /// Inodes and cookies of closed listeners, whose end is written with the next records.
    closed: RefCell<Vec<(u64, u64)>>,
    renewal: RefCell<Option<Renewal>>,
    /// Whether the broker ends or becomes another image, so that the records stay.
    ending: Cell<bool>,
}

impl Ledger {
    /// Keeps the records in the service manager's store from now on.
    pub(crate) fn keep_in_store(&self, store: Rc<Store>) {
        *self.place.borrow_mut() = Place::Store(store);
    }

    /// Keeps the records in the state file from now on.
    pub(crate) fn keep_in_file(&self, file: Rc<StateFile>) {
        *self.place.borrow_mut() = Place::File(file);
    }

    /// The service manager's store, if the records are kept there.
    pub(crate) fn store(&self) -> Option<Rc<Store>> {
        match &*self.place.borrow() {
            Place::Store(store) => Some(Rc::clone(store)),
            _ => None,
        }
    }

    /// The state file, if the records are kept there.
    pub(crate) fn file(&self) -> Option<Rc<StateFile>> {
        match &*self.place.borrow() {
            Place::File(file) => Some(Rc::clone(file)),
            _ => None,
        }
    }

    /// Records that listeners are held, or that they have changed, in one write.
    pub(crate) fn record<'a, R: Recorded + 'a>(
        self: &Rc<Self>,
        listeners: impl IntoIterator<Item = &'a R>,
    ) {
        let mut text = Vec::new();
        self.add_records(&mut text, listeners);
        self.append(text);
    }

    /// Adds the records of new or changed listeners to the text that will be
    /// [appended](Self::append).
    pub(crate) fn add_records<'a, R: Recorded + 'a>(
        self: &Rc<Self>,
        text: &mut Vec<u8>,
        listeners: impl IntoIterator<Item = &'a R>,
    ) {
        if matches!(*self.place.borrow(), Place::Nowhere) {
            return;
        }
        for listener in listeners {
            if self.note(listener) {
                manifest::opened(text, &listener.entry());
            }
        }
    }

    /// Updates a listener's mark, and puts a new listener into the store. Returns false if nothing
    /// has changed.
    fn note<R: Recorded>(self: &Rc<Self>, listener: &R) -> bool {
        let edition = listener.edition();
        match &mut *listener.mark().borrow_mut() {
            Some(mark) if mark.edition == edition => return false,
            Some(mark) => {
                mark.edition = edition;
                self.outdate(1);
            }
            mark => {
                if let Place::Store(store) = &*self.place.borrow() {
                    store.keep(listener.inode(), Rc::clone(listener.fd()));
                }
                *mark = Some(self.mark(listener));
            }
        }
        true
    }

    /// Marks listeners that came from the store, where they still are.
    pub(crate) fn has<'a, R: Recorded + 'a>(
        self: &Rc<Self>,
        listeners: impl IntoIterator<Item = &'a R>,
    ) {
        for listener in listeners {
            listener.mark().borrow_mut().get_or_insert_with(|| self.mark(listener));
        }
    }

    fn mark<R: Recorded>(self: &Rc<Self>, listener: &R) -> Mark {
        let (inode, cookie, edition) = (listener.inode(), listener.cookie(), listener.edition());
        Mark { ledger: Rc::clone(self), inode, cookie, edition }
    }

    /// Records the progress of a service.
    pub(crate) fn record_service(&self, service: &Record) {
        let mut text = Vec::new();
        manifest::service(&mut text, service);
        self.outdate(1);
        self.append(text);
    }

    /// Writes records, behind those of listeners closed before.
    pub(crate) fn append(&self, text: Vec<u8>) {
        self.end_closed();
        if let Some(renewal) = &mut *self.renewal.borrow_mut() {
            renewal.since.extend_from_slice(&text);
        }
        self.write(text);
    }

    /// Records the end of closed listeners, those of one turn in one write.
    pub(crate) fn end_closed(&self) {
        let closed = self.closed.take();
        if closed.is_empty() {
            return;
        }
        let mut text = Vec::new();
        for (inode, cookie) in &closed {
            manifest::closed(&mut text, *inode, *cookie);
        }
        self.append(text);
        if let Place::Store(store) = &*self.place.borrow() {
            closed.iter().for_each(|(inode, _)| store.drop_listener(*inode));
        }
    }

    fn write(&self, text: Vec<u8>) {
        match &*self.place.borrow() {
            _ if text.is_empty() => {}
            Place::Nowhere => {}
            Place::File(file) => file.append(&text),
            Place::Store(store) => store.write(text),
        }
    }

    fn outdate(&self, count: usize) {
        self.outdated.set(self.outdated.get().saturating_add(count));
    }

    /// Whether all records should be or are being rewritten, with this many listeners held.
    pub(crate) fn is_outdated(&self, listeners: usize) -> bool {
        let outdated = || self.outdated.get() > listeners + OUTDATED;
        match &*self.place.borrow() {
            Place::Nowhere => false,
            _ if self.ending.get() => false,
            _ if self.renewal.borrow().is_some() => true,
            Place::File(file) => file.may_try_again().unwrap_or_else(outdated),
            Place::Store(store) => store.is_damaged() || outdated(),
        }
    }

    /// Begins to rewrite all records.
    pub(crate) fn begin(&self) {
        self.end_closed();
        self.outdated.set(0);
        *self.renewal.borrow_mut() = Some(Renewal::default());
    }

    /// The last listener rewritten so far. Begins a rewrite if none is in progress.
    pub(crate) fn renewed(&self) -> Option<ListenerId> {
        let begun = self.renewal.borrow().as_ref().map(|renewal| renewal.last);
        begun.unwrap_or_else(|| {
            self.begin();
            None
        })
    }

    /// Rewrites the records of the next listeners.
    pub(crate) fn renew<R: Recorded>(self: &Rc<Self>, listeners: &[(ListenerId, &R)]) {
        // Until the new records replace them, the old records must have these too.
        let mut text = Vec::new();
        self.add_records(&mut text, listeners.iter().map(|(_, listener)| *listener));
        self.write(text);
        if let Some(renewal) = &mut *self.renewal.borrow_mut() {
            listeners.iter().for_each(|(_, listener)| renewal.listeners.push(&listener.entry()));
            renewal.last = listeners.last().map(|(id, _)| *id).or(renewal.last);
        }
    }

    /// Replaces the records, once all listeners are rewritten, adding the rest of the manifest.
    pub(crate) fn replace(&self, mut manifest: Manifest) {
        self.end_closed();
        let Renewal { listeners, since, .. } = self.renewal.take().unwrap_or_default();
        match &*self.place.borrow() {
            Place::Nowhere => {}
            Place::File(file) => file.rewrite(&manifest.encode_with(&listeners, &since)),
            Place::Store(store) => {
                let name = Store::new_name();
                manifest.header.store = Some(name.clone());
                store.rewrite(name, &manifest.encode_with(&listeners, &since));
            }
        }
    }

    /// Whether the service manager has everything that was queued for it.
    pub(crate) fn is_settled(&self) -> bool {
        self.store().is_none_or(|store| store.is_settled())
    }

    /// Waits until the service manager has everything queued for it at the time of the call.
    pub(crate) async fn settled(&self) {
        let store = self.store();
        if let Some(store) = store {
            store.settled().await;
        }
    }

    /// Leaves the records as they are from now on.
    pub(crate) fn end(&self) {
        self.end_closed();
        self.ending.set(true);
    }

    /// The problem that keeps the records from being written, if there is one.
    pub(crate) fn problem(&self) -> Option<Problem> {
        self.file()?.problem()
    }

    /// Sends to the store what could not be sent at once, for as long as the broker runs.
    pub(crate) async fn keep_store(&self) -> io::Result<()> {
        let store = self.store();
        match store {
            Some(store) => store.run().await,
            None => Ok(()),
        }
    }
}

/// What was written last about a listener. Dropping it notes the listener as closed;
/// [`Ledger::end_closed`] must follow.
#[derive(Debug)]
pub(crate) struct Mark {
    ledger: Rc<Ledger>,
    inode: u64,
    cookie: u64,
    edition: u32,
}

impl Drop for Mark {
    fn drop(&mut self) {
        if self.ledger.ending.get() {
            return;
        }
        self.ledger.outdate(2);
        self.ledger.closed.borrow_mut().push((self.inode, self.cookie));
    }
}
