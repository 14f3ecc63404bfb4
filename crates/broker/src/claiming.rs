//! Claims, performed: sockets are opened or changed as the registry decides, all of a claim
//! or none.

use std::cell::RefCell;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

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
use tokio::task::yield_now;

use crate::closing::{self, LOGGED_ONE_BY_ONE};
use crate::socket::{Owned, Socket};
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
    /// Nothing came of it, for a reason that nobody gave.
    Abandoned,
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
            Self::Abandoned => (Kind::ClaimRefused, "a claim was given up".to_owned()),
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

/// What a claim comes to next.
enum Next {
    /// These are to be opened.
    Open(Vec<Listener>, Vec<Overlap>),
    /// These are to be changed.
    Change(Vec<Change>),
    /// It waits for another claim that is about the same.
    Wait,
    Granted(Vec<Lease>),
    /// Without a reason where opening or changing has told it.
    Denied(Option<Denied>),
}

/// So many listeners are opened in one turn: some 10 us each.
const OPENED_AT_ONCE: usize = 32;

/// Sockets that are opened for a claim, until it has them all.
struct Opening(Vec<Opened<Socket>>);

impl Opening {
    fn take(mut self) -> Vec<Opened<Socket>> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.iter().for_each(|opened| closing::unlink(opened.handle.path.as_ref()));
    }
}

/// Finds or opens listeners, all or none.
pub(crate) async fn claim(
    state: &RefCell<State>,
    id: ConnectionId,
    wants: Vec<Want>,
) -> Result<Vec<Lease>, Denied> {
    let outcome = claim_unsettled(state, id, wants).await;
    state.borrow_mut().settle();
    outcome
}

/// Finds or opens listeners, all or none; many in many turns. [`State::settle`] must follow before
/// anything else can run.
pub(crate) async fn claim_unsettled(
    state: &RefCell<State>,
    id: ConnectionId,
    wants: Vec<Want>,
) -> Result<Vec<Lease>, Denied> {
    let found = state.borrow_mut().find_again(&wants);
    found.map_err(|denied| state.borrow().denied(id, denied))?;
    let decided = Rc::clone(&state.borrow().decided);
    let mut failure = None;
    let mut event = Event::Claim(id, wants);
    loop {
        // Nothing that is decided from here on is missed.
        let others = decided.notified();
        let next = {
            let mut state = state.borrow_mut();
            let actions = state.registry.on(now(), event);
            state.proceed(id, actions)
        };
        event = match next {
            Next::Wait => {
                others.await;
                Event::Retry(id)
            }
            Next::Open(listeners, overlaps) => match open(state, id, listeners, &overlaps).await {
                Ok(opened) => Event::Opened(id, opened),
                Err((opened, denied)) => {
                    failure = Some(denied);
                    Event::OpenFailed(id, opened)
                }
            },
            Next::Change(changes) => match state.borrow().change(&changes) {
                Ok(backlogs) => Event::Changed(id, backlogs),
                Err(denied) => {
                    failure = Some(denied);
                    Event::ChangeFailed(id)
                }
            },
            Next::Granted(leases) => return Ok(leases),
            Next::Denied(reason) => {
                let denied = reason.or(failure).unwrap_or(Denied::Abandoned);
                return Err(state.borrow().denied(id, denied));
            }
        };
    }
}

/// Opens listeners, some in a turn. All, or those before the first that is not open, and why.
#[allow(clippy::type_complexity)] // What was opened, and why the rest was not.
async fn open(
    state: &RefCell<State>,
    id: ConnectionId,
    listeners: Vec<Listener>,
    overlaps: &[Overlap],
) -> Result<Vec<Opened<Socket>>, (Vec<Opened<Socket>>, Denied)> {
    let mut owned = state.borrow().reserve(id, listeners.len()).map_err(|it| (Vec::new(), it))?;
    let mut order: Vec<usize> = (0..listeners.len()).collect();
    if !overlaps.is_empty() {
        // The most general first, and what it overlaps beside it.
        order.sort_by_key(|index| listeners[*index].key().specificity());
    }
    let mut places: Vec<Option<usize>> = vec![None; listeners.len()];
    let mut opened = Opening(Vec::with_capacity(listeners.len()));
    let mut failure = None;
    for (count, index) in order.into_iter().enumerate() {
        if count != 0 && count % OPENED_AT_ONCE == 0 {
            yield_now().await;
        }
        let state = state.borrow();
        let listener = &listeners[index];
        let from = overlaps.partition_point(|overlap| overlap.new < index);
        let others = overlaps[from..].iter().take_while(|overlap| overlap.new == index);
        let fds: Vec<BorrowedFd<'_>> = others
            .filter_map(|overlap| match overlap.other {
                Neighbour::New(other) => Some(&opened.0[places[other]?].handle.fd),
                Neighbour::Held(id) => Some(&state.registry.held(id)?.opened.handle.fd),
            })
            .map(|fd| fd.as_fd())
            .collect();
        let socket = if fds.is_empty() {
            listen::open(listener)
        } else {
            listen::open_beside(listener, &fds)
        };
        match socket {
            Ok(socket) => {
                let mut socket = state.opened(listener, socket);
                socket.handle.owned = owned.pop();
                places[index] = Some(opened.0.len());
                opened.0.push(socket);
            }
            Err(error) => {
                failure = Some(Denied::NotOpened(Box::new(listener.clone()), error));
                break;
            }
        }
    }
    // In the order of the listeners.
    let mut sockets: Vec<_> = opened.take().into_iter().map(Some).collect();
    let mut in_order = places.into_iter().map(|place| sockets[place?].take());
    let before: Vec<_> = in_order.by_ref().map_while(std::convert::identity).collect();
    match failure {
        None => Ok(before),
        Some(denied) => {
            // Behind a hole nothing has its place.
            drop(Opening(in_order.flatten().collect()));
            Err((before, denied))
        }
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

    /// Performs what the registry decides of a connection's claim; gives what is to come next.
    fn proceed(&mut self, id: ConnectionId, actions: Vec<Action<Socket>>) -> Next {
        let mut next = Next::Wait;
        let mut rest = Vec::new();
        for action in actions {
            match action {
                Action::Open(_, listeners, overlaps) => next = Next::Open(listeners, overlaps),
                Action::Change(_, changes) => next = Next::Change(changes),
                Action::Grant(_, leases) => {
                    self.granted(id, &leases);
                    next = Next::Granted(leases);
                }
                Action::Refuse(_, refusal) => next = Next::Denied(Some(Denied::Refused(refusal))),
                Action::NotOpened(_) => next = Next::Denied(None),
                other => rest.push(other),
            }
        }
        self.perform(rest);
        next
    }

    fn granted(&mut self, id: ConnectionId, leases: &[Lease]) {
        self.log_opened(id, leases);
        self.record_all(leases);
        self.forget_bound(leases);
        let created = leases.iter().filter(|lease| lease.created);
        let before = self.unsettled.len();
        self.unsettled.extend(created.map(|lease| lease.listener));
        let created = self.unsettled.len() - before;
        self.counts.borrow_mut().granted(leases.len(), created);
    }

    fn denied(&self, id: ConnectionId, denied: Denied) -> Denied {
        self.journal.record(self.by(id, denied.happening()));
        denied
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
        self.room_beside(uid, need, self.registry.planned())
    }

    /// The same beside so many that are being opened for others.
    fn room_beside(&self, uid: u32, need: usize, planned: usize) -> Result<(), Denied> {
        let owned = self.owned.borrow().get(&uid).copied().unwrap_or(0);
        let held = self.registry.len() + planned;
        for (limit, most, has) in [
            ("listeners", self.limits.listeners, held),
            ("listeners_per_user", self.limits.listeners_per_user, owned),
        ] {
            if has.saturating_add(need) > most && need != 0 {
                return Err(Denied::TooMany { limit, most });
            }
        }
        let open = self.other_descriptors + held as u64 + self.registry.connections() as u64;
        let limit = self.descriptor_limit;
        if open.saturating_add(need as u64).saturating_add(SPARE) > limit && need != 0 {
            return Err(Denied::Limit { need, open, limit });
        }
        Ok(())
    }

    /// Counts listeners that are planned for a connection as its user's, within all limits.
    fn reserve(&self, id: ConnectionId, count: usize) -> Result<Vec<Owned>, Denied> {
        let uid = self.registry.caller(id).map_or(0, |(peer, _)| peer.uid);
        let others = self.registry.planned().saturating_sub(count);
        self.room_beside(uid, count, others)?;
        Ok((0..count).map(|_| self.owned(uid)).collect())
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
        self.perform(actions);
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
