//! What is written down for the broker after this one: of each listener a record, in the
//! state file or beside the service manager's store, and all of it as one manifest.

use std::borrow::Cow;

use bindonce_core::registry::{Held, Lease};
use bindonce_sys::identity;
use bindonce_sys::listen::UnixPath;
use bindonce_wire::manifest::{self, Entry, Manifest};

use crate::answer;
use crate::socket::Socket;
use crate::state::State;

impl State {
    /// Notes that a listener is held, or that something about it is new.
    pub(crate) fn record(&self, held: &Held<Socket>) {
        if let Some(store) = &self.store {
            store.record(held);
        }
        if let Some(records) = &self.records {
            records.record([held]);
        }
    }

    /// Notes how far a service is, for the next broker.
    pub(crate) fn record_service(&self, service: &manifest::Service) {
        if let Some(store) = &self.store {
            store.record_service(service);
            if store.is_outdated(self.registry.len()) {
                self.write_manifest();
            }
        }
        if let Some(records) = &self.records {
            records.record_service(service);
            self.tidy_records();
        }
    }

    /// Notes what a claim got.
    pub(crate) fn record_all(&self, leases: &[Lease]) {
        if self.store.is_none() && self.records.is_none() {
            return;
        }
        let held = || leases.iter().filter_map(|lease| self.registry.held(lease.listener));
        if let Some(store) = &self.store {
            held().for_each(|held| store.record(held));
        }
        if let Some(records) = &self.records {
            records.record(held());
        }
    }

    /// Writes anew what is written down, if too much of it is outdated. That takes as long as the
    /// disk takes, so it comes after replies.
    pub(crate) fn tidy(&self) {
        self.tidy_records();
        if let Some(store) = &self.store
            && store.is_outdated(self.registry.len())
        {
            self.write_manifest();
        }
    }

    /// Writes the manifest anew, with every listener that is held.
    pub(crate) fn write_manifest(&self) {
        if let Some(store) = &self.store {
            store.rewrite(self.manifest());
        }
    }

    /// What is held, written down.
    pub(crate) fn manifest(&self) -> Manifest {
        let mut manifest = Manifest::new(answer::VERSION);
        manifest.header.since = self.since.0;
        manifest.header.boot = identity::boot();
        manifest.header.upgrades = self.upgrade.count();
        let file = |path: &UnixPath| manifest::File { dev: path.dev, ino: path.ino };
        manifest.header.control = self.control.as_ref().map(file);
        (manifest.services, manifest.header.floor) = self.succession.written();
        manifest.listeners =
            self.registry.list().iter().map(|view| entry(view.held).into_owned()).collect();
        manifest
    }
}

/// What the manifest says of a listener.
pub(crate) fn entry(held: &Held<Socket>) -> Entry<Cow<'_, str>> {
    let Held { opened, listener, .. } = held;
    let described = &opened.handle.described;
    let bare = listener.name.is_none() && listener.options.is_empty();
    let file = opened.handle.path.as_ref();
    Entry {
        listen: if bare { (&*described.address).into() } else { listener.to_string().into() },
        bound: described.bound().into(),
        inode: opened.inode,
        cookie: opened.cookie,
        backlog: opened.backlog,
        exclusive: opened.exclusive,
        since: held.since.0,
        tentative: held.tentative,
        file: file.map(|path| manifest::File { dev: path.dev, ino: path.ino }),
        descriptor: None,
    }
}
