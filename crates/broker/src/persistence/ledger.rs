//! The records for the next broker: one of each listener, in the [state
//! file](super::file) or beside the [service manager's store](super::store).
//!
//! A listener is recorded when it is opened and again when something of it has changed; its [`Mark`] tells
//! what was written last, and writes the record of its end when it is dropped.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bindonce_core::succession::Record;
use bindonce_wire::manifest::{self, Entry, Manifest};
use bindonce_wire::result::Problem;

use super::file::StateFile;
use super::store::Store;

/// So many outdated records are carried along before all is written anew.
const OUTDATED: usize = 1024;

/// A listener that can be written down.
pub(crate) trait Recorded {
    /// Another number whenever its record would be another.
    fn edition(&self) -> u32;
    fn fd(&self) -> &Rc<OwnedFd>;
    /// Where its mark is kept.
    fn mark(&self) -> &RefCell<Option<Mark>>;
    fn inode(&self) -> u64;
    fn cookie(&self) -> u64;
    /// What the record says.
    fn entry(&self) -> Entry;
}

/// Where it is written.
#[derive(Debug, Default)]
enum Place {
    #[default]
    Nowhere,
    File(Rc<StateFile>),
    Store(Rc<Store>),
}

/// The records of one broker.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    place: RefCell<Place>,
    /// Records that later ones have replaced.
    outdated: Cell<usize>,
    /// The broker ends or becomes another image: the records stay.
    ending: Cell<bool>,
}

impl Ledger {
    /// From now on it is kept in the service manager's store.
    pub(crate) fn keep_in_store(&self, store: Rc<Store>) {
        *self.place.borrow_mut() = Place::Store(store);
    }

    /// From now on it is kept in the state file.
    pub(crate) fn keep_in_file(&self, file: Rc<StateFile>) {
        *self.place.borrow_mut() = Place::File(file);
    }

    /// The service manager's store, if it is kept there.
    pub(crate) fn store(&self) -> Option<Rc<Store>> {
        match &*self.place.borrow() {
            Place::Store(store) => Some(Rc::clone(store)),
            _ => None,
        }
    }

    /// The state file, if it is kept there.
    pub(crate) fn file(&self) -> Option<Rc<StateFile>> {
        match &*self.place.borrow() {
            Place::File(file) => Some(Rc::clone(file)),
            _ => None,
        }
    }

    /// Notes that listeners are held, or that something of them is new, in one write.
    pub(crate) fn record<'a, R: Recorded + 'a>(
        self: &Rc<Self>,
        listeners: impl IntoIterator<Item = &'a R>,
    ) {
        self.append(self.records(listeners));
    }

    /// The records of these that are new, to be [appended](Self::append).
    pub(crate) fn records<'a, R: Recorded + 'a>(
        self: &Rc<Self>,
        listeners: impl IntoIterator<Item = &'a R>,
    ) -> Vec<u8> {
        let mut text = Vec::new();
        if matches!(*self.place.borrow(), Place::Nowhere) {
            return text;
        }
        for listener in listeners {
            if self.note(listener) {
                manifest::opened(&mut text, &listener.entry());
            }
        }
        text
    }

    /// Brings a listener's mark up to date, and the listener into the store. False if nothing of it is
    /// new.
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

    /// Notes that these came from the store, where they still are.
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

    /// Notes how far a service is.
    pub(crate) fn record_service(&self, service: &Record) {
        let mut text = Vec::new();
        manifest::service(&mut text, service);
        self.outdate(1);
        self.append(text);
    }

    /// Writes records.
    pub(crate) fn append(&self, text: Vec<u8>) {
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

    /// Whether all should be written anew, where so many listeners are held.
    pub(crate) fn is_outdated(&self, listeners: usize) -> bool {
        let outdated = || self.outdated.get() > listeners + OUTDATED;
        match &*self.place.borrow() {
            Place::Nowhere => false,
            _ if self.ending.get() => false,
            Place::File(file) => file.may_try_again().unwrap_or_else(outdated),
            Place::Store(store) => store.is_damaged() || outdated(),
        }
    }

    /// Writes all anew; these are the listeners that it tells of.
    pub(crate) fn rewrite<'a, R: Recorded + 'a>(
        self: &Rc<Self>,
        manifest: Manifest,
        listeners: impl IntoIterator<Item = &'a R>,
    ) {
        self.outdated.set(0);
        for listener in listeners {
            self.note(listener);
        }
        self.outdated.set(0);
        match &*self.place.borrow() {
            Place::Nowhere => {}
            Place::File(file) => file.rewrite(&manifest),
            Place::Store(store) => store.rewrite(manifest),
        }
    }

    /// Whether the service manager has all that is for it.
    pub(crate) fn is_settled(&self) -> bool {
        self.store().is_none_or(|store| store.is_settled())
    }

    /// Waits until the service manager has all that was for it when this was asked.
    pub(crate) async fn settled(&self) {
        let store = self.store();
        if let Some(store) = store {
            store.settled().await;
        }
    }

    /// The records stay as they are from now on.
    pub(crate) fn end(&self) {
        self.ending.set(true);
    }

    /// The problem that keeps it from being written, if there is one.
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

/// What was written last of a listener, until this is dropped.
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
        let mut text = Vec::new();
        manifest::closed(&mut text, self.inode, self.cookie);
        self.ledger.outdate(2);
        self.ledger.append(text);
        if let Place::Store(store) = &*self.ledger.place.borrow() {
            store.drop_listener(self.inode);
        }
    }
}
