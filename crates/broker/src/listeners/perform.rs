//! Performs what the registry decides: changes, replaces and closes sockets, records the outcome
//! and reports it.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use bindonce_core::event::Kind;
use bindonce_core::listener::{Listener, Wanted};
use bindonce_core::registry::{
    Action, Change, Closing, ConnectionId, Event, Lease, ListenerId, Overlap, Refusal, Want,
};
use bindonce_daemon::Happening;
use bindonce_sys::Errno;
use bindonce_sys::clock::now;
use bindonce_sys::closing;
use bindonce_sys::listen::{self, Accounts, Astray, UnixPath, can_go_astray};

use super::denied::Denied;
use super::socket::{Closed, Held, Socket};
use super::{Listeners, Stepping, astray};

/// More listeners than this, opened or closed at once, share one line in the log.
pub(crate) const LOGGED_ONE_BY_ONE: usize = 16;

/// New listeners that the kernel is told to watch in one turn, at about a microsecond each.
const WATCHED_AT_ONCE: usize = 256;

/// The next step of a claim.
pub(crate) enum Next {
    /// Open these.
    Open(Vec<Arc<Listener>>, Vec<Overlap>),
    /// Change these.
    Change(Vec<Change>),
    /// Take another step, after other tasks have had their turn.
    More,
    /// Wait for another claim about the same listeners.
    Wait,
    Granted(Vec<Lease>),
    /// Has no reason if opening or changing gave it already.
    Denied(Option<Denied>),
}

impl Listeners {
    /// Takes one step of a connection's claim for at most `most` more leases. Returns the next one.
    pub(crate) fn claim(&mut self, id: ConnectionId, event: Event<Socket>, most: usize) -> Next {
        let room = match &event {
            Event::Claim(..) | Event::Retry(_) => self.room_for_leases(id, most),
            _ => Ok(()),
        };
        if let Err(denied) = room {
            // The claim no longer waits.
            let actions = self.registry.on(now(), Event::OpenFailed(id, Vec::new()));
            self.perform(actions);
            return Next::Denied(Some(denied));
        }
        let actions = self.registry.on(now(), event);
        let mut next = Next::Wait;
        let mut rest = Vec::new();
        for action in actions {
            match action {
                Action::Open(_, listeners, overlaps) => next = Next::Open(listeners, overlaps),
                Action::Change(_, changes) => next = Next::Change(changes),
                Action::More(_) => next = Next::More,
                Action::Granting(_, leases) => {
                    let mut step = self.stepping.remove(&id).unwrap_or_default();
                    self.grants(&mut step, &leases);
                    self.stepping.insert(id, step);
                }
                Action::Grant(_, leases) => {
                    self.granted(id, &leases);
                    next = Next::Granted(leases);
                }
                Action::Refuse(_, refusal) => next = Next::Denied(Some(Denied::Refused(refusal))),
                Action::NotOpened(_) => next = Next::Denied(None),
                other => rest.push(other),
            }
        }
        let closed = self.close(rest);
        if matches!(next, Next::More) {
            self.stepping.entry(id).or_default().closed.extend(closed);
        } else {
            let mut all = self.stepping.remove(&id).unwrap_or_default().closed;
            all.extend(closed);
            self.tell_all_closed(&all);
        }
        next
    }

    /// Part of a claim is granted: its records are made now and written with those of the rest.
    fn grants(&mut self, step: &mut Stepping, leases: &[Lease]) {
        let changed = leases.iter().filter(|lease| lease.changed);
        let held = changed.filter_map(|lease| self.registry.held(lease.listener));
        self.ledger.add_records(&mut step.records, held);
        step.count += leases.len();
        let created = leases.iter().filter(|lease| lease.created);
        self.unsettled.extend(created.map(|lease| lease.listener));
    }

    fn granted(&mut self, id: ConnectionId, leases: &[Lease]) {
        let mut step = self.stepping.remove(&id).unwrap_or_default();
        let rest = leases.get(step.count..).unwrap_or_default();
        self.grants(&mut step, rest);
        self.ledger.append(step.records);
        self.log_opened(id, leases);
        self.counts.granted += leases.len() as u64;
        self.counts.opened += leases.iter().filter(|lease| lease.created).count() as u64;
    }

    /// Records why a claim got nothing.
    pub(crate) fn denied(&self, id: ConnectionId, denied: Denied) -> Denied {
        self.reporter.record(self.by(id, denied.happening()));
        denied
    }

    /// Begins to watch some of the new listeners. Returns true if there are more. The kernel
    /// reports a listener that left LISTEN earlier as soon as it is watched.
    pub(crate) fn watch_new(&mut self) -> bool {
        let some = self.unsettled.len().min(WATCHED_AT_ONCE);
        for id in self.unsettled.drain(..some) {
            if let Some(held) = self.registry.held(id) {
                held.opened.handle.watch.begin(id, &held.opened.handle.fd, &held.listener.address);
            }
        }
        !self.unsettled.is_empty()
    }

    /// Adds to an event the caller that caused it.
    fn by(&self, id: ConnectionId, happening: Happening) -> Happening {
        let Some((peer, label)) = self.registry.caller(id) else { return happening };
        let pid = label.map_or(peer.pid, |label| label.pid);
        happening
            .pid(i32::try_from(pid).ok())
            .service(label.map(|label| label.service.as_str()))
            .generation(label.map(|label| label.generation))
    }

    /// Those of `most` wanted listeners, from index `from` on, that no client reaches, by inode.
    pub(crate) fn unreached(&self, want: &Want, from: usize, most: usize) -> Vec<u64> {
        match &want.wanted {
            Wanted::Named(name) => {
                self.registry.by_name(name).filter(is_astray).map(inode).into_iter().collect()
            }
            Wanted::Listen(spec) => {
                let held = |one: &Listener| self.registry.by_key(one).filter(is_astray).map(inode);
                spec.expand_from(from).take(most).filter_map(|one| held(&one)).collect()
            }
        }
    }

    /// Rebinds the listener with this inode, if no client reaches it. Processes that have the old
    /// socket drain with it.
    pub(crate) fn rebind(&mut self, inode: u64, accounts: &Accounts) -> Result<(), Denied> {
        let Some((id, held)) = self.registry.by_inode(inode) else { return Ok(()) };
        let Some(why) = astray(held) else { return Ok(()) };
        if matches!(why, Astray::PathClosed { .. } | Astray::PathOwner { .. }) {
            let (socket, mode) = (&held.opened.handle, held.listener.options.mode);
            let restore = |ours| listen::restore(ours, socket.file_owner.get(), mode);
            let listener = held.listener.label();
            match socket.path.as_ref().map_or(Ok(()), restore) {
                Ok(()) => {
                    tracing::warn!(listener, %why, "mode and owner of a UNIX path restored");
                }
                Err(error) => tracing::error!(
                    listener, %why, %error, "mode and owner of a UNIX path not restored"
                ),
            }
            return Ok(());
        }
        let (listener, why) = (held.listener.clone(), why.to_string());
        match self.replace(id, inode, accounts) {
            Ok(new) => {
                let listener = listener.label();
                tracing::warn!(listener, why, was = inode, inode = new, "listener bound anew");
                let text = format!("{listener} bound anew: {why}");
                self.reporter.record(Happening::new(Kind::ListenerBound, text));
                Ok(())
            }
            // haproxy alone does without such a listener, and serves the rest.
            Err(error) if error.errno() == Some(Errno::ENODEV as i32) => {
                tracing::error!(
                    listener = listener.label(), why, %error,
                    "listener is not reached, and cannot be bound anew yet"
                );
                Ok(())
            }
            Err(error) => Err(Denied::NotOpened(listener, error)),
        }
    }

    /// Reports the listeners that a claim created: each of a few, or the count, first and last
    /// name.
    fn log_opened(&self, id: ConnectionId, leases: &[Lease]) {
        let created: Vec<&Lease> = leases.iter().filter(|lease| lease.created).collect();
        let (Some(first), Some(last)) = (created.first(), created.last()) else { return };
        let caller = self.registry.caller(id);
        let uid = caller.map_or(0, |(peer, _)| peer.uid);
        let Some(left_out) = self.reporter.worth_a_line(uid, "opened") else { return };
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
            self.reporter.record(self.by(id, Happening::new(Kind::ListenerBound, text)));
            return;
        }
        for held in created.iter().filter_map(|lease| self.registry.held(lease.listener)) {
            tracing::info!(
                listener = held.listener.label(), address = %held.listener.address,
                bound = %held.opened.bound, inode = held.opened.inode, tentative = held.tentative,
                service, generation, pid, left_out, "listener opened"
            );
            let text = format!("{} bound to {}", held.listener.label(), held.opened.bound);
            self.reporter.record(self.by(id, Happening::new(Kind::ListenerBound, text)));
        }
    }

    /// The users and groups that must be looked up before [`Self::change`].
    pub(crate) fn new_owners(&self, changes: &[Change]) -> Accounts {
        let mut accounts = Accounts::default();
        for change in changes {
            if let Some(held) = self.registry.held(change.listener) {
                accounts.add_changed(&held.listener.options, &change.options);
            }
        }
        accounts
    }

    /// Changes sockets in place, all or none. Returns the backlog of each.
    pub(crate) fn change(
        &self,
        changes: &[Change],
        accounts: &Accounts,
    ) -> Result<Vec<u32>, Denied> {
        let mut done = Vec::with_capacity(changes.len());
        let mut backlogs = Vec::with_capacity(changes.len());
        for change in changes {
            let Some(held) = self.registry.held(change.listener) else { continue };
            let (socket, backlog) = (&held.opened.handle, held.opened.backlog);
            let (fd, path) = (socket.fd.as_fd(), socket.path.as_ref());
            match listen::change(fd, path, &held.listener, backlog, &change.options, accounts) {
                Ok(before) => {
                    if change.options.transparent {
                        self.tell_if_free(&held.listener, fd);
                    }
                    done.push((held, before));
                }
                Err(error) => {
                    for (held, before) in done.into_iter().rev() {
                        let socket = &held.opened.handle;
                        before.undo(socket.fd.as_fd(), socket.path.as_ref(), &held.listener);
                    }
                    let listener = Arc::clone(&held.listener);
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
            self.reporter.record(Happening::new(Kind::ListenerChanged, text));
        }
        for (held, before) in done {
            if let Some(owner) = before.new_owner() {
                held.opened.handle.file_owner.set(owner);
            }
        }
        Ok(backlogs)
    }

    /// Opens a socket for a listener that was held before, beside the listeners that it overlaps.
    pub(crate) fn open_again(
        &self,
        listener: &Listener,
        accounts: &Accounts,
    ) -> Result<listen::Opened, bindonce_sys::Error> {
        let others = self.neighbours(listener);
        if others.is_empty() {
            return listen::open_with(listener, accounts);
        }
        let fds: Vec<BorrowedFd<'_>> = others.iter().map(|fd| fd.as_fd()).collect();
        listen::open_beside(listener, &fds, false)
    }

    /// Opens a new socket for a listener whose socket, with the inode `was`, is beyond repair.
    /// Returns the inode of the new one; None if the listener no longer has the old one.
    pub(crate) fn replace(
        &mut self,
        id: ListenerId,
        was: u64,
        accounts: &Accounts,
    ) -> Result<Option<u64>, bindonce_sys::Error> {
        let held = self.registry.held(id).filter(|held| held.opened.inode == was);
        let Some(held) = held else { return Ok(None) };
        let listener = held.listener.clone();
        let opened = self.opened(&listener, self.open_again(&listener, accounts)?);
        let inode = opened.inode;
        let actions = self.registry.on(now(), Event::Replace(id, opened));
        self.perform(actions);
        if let Some(held) = self.registry.held(id) {
            held.opened.handle.watch.begin(id, &held.opened.handle.fd, &listener.address);
            self.ledger.record([held]);
        }
        Ok(Some(inode))
    }

    /// Closes some of these. Returns their names, and those left for later turns.
    pub(crate) fn release(
        &mut self,
        id: ConnectionId,
        some: Vec<ListenerId>,
    ) -> Result<(Vec<String>, Vec<ListenerId>), Refusal> {
        let mut outcome = Ok(Default::default());
        let mut others = Vec::new();
        for action in self.registry.on(now(), Event::ReleaseRest(id, some)) {
            match action {
                Action::Released(_, names, rest) => outcome = Ok((names, rest)),
                Action::Refuse(_, refusal) => outcome = Err(refusal),
                other => others.push(other),
            }
        }
        self.close(others);
        outcome
    }

    /// Reports listeners that a connection has released, in however many turns.
    pub(crate) fn tell_released(&self, id: ConnectionId, names: &[String]) {
        let uid = self.registry.caller(id).map_or(0, |(peer, _)| peer.uid);
        self.tell_closed(Closing::Released, uid, names);
    }

    /// Closes the sockets of every `Close`, and wakes the claims that may be retried. Other actions
    /// have been handled.
    pub(crate) fn perform(&mut self, actions: Vec<Action<Socket>>) {
        let closed = self.close(actions);
        self.tell_all_closed(&closed);
    }

    /// Reports closed listeners, grouped by reason.
    fn tell_all_closed(&self, closed: &[Closed]) {
        for group in closed.chunk_by(|one, other| one.0 == other.0) {
            let names: Vec<_> = group.iter().map(|(_, listener, _)| listener.label()).collect();
            if let Some((why, _, uid)) = group.first() {
                self.tell_closed(*why, *uid, &names);
            }
        }
    }

    fn close(&mut self, actions: Vec<Action<Socket>>) -> Vec<Closed> {
        let mut closed = Vec::new();
        for action in actions {
            match action {
                Action::Close(socket, listener, why) => {
                    unlink(socket.path.as_ref());
                    let last = closing::shared(socket.fd.as_fd(), &listener.address);
                    let uid = socket.owned.as_ref().map_or(0, |owned| owned.uid);
                    closed.push((why, listener, uid));
                    // Closing the last descriptor may block, so ours is not the last.
                    drop(socket);
                    drop(last);
                }
                Action::Retry(id) => {
                    self.waiting.decide(id);
                }
                _ => {}
            }
        }
        self.ledger.end_closed();
        self.waiting.ring();
        self.counts.closed += closed.len() as u64;
        closed
    }

    /// Reports listeners closed for one reason: each of a few, or the count, first and last name.
    fn tell_closed(&self, why: Closing, uid: u32, names: &[String]) {
        let ([first, .., last], true) = (names, names.len() > LOGGED_ONE_BY_ONE) else {
            return names.iter().for_each(|name| self.closed(why, name, uid));
        };
        let Some(left_out) = self.reporter.worth_a_line(uid, "closed") else { return };
        let (count, why) = (names.len(), reason(why));
        tracing::info!(first, last, count, why, left_out, "listeners closed");
        let text = format!("{count} listeners closed, {first} to {last}: {why}");
        self.reporter.record(Happening::new(Kind::ListenerReleased, text));
    }

    fn closed(&self, why: Closing, listener: &str, uid: u32) {
        let Some(left_out) = self.reporter.worth_a_line(uid, "closed") else { return };
        let reason = reason(why);
        match why {
            Closing::Replaced => {
                tracing::warn!(listener, why = reason, left_out, "listener closed");
            }
            _ => tracing::info!(listener, why = reason, left_out, "listener closed"),
        }
        let text = format!("{listener} closed: {reason}");
        self.reporter.record(Happening::new(Kind::ListenerReleased, text));
    }
}

fn reason(why: Closing) -> &'static str {
    match why {
        Closing::Released => "released",
        Closing::Unconfirmed => "its claim was never confirmed",
        Closing::Replaced => "its socket was unusable, and another replaces it",
        Closing::NeverHeld => "the rest of its claim failed",
    }
}

/// Removes the file of a UNIX listener that is closed.
pub(crate) fn unlink(path: Option<&UnixPath>) {
    if let Some(path) = path
        && let Err(error) = listen::unlink_if_ours(path)
    {
        tracing::warn!(path = %path.path.display(), %error, "cannot remove a UNIX path");
    }
}

/// Whether a wanted listener could be one that no client reaches.
pub(crate) fn may_be_unreachable(want: &Want) -> bool {
    match &want.wanted {
        Wanted::Named(_) => true,
        Wanted::Listen(spec) => can_go_astray(&spec.first),
    }
}

fn is_astray(held: &&Held) -> bool {
    astray(held).is_some()
}

fn inode(held: &Held) -> u64 {
    held.opened.inode
}
