//! A connection and the state of its current request, which an upgrade in place hands over.
//!
//! Descriptors that a peer sends are received, because a `store` needs them, and given up at the
//! latest when the request that they came with ends ([`bindonce_sys::closing`]).

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::Duration;

use bindonce_sys::closing::{Account, Foreign};
use bindonce_sys::patience::{Patience, timeout, within};
use bindonce_sys::unreceived;
use bindonce_wire::framing::{Frame, Scanner};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::caller::Caller;
use super::end::End;
use super::share::Shares;
use crate::follow::Follower;

/// The size of a read, in bytes. Most requests are far shorter; a longer one takes several reads,
/// each a turn of its own.
const READ: usize = 16 * 1024;

/// How many descriptors of a user may wait to be closed before more is read from that user.
const UNCLOSED: usize = 4 * bindonce_fd::MAX_FDS;

/// How a connection is treated, decided when it connects.
#[derive(Debug, Clone, Copy)]
pub struct Admission {
    /// No rule gives its user any right.
    pub unknown: bool,
    /// Root or the daemon's user, for whom memory and connections are reserved.
    pub exempt: bool,
}

/// Descriptors that came with requests that are not answered yet.
#[derive(Debug)]
struct Received {
    descriptors: RefCell<Vec<Foreign>>,
    /// The account of its user.
    account: Account,
}

/// The state of a connection.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// A request is being answered.
    pub(super) busy: Cell<bool>,
    /// The connection follows the events, and does nothing else any more.
    pub(super) follows: Cell<bool>,
    /// The connection must end.
    cut: Cell<bool>,
    /// The connection has ended, and its leases end in many turns.
    pub(super) leaving: Cell<bool>,
    /// The connection has ended, and its peer has yet to receive what was sent.
    lingers: Cell<bool>,
}

/// A connection and its state.
#[derive(Debug)]
pub struct Link {
    /// The client.
    pub caller: Caller,
    /// The connection itself.
    pub stream: UnixStream,
    pub(super) scanner: RefCell<Scanner>,
    received: Received,
    /// The connection's share of each budget.
    pub(super) shares: Shares,
    /// No rule gave the peer any right when it connected.
    pub(super) unknown: bool,
    pub(super) progress: Progress,
    /// Notifications that could not be sent at once.
    pending: RefCell<Vec<u8>>,
    /// Notified when there are such notifications, and when the connection must end.
    pub(super) woken: Notify,
    /// The id, as JSON text, of the request for an upgrade that waits to be answered.
    upgrade: RefCell<Option<String>>,
    /// Set if the connection is to follow the events after this id, once its request is answered.
    pub(super) following: RefCell<Option<(Follower, u64)>>,
}

impl Link {
    /// A connection whose requests `scanner` reads; `account` is that of its user.
    pub(super) fn new(
        stream: UnixStream,
        caller: Caller,
        unknown: bool,
        scanner: Scanner,
        account: Account,
        shares: Shares,
    ) -> Rc<Self> {
        Rc::new(Self {
            caller,
            stream,
            scanner: RefCell::new(scanner),
            received: Received { descriptors: RefCell::default(), account },
            shares,
            unknown,
            progress: Progress::default(),
            pending: RefCell::default(),
            woken: Notify::new(),
            upgrade: RefCell::new(None),
            following: RefCell::new(None),
        })
    }

    /// Whether this image has yet to answer a request of the connection, or to complete its end.
    pub(super) fn is_busy(&self) -> bool {
        let answers = self.progress.busy.get()
            && self.upgrade.borrow().is_none()
            && !self.progress.follows.get();
        answers || self.progress.leaving.get() || !self.pending.borrow().is_empty()
    }

    /// Whether the connection follows the events.
    pub fn is_following(&self) -> bool {
        self.progress.follows.get()
    }

    /// Sends a notification: at once if nothing is being sent and the peer has room, else as soon
    /// as possible, with the same deadline as a reply.
    pub(super) fn tell(&self, line: Vec<u8>) {
        if self.progress.follows.get() {
            return;
        }
        let mut pending = self.pending.borrow_mut();
        let mut line = line;
        if pending.is_empty() && !self.progress.busy.get() {
            // A failure is noticed where the connection is served.
            let sent = self.stream.try_write(&line).unwrap_or(0);
            line.drain(..sent);
        }
        if !line.is_empty() {
            pending.append(&mut line);
            self.woken.notify_one();
        }
    }

    /// Ends the connection.
    pub(super) fn cut(&self) {
        self.progress.cut.set(true);
        self.woken.notify_one();
    }

    /// Sends the waiting notifications, or ends the connection.
    pub(super) async fn flush(&self, deadline: Duration) -> Result<(), End> {
        let mut patience = Patience::new(deadline);
        loop {
            if self.progress.cut.get() {
                return Err(End::CutOff);
            }
            {
                let mut pending = self.pending.borrow_mut();
                while !pending.is_empty() {
                    match self.stream.try_write(&pending) {
                        Ok(sent) => drop(pending.drain(..sent)),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(End::Failed(error)),
                    }
                }
                if pending.is_empty() {
                    return Ok(());
                }
            }
            // Boxed: each connection has room for whatever is not.
            let writable = Box::pin(within(&mut patience, self.stream.writable()));
            tokio::select! {
                ready = writable => match ready {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return Err(End::Failed(error)),
                    Err(_) => return Err(End::NotRead),
                },
                () = self.woken.notified() => {}
            }
        }
    }

    /// Counts the bytes of the connection's requests: those being read, and `waiting`, those that
    /// wait for an answer. False if there is no room for them.
    pub(super) fn keep(&self, waiting: usize) -> bool {
        self.shares.memory.keep(self.scanner.borrow().kept() + waiting)
    }

    /// Updates the count of unreceived descriptors, and returns it. All of them count until the
    /// peer has received the last.
    pub(super) fn settle(&self) -> usize {
        if self.shares.unreceived.kept() != 0 && unreceived::is_none(self.stream.as_fd()) {
            self.shares.unreceived.keep(0);
        }
        self.shares.unreceived.kept()
    }

    /// Whether `count` more descriptors may be sent at once.
    pub(super) fn has_room(&self, count: usize) -> bool {
        let room = || self.shares.unreceived.has_room(count);
        room() || self.settle() == 0 && room()
    }

    /// Notes that `count` descriptors were sent.
    pub fn was_sent(&self, count: usize) {
        if count != 0 {
            self.shares.unreceived.keep(self.shares.unreceived.kept() + count);
        }
    }

    /// How many descriptors were sent and may not be received yet.
    pub fn unreceived(&self) -> usize {
        self.shares.unreceived.kept()
    }

    /// Keeps the connection, which has ended, until its peer has received all that was sent.
    pub(super) fn linger(&self) {
        let Progress { busy, follows, leaving, lingers, .. } = &self.progress;
        [busy, follows, leaving].iter().for_each(|state| state.set(false));
        lingers.set(true);
        self.pending.take();
        self.scanner.borrow_mut().clear();
        self.shares.memory.keep(0);
    }

    /// Whether the connection has ended and is kept until its peer has received all.
    pub fn lingers(&self) -> bool {
        self.progress.lingers.get()
    }

    /// The part of a request that has been read, if another image can resume from there. Received
    /// descriptors are not handed over.
    pub fn unread(&self) -> Option<Vec<u8>> {
        if self.is_busy()
            || self.progress.follows.get()
            || !self.received.descriptors.borrow().is_empty()
        {
            return None;
        }
        self.scanner.borrow().unread().map(<[u8]>::to_vec)
    }

    /// Notes the id of the request whose answer is an upgrade; None when it is answered otherwise.
    pub fn set_upgrade(&self, id: Option<String>) {
        *self.upgrade.borrow_mut() = id;
    }

    /// The id of the request whose answer is an upgrade.
    pub fn upgrade(&self) -> Option<String> {
        self.upgrade.borrow().clone()
    }

    /// Descriptors for the request that is being answered, in the order in which they came.
    pub fn take_received(&self) -> Vec<Foreign> {
        self.shares.in_flight.keep(0);
        self.received.descriptors.take()
    }

    /// Waits until at most [`UNCLOSED`] descriptors of the user wait to be closed, for at most
    /// `patience`. False if the time passes first.
    pub(super) async fn closed(&self, patience: Duration) -> bool {
        let account = &self.received.account;
        account.unclosed() <= UNCLOSED
            || Box::pin(timeout(patience, account.until(UNCLOSED))).await.is_ok()
    }

    /// Ends the connection in both directions. Drop the result after the connection's own
    /// descriptor: then this thread does not wait for the close.
    #[must_use]
    pub(super) fn end(&self) -> Option<Foreign> {
        self.received.account.end(self.stream.as_fd())
    }

    /// Reads what there is, and cuts it into frames. None at the end of the stream.
    pub(super) fn read(&self) -> io::Result<Option<Taken>> {
        // One buffer for all connections: its content is not needed once it is cut into frames.
        thread_local!(static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into()));
        BUFFER.with_borrow_mut(|buffer| {
            let mut received = self.received.descriptors.borrow_mut();
            let (mut came, mut passed) = (None, Vec::new());
            let read = self.stream.try_io(Interest::READABLE, || {
                let count = bindonce_fd::recv(self.stream.as_fd(), buffer, &mut passed)?;
                came = Some(count);
                // A message with descriptors ends a read. Any other short read has emptied the
                // socket, and what comes next is an event: the error spares a useless read.
                if count < buffer.len() && passed.is_empty() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(count)
            });
            let count = came.map_or(read, Ok)?;
            received.extend(passed.into_iter().map(|fd| self.received.account.foreign(fd)));
            let fits = self.shares.in_flight.keep(received.len());
            if received.len() > bindonce_fd::MAX_FDS || !fits {
                // More than any request, or the connections of the user together, may have.
                self.shares.in_flight.keep(0);
                received.clear();
            }
            let mut input = &buffer[..count];
            let mut frames = Vec::new();
            let mut scanner = self.scanner.borrow_mut();
            while let Some(frame) = scanner.next(&mut input) {
                frames.push(frame);
            }
            Ok((count != 0).then_some(Taken { frames, more: count == buffer.len() }))
        })
    }
}

/// The result of one read.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) frames: Vec<Frame>,
    /// The read filled the buffer, so more has come already.
    pub(super) more: bool,
}
