//! The broker's state, and how the registry's decisions are performed.
//!
//! Everything here runs to its end without giving way to another task, so the
//! registry never has more than one claim in hand.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use bindonce_core::listener::Listener;
use bindonce_core::listener::Wanted;
use bindonce_core::policy::{Peer, Policy, Rule};
use bindonce_core::registry::{
    Action, Change, Closing, ConnectionId, Event, Label, Lease, ListenerId, Opened, Phase, Refusal,
    Registry, Want,
};
use bindonce_core::time::Timestamp;
use bindonce_sys::limits;
use bindonce_sys::listen::{self, UnixPath};
use bindonce_wire::manifest::Entry;

use crate::answer;
use crate::config::Limits;
use crate::connection::{InFlight, Link};
use crate::guard::{self, Care, Guard};
use crate::records::{Noted, Records};
use crate::recovery::Gate;
use crate::store::{Kept, Store};
use crate::upgrade::Upgrade;

/// Descriptors kept free for connections and for probing UNIX paths when a
/// claim is measured against the limit.
const SPARE: u64 = 32;

/// More listeners than this that are opened or closed at once get one line in the log.
const LOGGED_ONE_BY_ONE: usize = 16;

/// A listener's socket. A reply that is on its way shares it.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) fd: Rc<OwnedFd>,
    /// What a reply says of it beside its name, written once.
    pub(crate) described: Box<str>,
    pub(crate) care: Care,
    /// Its place in the service manager's store; boxed, because most brokers have none.
    pub(crate) kept: RefCell<Option<Box<Kept>>>,
    /// Whose claim created it, for as long as it is held.
    pub(crate) owned: Option<Owned>,
    /// Its place in the state file.
    pub(crate) noted: RefCell<Option<Box<Noted>>>,
    pub(crate) path: Option<UnixPath>,
}

/// One listener of a user's count.
#[derive(Debug)]
pub(crate) struct Owned {
    uid: u32,
    counts: Rc<RefCell<HashMap<u32, usize>>>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(count) = self.counts.borrow_mut().get_mut(&self.uid) {
            *count -= 1;
        }
    }
}

/// What one broker knows.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) registry: Registry<Socket>,
    pub(crate) policy: Policy,
    pub(crate) guard: Rc<Guard>,
    /// Every connection that is being served.
    pub(crate) links: BTreeMap<ConnectionId, Rc<Link>>,
    pub(crate) upgrade: Rc<Upgrade>,
    /// Where listeners are written down for the broker after this one; none with a `store`.
    pub(crate) records: Option<Rc<Records>>,
    /// Listeners of the broker before that have not been had back.
    pub(crate) missing: Vec<Entry>,
    pub(crate) gate: Rc<Gate>,
    pub(crate) limits: Limits,
    pub(crate) in_flight: Rc<InFlight>,
    /// How many listeners claims of each user have created.
    owned: Rc<RefCell<HashMap<u32, usize>>>,
    /// Where listeners outlive this process; none without a service manager.
    pub(crate) store: Option<Rc<Store>>,
    /// Path of the control socket.
    pub(crate) socket: PathBuf,
    /// Its file, if it stays for the next broker.
    pub(crate) control: Option<UnixPath>,
    pub(crate) since: Timestamp,
    /// The soft limit on descriptors.
    pub(crate) descriptor_limit: u64,
    /// Descriptors that are open beside listeners and connections.
    pub(crate) other_descriptors: u64,
    somaxconn: u32,
    pub(crate) next_connection: u64,
    /// What was claimed and is not watched yet.
    unsettled: Vec<ListenerId>,
}

/// Why a claim got nothing.
#[derive(Debug)]
pub(crate) enum Denied {
    /// The registry refused it.
    Refused(Refusal),
    /// A socket could not be opened; this listener's.
    NotOpened(Box<Listener>, bindonce_sys::Error),
    /// A socket could not be changed; this listener's. All are as they were.
    NotChanged(Box<Listener>, bindonce_sys::Error),
    /// There would be more listeners than the configuration allows.
    TooMany {
        /// The limit's name.
        limit: &'static str,
        /// Its value.
        most: usize,
    },
    /// The sockets would not fit under RLIMIT_NOFILE.
    Limit {
        /// How many were to be opened.
        need: usize,
        /// How many descriptors are open.
        open: u64,
        /// The limit.
        limit: u64,
    },
}

impl State {
    /// An empty broker. Descriptors that are open now count as taken for good.
    pub(crate) fn new(
        socket: PathBuf,
        owner: u32,
        descriptor_limit: u64,
        guard: Rc<Guard>,
    ) -> Self {
        let open = std::fs::read_dir("/proc/self/fd").map_or(16, Iterator::count);
        Self {
            registry: Registry::default(),
            policy: Policy::owner_only(owner),
            guard,
            links: BTreeMap::new(),
            upgrade: Rc::default(),
            records: None,
            missing: Vec::new(),
            gate: Rc::default(),
            limits: Limits::default(),
            in_flight: Rc::default(),
            owned: Rc::default(),
            store: None,
            socket,
            control: None,
            since: now(),
            descriptor_limit,
            other_descriptors: open as u64,
            somaxconn: limits::somaxconn(),
            next_connection: 0,
            unsettled: Vec::new(),
        }
    }

    /// Takes rules and limits, from the next request and the next connection on.
    pub(crate) fn regulate(&mut self, rules: Vec<Rule>, limits: Limits) {
        self.policy = self.policy.clone().with_rules(rules);
        self.in_flight.limit.set(limits.descriptors_in_flight);
        self.limits = limits;
    }

    /// Enters a connection.
    pub(crate) fn connect(&mut self, peer: Peer) -> ConnectionId {
        let id = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let actions = self.registry.on(now(), Event::Connected(id, peer));
        close_all(actions);
        id
    }

    /// Ends a connection.
    pub(crate) fn disconnect(&mut self, id: ConnectionId) {
        self.links.remove(&id);
        let actions = self.registry.on(now(), Event::Gone(id));
        close_all(actions);
    }

    /// Says which generation a connection stands for.
    pub(crate) fn join(&mut self, id: ConnectionId, label: Label) {
        tracing::debug!(
            service = %label.service, generation = label.generation, pid = label.pid,
            phase = ?label.phase, "generation joined"
        );
        let serves = label.phase == Phase::Serving;
        let who = format!("{} generation {}", label.service, label.generation);
        let actions = self.registry.on(now(), Event::Join(id, label));
        close_all(actions);
        if serves {
            self.registry.leased(id).for_each(|held| {
                guard::notice(held, &who);
                self.record(held);
            });
        }
    }

    /// Opens a listener anew, because its socket is beyond repair. Gives the inode
    /// of the new one; None if there is no such listener.
    pub(crate) fn replace(&mut self, inode: u64) -> Result<Option<u64>, bindonce_sys::Error> {
        let Some((id, held)) = self.registry.by_inode(inode) else { return Ok(None) };
        let listener = held.listener.clone();
        let opened = self.opened(&listener, listen::open(&listener)?);
        opened.handle.care.begin(&opened.handle.fd, &listener.address);
        let inode = opened.inode;
        let actions = self.registry.on(now(), Event::Replace(id, opened));
        close_all(actions);
        if let Some(held) = self.registry.held(id) {
            self.record(held);
        }
        Ok(Some(inode))
    }

    /// Closes listeners; gives their names.
    pub(crate) fn release(
        &mut self,
        id: ConnectionId,
        wanted: Vec<Wanted>,
    ) -> Result<Vec<String>, Refusal> {
        let mut outcome = Ok(Vec::new());
        let mut rest = Vec::new();
        for action in self.registry.on(now(), Event::Release(id, wanted)) {
            match action {
                Action::Released(_, names) => outcome = Ok(names),
                Action::Refuse(_, refusal) => outcome = Err(refusal),
                other => rest.push(other),
            }
        }
        close_all(rest);
        outcome
    }

    /// Finds or opens listeners, all or none.
    pub(crate) fn claim(
        &mut self,
        id: ConnectionId,
        wants: Vec<Want>,
    ) -> Result<Vec<Lease>, Denied> {
        let outcome = self.claim_unsettled(id, wants);
        self.settle();
        outcome
    }

    /// Begins to watch what has been claimed and is new, which may come after the reply so
    /// long as nothing else runs in between: a listener that has left LISTEN before the
    /// kernel watches it is told of as soon as it does. (Its record may not: a client that
    /// has a listener may see this process killed at once, and the next broker must know.)
    pub(crate) fn settle(&mut self) {
        for id in self.unsettled.drain(..) {
            if let Some(held) = self.registry.held(id) {
                held.opened.handle.care.begin(&held.opened.handle.fd, &held.listener.address);
            }
        }
    }

    /// Finds or opens listeners, all or none. [`State::settle`] must follow before anything
    /// else can run.
    pub(crate) fn claim_unsettled(
        &mut self,
        id: ConnectionId,
        wants: Vec<Want>,
    ) -> Result<Vec<Lease>, Denied> {
        let mut outcome = Ok(Vec::new());
        let mut failure = None;
        let mut rest = Vec::new();
        let mut actions = VecDeque::from(self.registry.on(now(), Event::Claim(id, wants)));
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Open(_, listeners) => {
                    let event = match self.open(id, listeners) {
                        Ok(opened) => Event::Opened(opened),
                        Err((opened, denied)) => {
                            failure = Some(denied);
                            Event::OpenFailed(opened)
                        }
                    };
                    actions.extend(self.registry.on(now(), event));
                }
                Action::Change(_, changes) => {
                    let event = match self.change(&changes) {
                        Ok(backlogs) => Event::Changed(backlogs),
                        Err(denied) => {
                            failure = Some(denied);
                            Event::ChangeFailed
                        }
                    };
                    actions.extend(self.registry.on(now(), event));
                }
                Action::Grant(_, leases) => {
                    self.log_opened(id, &leases);
                    self.record_all(&leases);
                    self.forget_bound(&leases);
                    let created = leases.iter().filter(|lease| lease.created);
                    self.unsettled.extend(created.map(|lease| lease.listener));
                    outcome = Ok(leases);
                }
                Action::Refuse(_, refusal) => outcome = Err(Denied::Refused(refusal)),
                other => rest.push(other),
            }
        }
        close_all(rest);
        match failure {
            Some(denied) => Err(denied),
            None => outcome,
        }
    }

    /// Tells of the listeners that a claim has created: each of a few, or how
    /// many there are and the names of the first and the last.
    fn log_opened(&self, id: ConnectionId, leases: &[Lease]) {
        let created: Vec<&Lease> = leases.iter().filter(|lease| lease.created).collect();
        let (Some(first), Some(last)) = (created.first(), created.last()) else { return };
        let caller = self.registry.caller(id);
        let pid = caller.map(|(peer, label)| label.map_or(peer.pid, |label| label.pid));
        let label = caller.and_then(|(_, label)| label);
        let service = label.map(|label| label.service.as_str());
        let generation = label.map(|label| label.generation);
        let name = |lease: &Lease| {
            self.registry.held(lease.listener).map(|held| held.listener.label()).unwrap_or_default()
        };
        if created.len() > LOGGED_ONE_BY_ONE {
            tracing::info!(
                first = name(first),
                last = name(last),
                count = created.len(),
                service,
                generation,
                pid,
                "listeners opened"
            );
            return;
        }
        for held in created.iter().filter_map(|lease| self.registry.held(lease.listener)) {
            tracing::info!(
                listener = held.listener.label(), address = %held.listener.address,
                bound = %held.opened.bound, inode = held.opened.inode, tentative = held.tentative,
                service, generation, pid, "listener opened"
            );
        }
    }

    #[allow(clippy::type_complexity)] // What was opened, and why the rest was not.
    fn open(
        &self,
        id: ConnectionId,
        listeners: Vec<Listener>,
    ) -> Result<Vec<Opened<Socket>>, (Vec<Opened<Socket>>, Denied)> {
        let need = listeners.len();
        let uid = self.registry.caller(id).map_or(0, |(peer, _)| peer.uid);
        let owned = self.owned.borrow().get(&uid).copied().unwrap_or(0);
        for (limit, most, has) in [
            ("listeners", self.limits.listeners, self.registry.len()),
            ("listeners_per_user", self.limits.listeners_per_user, owned),
        ] {
            if has.saturating_add(need) > most {
                return Err((Vec::new(), Denied::TooMany { limit, most }));
            }
        }
        let open = self.other_descriptors
            + self.registry.len() as u64
            + self.registry.connections() as u64;
        let limit = self.descriptor_limit;
        if open.saturating_add(need as u64).saturating_add(SPARE) > limit {
            return Err((Vec::new(), Denied::Limit { need, open, limit }));
        }
        let mut opened = Vec::with_capacity(need);
        for listener in listeners {
            match listen::open(&listener) {
                Ok(socket) => {
                    let mut socket = self.opened(&listener, socket);
                    *self.owned.borrow_mut().entry(uid).or_default() += 1;
                    let counts = Rc::clone(&self.owned);
                    socket.handle.owned = Some(Owned { uid, counts });
                    opened.push(socket);
                }
                Err(error) => return Err((opened, Denied::NotOpened(Box::new(listener), error))),
            }
        }
        Ok(opened)
    }

    /// Changes sockets in place, all or none; gives the backlog of each.
    fn change(&self, changes: &[Change]) -> Result<Vec<u32>, Denied> {
        let mut done = Vec::with_capacity(changes.len());
        let mut backlogs = Vec::with_capacity(changes.len());
        for change in changes {
            let Some(held) = self.registry.held(change.listener) else { continue };
            let (socket, backlog) = (&held.opened.handle, held.opened.backlog);
            let (fd, path) = (socket.fd.as_fd(), socket.path.as_ref());
            match listen::change(fd, path, &held.listener, backlog, &change.options) {
                Ok(before) => done.push((held, before)),
                Err(error) => {
                    for (held, before) in done.into_iter().rev() {
                        let socket = &held.opened.handle;
                        before.undo(socket.fd.as_fd(), socket.path.as_ref(), &held.listener);
                    }
                    let listener = Box::new(held.listener.clone());
                    return Err(Denied::NotChanged(listener, error));
                }
            }
            backlogs.push(match change.options.backlog {
                Some(wanted) if held.listener.options.backlog != Some(wanted) => {
                    wanted.min(self.somaxconn)
                }
                _ => backlog,
            });
            tracing::info!(
                listener = held.listener.label(), was = %held.listener.options,
                now = %change.options, "options changed in place"
            );
        }
        Ok(backlogs)
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
                care: self.guard.care(socket.inode),
                kept: RefCell::new(None),
                noted: RefCell::new(None),
                owned: None,
                fd,
                described: answer::describe(&listener.address, &socket.bound, socket.inode),
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

    /// Gives up every listener, and removes the UNIX paths: an orderly end. What a
    /// service manager keeps stays as it is for the next broker.
    pub(crate) fn close_everything(&mut self) {
        if let Some(store) = &self.store {
            store.end();
        }
        if let Some(records) = &self.records {
            records.remove();
        }
        for held in std::mem::take(&mut self.registry).into_held() {
            if self.store.is_none() {
                unlink(&held.opened.handle);
            }
        }
    }
}

/// Closes the sockets of every `Close`; other actions have been dealt with. A
/// few get a line each in the log, many that end for one reason get one line.
pub(crate) fn close_all(actions: Vec<Action<Socket>>) {
    let mut closed: Vec<(Closing, Listener)> = Vec::new();
    for action in actions {
        if let Action::Close(socket, listener, why) = action {
            unlink(&socket);
            closed.push((why, listener));
        }
    }
    for group in closed.chunk_by(|one, other| one.0 == other.0) {
        match group {
            [(why, first), .., (_, last)] if group.len() > LOGGED_ONE_BY_ONE => tracing::info!(
                first = first.label(),
                last = last.label(),
                count = group.len(),
                why = reason(*why),
                "listeners closed"
            ),
            few => few.iter().for_each(|(why, listener)| log_closed(*why, listener)),
        }
    }
}

fn log_closed(why: Closing, listener: &Listener) {
    let (listener, reason) = (listener.label(), reason(why));
    match why {
        Closing::Replaced => tracing::warn!(listener, why = reason, "listener closed"),
        _ => tracing::info!(listener, why = reason, "listener closed"),
    }
}

fn reason(why: Closing) -> &'static str {
    match why {
        Closing::Released => "released",
        Closing::Unconfirmed => "its claim was never confirmed",
        Closing::Replaced => "its socket was beyond repair, and another replaces it",
        Closing::NeverHeld => "the rest of its claim failed",
    }
}

fn unlink(socket: &Socket) {
    if let Some(path) = &socket.path
        && let Err(error) = listen::unlink_if_ours(path)
    {
        tracing::warn!(path = %path.path.display(), %error, "cannot remove a UNIX path");
    }
}

/// The time of day.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
