//! Claims, performed: sockets are opened or changed as the registry decides, all of a claim
//! or none.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use bindonce_core::event::Kind;
use bindonce_core::listener::{Listener, Wanted};
use bindonce_core::registry::{
    Action, Change, ConnectionId, Event, Held, Lease, Neighbour, Opened, Overlap, Refusal, View,
    Want,
};
use bindonce_observe::Happening;
use bindonce_sys::Errno;
use bindonce_sys::listen::{self, Astray, can_go_astray};
use bindonce_wire::result::Problem;

use crate::closing::{self, LOGGED_ONE_BY_ONE};
use crate::socket::Socket;
use crate::state::{State, now};

/// Descriptors kept free for connections and for probing UNIX paths when a
/// claim is measured against the limit.
const SPARE: u64 = 32;

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

impl Denied {
    /// What is recorded of it.
    fn happening(&self) -> Happening {
        let (kind, text) = match self {
            Self::Refused(refusal) => (Kind::ClaimRefused, refusal.to_string()),
            Self::NotOpened(_, error) => (Kind::ClaimRefused, error.to_string()),
            Self::NotChanged(listener, error) => {
                (Kind::ClaimRefused, format!("{} cannot be changed: {error}", listener.label()))
            }
            Self::TooMany { limit, most } => {
                (Kind::LimitReached, format!("a claim would pass the limit {limit} = {most}"))
            }
            Self::Limit { need, open, limit } => (
                Kind::LimitReached,
                format!("{need} listeners do not fit: {open} of {limit} descriptors are open"),
            ),
        };
        Happening::new(kind, text)
    }
}

impl State {
    /// Says who brought something about.
    fn by(&self, id: ConnectionId, happening: Happening) -> Happening {
        let Some((peer, label)) = self.registry.caller(id) else { return happening };
        let pid = label.map_or(peer.pid, |label| label.pid);
        happening
            .pid(i32::try_from(pid).ok())
            .service(label.map(|label| label.service.as_str()))
            .generation(label.map(|label| label.generation))
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

    /// What may come after the reply to a claim, so long as nothing else runs in between: begins to
    /// watch what is new (a listener that has left LISTEN before the kernel watches it is told of
    /// as soon as it does), and tidies what is written down. The record of a listener may not come
    /// later: a client that has it may see this process killed at once, and the next broker must
    /// know.
    pub(crate) fn settle(&mut self) {
        self.tidy();
        for id in self.unsettled.drain(..) {
            if let Some(held) = self.registry.held(id) {
                held.opened.handle.care.begin(id, &held.opened.handle.fd, &held.listener.address);
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
        if let Err(denied) = self.find_again(&wants) {
            self.journal.record(self.by(id, denied.happening()));
            return Err(denied);
        }
        let mut outcome = Ok(Vec::new());
        let mut failure = None;
        let mut rest = Vec::new();
        let mut actions = VecDeque::from(self.registry.on(now(), Event::Claim(id, wants)));
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Open(_, listeners, overlaps) => {
                    let event = match self.open(id, listeners, &overlaps) {
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
                    let before = self.unsettled.len();
                    self.unsettled.extend(created.map(|lease| lease.listener));
                    let created = self.unsettled.len() - before;
                    self.counts.borrow_mut().granted(leases.len(), created);
                    outcome = Ok(leases);
                }
                Action::Refuse(_, refusal) => outcome = Err(Denied::Refused(refusal)),
                other => rest.push(other),
            }
        }
        self.close_all(rest);
        let outcome = match failure {
            Some(denied) => Err(denied),
            None => outcome,
        };
        if let Err(denied) = &outcome {
            self.journal.record(self.by(id, denied.happening()));
        }
        outcome
    }

    /// Binds anew those of the listeners asked for whose sockets lead nowhere: what has the old
    /// ones drains with them.
    fn find_again(&mut self, wants: &[Want]) -> Result<(), Denied> {
        for want in wants {
            let inodes: Vec<u64> = match &want.wanted {
                Wanted::Named(name) => {
                    self.registry.by_name(name).filter(is_astray).map(inode).into_iter().collect()
                }
                Wanted::Listen(spec) if can_go_astray(&spec.first) => {
                    let held = |one| self.registry.by_key(&one).filter(is_astray).map(inode);
                    spec.expand().filter_map(held).collect()
                }
                Wanted::Listen(_) => continue,
            };
            for inode in inodes {
                self.find_one_again(inode)?;
            }
        }
        Ok(())
    }

    fn find_one_again(&mut self, inode: u64) -> Result<(), Denied> {
        let Some((_, held)) = self.registry.by_inode(inode) else { return Ok(()) };
        let (listener, why) = (held.listener.clone(), astray(held));
        let why = why.map(|why| why.to_string()).unwrap_or_default();
        match self.replace(inode) {
            Ok(new) => {
                let listener = listener.label();
                tracing::warn!(listener, why, was = inode, inode = new, "listener bound anew");
                let text = format!("{listener} bound anew: {why}");
                self.journal.record(Happening::new(Kind::ListenerBound, text));
                Ok(())
            }
            // haproxy alone does without it, and serves the rest.
            Err(error) if error.errno() == Some(Errno::ENODEV as i32) => {
                tracing::error!(
                    listener = listener.label(), why, %error,
                    "listener is not reached, and cannot be bound anew yet"
                );
                Ok(())
            }
            Err(error) => Err(Denied::NotOpened(Box::new(listener), error)),
        }
    }

    /// Held listeners whose sockets lead nowhere, for those who can ask for them again.
    pub(crate) fn astray(&self) -> Vec<Problem> {
        let views = self.registry.list();
        let problem = |view: &View<'_, Socket>| {
            let (label, why) = (view.held.listener.label(), astray(view.held)?);
            let message = format!("{label} listens, but no client reaches it: {why}");
            let hint = "reload what uses it, or claim it again: it is then bound anew";
            Some(Problem::new("listener-unreachable", label, message, Some(hint.to_owned())))
        };
        views.iter().filter_map(problem).collect()
    }

    /// Tells of the listeners that a claim has created: each of a few, or how
    /// many there are and the names of the first and the last.
    fn log_opened(&self, id: ConnectionId, leases: &[Lease]) {
        let created: Vec<&Lease> = leases.iter().filter(|lease| lease.created).collect();
        let (Some(first), Some(last)) = (created.first(), created.last()) else { return };
        let caller = self.registry.caller(id);
        let uid = caller.map_or(0, |(peer, _)| peer.uid);
        let Some(left_out) = self.worth_a_line(uid, "opened") else { return };
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
                left_out,
                "listeners opened"
            );
            let (count, first, last) = (created.len(), name(first), name(last));
            let text = format!("{count} listeners bound, {first} to {last}");
            self.journal.record(self.by(id, Happening::new(Kind::ListenerBound, text)));
            return;
        }
        for held in created.iter().filter_map(|lease| self.registry.held(lease.listener)) {
            tracing::info!(
                listener = held.listener.label(), address = %held.listener.address,
                bound = %held.opened.bound, inode = held.opened.inode, tentative = held.tentative,
                service, generation, pid, left_out, "listener opened"
            );
            let text = format!("{} bound to {}", held.listener.label(), held.opened.bound);
            self.journal.record(self.by(id, Happening::new(Kind::ListenerBound, text)));
        }
    }

    /// Whether so many more listeners of a user's are within all limits.
    pub(crate) fn room(&self, uid: u32, need: usize) -> Result<(), Denied> {
        let owned = self.owned.borrow().get(&uid).copied().unwrap_or(0);
        for (limit, most, has) in [
            ("listeners", self.limits.listeners, self.registry.len()),
            ("listeners_per_user", self.limits.listeners_per_user, owned),
        ] {
            if has.saturating_add(need) > most && need != 0 {
                return Err(Denied::TooMany { limit, most });
            }
        }
        let open = self.other_descriptors
            + self.registry.len() as u64
            + self.registry.connections() as u64;
        let limit = self.descriptor_limit;
        if open.saturating_add(need as u64).saturating_add(SPARE) > limit && need != 0 {
            return Err(Denied::Limit { need, open, limit });
        }
        Ok(())
    }

    #[allow(clippy::type_complexity)] // What was opened, and why the rest was not.
    fn open(
        &self,
        id: ConnectionId,
        listeners: Vec<Listener>,
        overlaps: &[Overlap],
    ) -> Result<Vec<Opened<Socket>>, (Vec<Opened<Socket>>, Denied)> {
        let uid = self.registry.caller(id).map_or(0, |(peer, _)| peer.uid);
        self.room(uid, listeners.len()).map_err(|denied| (Vec::new(), denied))?;
        let listeners = Arc::new(listeners);
        let (sockets, failure) = if overlaps.is_empty() {
            let (sockets, outcome) = listen::open_all(&listeners);
            let failed = sockets.len();
            (sockets, outcome.err().map(|error| (failed, error)))
        } else {
            self.open_beside(&listeners, overlaps)
        };
        let opened: Vec<Opened<Socket>> = sockets
            .into_iter()
            .zip(&*listeners)
            .map(|(socket, listener)| {
                let mut socket = self.opened(listener, socket);
                socket.handle.owned = Some(self.owned(uid));
                socket
            })
            .collect();
        match failure.and_then(|(failed, error)| Some((listeners.get(failed)?, error))) {
            Some((failed, error)) => {
                Err((opened, Denied::NotOpened(Box::new(failed.clone()), error)))
            }
            None => Ok(opened),
        }
    }

    /// Opens listeners of which some overlap others, the most general first. All, or those
    /// before the first that is not open, and which one failed.
    fn open_beside(
        &self,
        listeners: &[Listener],
        overlaps: &[Overlap],
    ) -> (Vec<listen::Opened>, Option<(usize, bindonce_sys::Error)>) {
        let mut order: Vec<usize> = (0..listeners.len()).collect();
        order.sort_by_key(|index| listeners[*index].key().specificity());
        let mut opened: Vec<Option<listen::Opened>> = listeners.iter().map(|_| None).collect();
        let mut failure = None;
        for index in order {
            let from = overlaps.partition_point(|overlap| overlap.new < index);
            let others = overlaps[from..].iter().take_while(|overlap| overlap.new == index);
            let fds: Vec<BorrowedFd<'_>> = others
                .filter_map(|overlap| match overlap.other {
                    Neighbour::New(other) => opened[other].as_ref().map(|it| it.fd.as_fd()),
                    Neighbour::Held(id) => Some(self.registry.held(id)?.opened.handle.fd.as_fd()),
                })
                .collect();
            let outcome = if fds.is_empty() {
                listen::open(&listeners[index])
            } else {
                listen::open_beside(&listeners[index], &fds)
            };
            match outcome {
                Ok(socket) => opened[index] = Some(socket),
                Err(error) => {
                    failure = Some((index, error));
                    break;
                }
            }
        }
        let Some((index, error)) = failure else {
            return (opened.into_iter().flatten().collect(), None);
        };
        // Behind a hole nothing has its place.
        let before: Vec<_> = opened.iter_mut().map_while(Option::take).collect();
        opened.iter().flatten().for_each(|socket| closing::unlink(socket.path.as_ref()));
        (before, Some((index, error)))
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
            let text = format!("{} changed in place: {}", held.listener.label(), change.options);
            self.journal.record(Happening::new(Kind::ListenerChanged, text));
        }
        Ok(backlogs)
    }

    /// Opens a socket for a listener that was held before, beside what it overlaps.
    pub(crate) fn open_again(
        &self,
        listener: &Listener,
    ) -> Result<listen::Opened, bindonce_sys::Error> {
        let others = self.neighbours(listener);
        if others.is_empty() {
            return listen::open(listener);
        }
        let fds: Vec<BorrowedFd<'_>> = others.iter().map(|fd| fd.as_fd()).collect();
        listen::open_beside(listener, &fds)
    }

    /// The sockets of held listeners that overlap this one.
    pub(crate) fn neighbours(&self, listener: &Listener) -> Vec<Rc<OwnedFd>> {
        let ids = self.registry.neighbours(listener).into_iter();
        ids.filter_map(|id| Some(Rc::clone(&self.registry.held(id)?.opened.handle.fd))).collect()
    }

    /// Opens a listener anew, because its socket is beyond repair. Gives the inode
    /// of the new one; None if there is no such listener.
    pub(crate) fn replace(&mut self, inode: u64) -> Result<Option<u64>, bindonce_sys::Error> {
        let Some((id, held)) = self.registry.by_inode(inode) else { return Ok(None) };
        let listener = held.listener.clone();
        let opened = self.opened(&listener, self.open_again(&listener)?);
        let inode = opened.inode;
        let actions = self.registry.on(now(), Event::Replace(id, opened));
        self.close_all(actions);
        if let Some(held) = self.registry.held(id) {
            held.opened.handle.care.begin(id, &held.opened.handle.fd, &listener.address);
            self.record(held);
        }
        Ok(Some(inode))
    }
}

/// Why no client reaches a held listener, if none does.
fn astray(held: &Held<Socket>) -> Option<Astray> {
    if !can_go_astray(&held.listener) {
        return None;
    }
    let socket = &held.opened.handle;
    listen::astray(socket.fd.as_fd(), &held.listener, socket.path.as_ref())
}

fn is_astray(held: &&Held<Socket>) -> bool {
    astray(held).is_some()
}

fn inode(held: &Held<Socket>) -> u64 {
    held.opened.inode
}
