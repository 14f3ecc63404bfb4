//! One broker: its parts, and the verbs that concern more than one of them.
//!
//! Each part owns its data and imports no part above it: [`Access`] decides who may do what,
//! [`Listeners`] holds the sockets, [`Clients`] the connections, [`Succession`] the order of
//! generations, [`Persistence`] what outlives the process. The files that import this one perform
//! the requests. Nothing here yields to another task.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::PathBuf;
use std::rc::Rc;

use bindonce_core::event::Kind;
use bindonce_core::listener::{Key, Wanted};
use bindonce_core::policy::{Peer, Rule};
use bindonce_core::registry::{ConnectionId, Holder, Lease, Registry};
use bindonce_core::succession::Record;
use bindonce_core::time::Timestamp;
use bindonce_daemon::rpc::Clients;
use bindonce_daemon::{Happening, Journal, Reporter};
use bindonce_sys::clock::now;
use bindonce_sys::identity;
use bindonce_sys::listen::UnixPath;
use bindonce_wire::manifest::{self, Manifest};

use crate::access::Access;
use crate::answering::Answering;
use crate::config::Limits;
use crate::inquiry::Inquiry;
use crate::listeners::watch::Guard;
use crate::listeners::{self, Listeners, unlink};
use crate::outlived::Outlived;
use crate::persistence::restore::Found;
use crate::persistence::{Persistence, Recorded as _};
use crate::succession::Succession;
use crate::upgrade::requested::Upgrade;

/// Records rewritten in one turn, at about a microsecond each.
const RENEWED_AT_ONCE: usize = 256;

/// Version of this broker, as reported to clients.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The parts of one broker.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) access: Access,
    pub(crate) listeners: Listeners,
    pub(crate) clients: Rc<Clients>,
    pub(crate) answering: Answering,
    pub(crate) succession: Succession,
    pub(crate) persistence: Persistence,
    pub(crate) upgrade: Rc<Upgrade>,
    pub(crate) reporter: Rc<Reporter>,
    /// Generations that outlived their supervisors.
    pub(crate) outlived: Rc<Outlived>,
    /// Finds the process that has an address, for error messages.
    pub(crate) inquiry: Rc<Inquiry>,
    /// Listeners of the configuration that could not be bound.
    pub(crate) not_bound: Vec<NotBound>,
    pub(crate) endpoint: Endpoint,
}

/// Where clients connect.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Path of the control socket.
    pub(crate) socket: PathBuf,
    /// The socket's file. By it the next broker or image recognises the control socket.
    pub(crate) file: Option<UnixPath>,
    /// When the first image of this process started.
    pub(crate) since: Timestamp,
}

/// A listener of the configuration that could not be bound.
#[derive(Debug)]
pub(crate) struct NotBound {
    pub(crate) wanted: Wanted,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Broker {
    /// Descriptors that are open now count as taken.
    pub(crate) fn new(
        socket: PathBuf,
        owner: u32,
        descriptor_limit: u64,
        guard: Rc<Guard>,
        journal: Rc<Journal>,
    ) -> Self {
        let open = std::fs::read_dir("/proc/self/fd").map_or(16, Iterator::count);
        let reporter = Reporter::new(journal, owner);
        let persistence = Persistence::default();
        let default = Limits::default();
        let limits = listeners::Limits {
            all: default.listeners,
            per_user: default.listeners_per_user,
            leases: default.leases_per_user,
            descriptors: descriptor_limit,
            other_descriptors: open as u64,
        };
        let ledger = Rc::clone(&persistence.ledger);
        Self {
            access: Access::owner_only(owner, Rc::clone(&reporter)),
            listeners: Listeners::new(guard, ledger, Rc::clone(&reporter), limits),
            clients: Clients::new(default.clients),
            answering: Answering::default(),
            succession: Succession::default(),
            persistence,
            upgrade: Rc::default(),
            reporter,
            outlived: Rc::default(),
            inquiry: Rc::default(),
            not_bound: Vec::new(),
            endpoint: Endpoint { socket, file: None, since: now() },
        }
    }

    /// Sets rules and limits. They apply from the next request and the next connection.
    pub(crate) fn configure(&mut self, rules: Vec<Rule>, mut limits: Limits) {
        // The other half is for descriptors sent before a crash, or by another process of this
        // user.
        let unreceived = bindonce_sys::limits::nofile().0 / 2;
        limits.clients.descriptors_unreceived = usize::try_from(unreceived).unwrap_or(usize::MAX);
        self.access.set_rules(rules);
        self.listeners.limits.all = limits.listeners;
        self.listeners.limits.per_user = limits.listeners_per_user;
        self.listeners.limits.leases = limits.leases_per_user;
        self.succession.set_patience(limits.retire_time);
        self.clients.limit(limits.clients);
    }

    /// Registers a connection.
    pub(crate) fn connect(&mut self, peer: Peer) -> ConnectionId {
        let id = self.clients.number();
        self.listeners.connect(id, peer);
        id
    }

    /// Registers a connection of the broker itself.
    pub(crate) fn connect_itself(&mut self) -> ConnectionId {
        let uid = nix::unistd::geteuid().as_raw();
        self.connect(Peer { pid: std::process::id(), uid, gid: 0 })
    }

    /// Does part of the work that may follow the reply to a claim: watches new listeners, rewrites
    /// outdated records and frees the elements of decided claims. Returns true if more is left. The
    /// record of a new listener may not wait for this: this process may be killed as soon as a
    /// client has the listener, and the next broker must know it.
    pub(crate) fn settle(&mut self) -> bool {
        let renews = self.is_outdated() && self.renew(RENEWED_AT_ONCE);
        let frees = self.answering.spent.free_some();
        self.listeners.watch_new() || renews || frees
    }

    /// Does the first part of that work after a reply. The rest gets turns of its own.
    pub(crate) fn replied(&mut self) {
        let frees = self.answering.spent.free_some();
        if self.listeners.watch_new() || frees {
            self.listeners.guard.unsettled.notify_one();
        }
        self.tidy();
    }

    /// Removes from the missing listeners those that a claim has bound.
    pub(crate) fn claimed(&mut self, leases: &[Lease]) {
        if self.persistence.missing.is_empty() {
            return;
        }
        let created = leases.iter().filter(|lease| lease.created);
        let held = created.filter_map(|lease| self.listeners.registry.held(lease.listener));
        let keys: HashSet<Key> = held.map(|held| held.listener.key()).collect();
        self.persistence.missing.bound(&keys);
    }

    /// Registers recovered listeners. If no owner is recorded, they count for the user that gave
    /// them back.
    pub(crate) fn recovered(&mut self, found: Vec<Found>, giver: Option<u32>) {
        let inodes: HashSet<u64> = found.iter().map(|found| found.socket.inode).collect();
        if inodes.is_empty() {
            return;
        }
        self.persistence.missing.recovered(&inodes);
        let labels: Vec<_> = found.iter().map(|found| found.listener.label()).collect();
        let text = format!("{} listeners are held again: {}", labels.len(), labels.join(" "));
        self.reporter.record(Happening::new(Kind::ListenerRestored, text));
        self.listeners.adopt(found, false, giver);
        self.listeners.record(&inodes);
        self.watch_survivors();
    }

    /// Watches the processes again for which an earlier broker kept listeners.
    pub(crate) fn watch_survivors(&self) {
        let kept = self.listeners.registry.iter().filter_map(|(_, held)| held.outlived);
        self.outlived.live_on(kept);
    }

    /// Records the last generation of a service, for the next broker.
    pub(crate) fn record_service(&self, service: &Record) {
        self.persistence.ledger.record_service(service);
        self.tidy();
    }

    /// Schedules a rewrite of the records, in later turns, if too many are outdated.
    fn tidy(&self) {
        if self.is_outdated() {
            self.listeners.guard.unsettled.notify_one();
        }
    }

    fn is_outdated(&self) -> bool {
        self.persistence.ledger.is_outdated(self.listeners.registry.len())
    }

    /// Rewrites the records at once: listeners that are held, and listeners not yet recovered.
    pub(crate) fn rewrite(&self) {
        self.persistence.ledger.begin();
        self.renew(usize::MAX);
    }

    /// Rewrites the records of up to `most` listeners. Returns true if more are left; after the
    /// last one the new records replace the old ones.
    fn renew(&self, most: usize) -> bool {
        let ledger = &self.persistence.ledger;
        let some: Vec<_> = self.listeners.registry.after(ledger.renewed()).take(most).collect();
        ledger.renew(&some);
        let more = some.len() == most;
        if !more {
            let mut manifest = self.manifest();
            manifest.listeners.clone_from(&self.persistence.missing.entries);
            ledger.replace(manifest);
        }
        more
    }

    /// The record of the broker and of the services, without listeners.
    fn manifest(&self) -> Manifest {
        let mut manifest = Manifest::new(VERSION);
        manifest.header.broker.since = self.endpoint.since.0;
        manifest.header.broker.boot = identity::boot();
        manifest.header.broker.upgrades = self.upgrade.count();
        let file =
            |path: &UnixPath| manifest::File { dev: path.dev, ino: path.ino, uid: None, gid: None };
        manifest.header.control = self.endpoint.file.as_ref().map(file);
        (manifest.services, manifest.header.floor) = self.succession.written();
        manifest
    }

    /// The record of everything that is held.
    pub(crate) fn whole_manifest(&self) -> Manifest {
        let held = self.listeners.registry.iter();
        let listeners = held.map(|(_, held)| held.entry()).collect();
        Manifest { listeners, ..self.manifest() }
    }

    /// Closes every listener and removes the UNIX paths, at an orderly end. Listeners that the
    /// service manager keeps or a client uses stay for the next broker.
    pub(crate) fn close(&mut self) {
        let stored = self.persistence.ledger.store().is_some();
        let used = self.end_ledger();
        if !stored && used.is_empty() {
            self.reporter.journal.remove();
        }
        let registry: Registry<_> = std::mem::take(&mut self.listeners.registry);
        for held in registry.into_held() {
            if !stored && !used.contains(&held.opened.inode) {
                unlink(held.opened.handle.path.as_ref());
            }
        }
    }

    /// Ends the records. While clients use listeners the state file stays, so that the next broker
    /// recovers them. Returns the inodes of those listeners.
    fn end_ledger(&self) -> HashSet<u64> {
        let ledger = &self.persistence.ledger;
        let Some(file) = ledger.file() else {
            ledger.end();
            return HashSet::new();
        };
        let mut manifest = self.whole_manifest();
        manifest.header.ended = true;
        let views = self.listeners.registry.list();
        // A listener that only the broker uses, for its metrics, ends with the broker.
        let other = |holder: &Holder| holder.peer.pid != std::process::id();
        let used = views.iter().filter(|view| {
            let is_used = view.held.outlived.is_some() || view.holders.iter().any(other);
            is_used && !view.held.tentative
        });
        let used: HashSet<u64> = used.map(|view| view.held.opened.inode).collect();
        manifest.listeners.retain(|entry| used.contains(&entry.inode));
        manifest.listeners.extend(self.persistence.missing.entries.iter().cloned());
        if manifest.listeners.is_empty() && manifest.services.is_empty() {
            file.remove();
        } else {
            if !manifest.listeners.is_empty() {
                tracing::info!(
                    count = manifest.listeners.len(),
                    "listeners are in use: recorded for the next broker"
                );
            }
            ledger.begin();
            ledger.replace(manifest);
        }
        ledger.end();
        used
    }
}

/// Retries writing a state file that could not be written, for as long as the broker runs.
pub(crate) async fn keep_file(broker: &RefCell<Broker>) {
    let Some(file) = broker.borrow().persistence.ledger.file() else { return };
    loop {
        file.retry(|| broker.borrow().rewrite()).await;
    }
}
