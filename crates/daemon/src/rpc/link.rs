//! A connection and the state of its current request, which an upgrade in place hands over.
//!
//! Descriptors that a peer sends are received, because those that come with a
//! `store` are wanted, and given up at the latest when the request that they came with ends ([`bindonce_sys::closing`]).

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::Duration;

use bindonce_sys::closing::{Account, Foreign};
use bindonce_sys::unreceived;
use bindonce_wire::framing::{Frame, Scanner};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::caller::Caller;
use super::end::End;
use super::share::Shares;
use crate::follow::Follower;

/// Most requests are far shorter. Longer ones take more than one read, each a turn of its own.
const READ: usize = 16 * 1024;

/// So many descriptors that a user has passed may wait to be closed before more is read of it.
const UNCLOSED: usize = 4 * bindonce_fd::MAX_FDS;

/// How a connection is treated, decided when it connects.
#[derive(Debug, Clone, Copy)]
pub struct Admission {
    /// No rule gives its user any right.
    pub unknown: bool,
    /// Root or the daemon's user: it has memory and connections that are kept for these two.
    pub exempt: bool,
}

/// Descriptors that came with requests that are not answered yet.
#[derive(Debug)]
struct Received {
    descriptors: RefCell<Vec<Foreign>>,
    /// Of its user.
    account: Account,
}

/// The state of a connection.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// A request is being answered.
    pub(super) busy: Cell<bool>,
    /// It follows the events, and does nothing else any more.
    pub(super) follows: Cell<bool>,
    /// It must end.
    cut: Cell<bool>,
    /// It has ended, and its leases end in many turns.
    pub(super) leaving: Cell<bool>,
    /// It has ended, and its peer has yet to receive what it was sent.
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
    /// What it has of each budget.
    pub(super) shares: Shares,
    /// No rule gave the peer any right when it connected.
    pub(super) unknown: bool,
    pub(super) progress: Progress,
    /// Notifications that could not be sent at once.
    pending: RefCell<Vec<u8>>,
    /// Rung when there are some, and when the connection must end.
    pub(super) woken: Notify,
    /// The id, as JSON text, of the request for an upgrade that waits to be answered.
    upgrade: RefCell<Option<String>>,
    /// It will follow the events from this id on, once its request is answered.
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

    /// Whether its request has yet to be answered, or its end to be completed, by this image.
    pub(super) fn is_busy(&self) -> bool {
        let answers = self.progress.busy.get()
            && self.upgrade.borrow().is_none()
            && !self.progress.follows.get();
        answers || self.progress.leaving.get() || !self.pending.borrow().is_empty()
    }

    /// Whether it is a follower's.
    pub fn is_following(&self) -> bool {
        self.progress.follows.get()
    }

    /// Sends a notification: at once where nothing is being sent and the peer has room, else
    /// as soon as it can be, with the same deadline as a reply.
    pub(super) fn tell(&self, line: Vec<u8>) {
        if self.progress.follows.get() {
            return;
        }
        let mut pending = self.pending.borrow_mut();
        let mut line = line;
        if pending.is_empty() && !self.progress.busy.get() {
            // Whatever fails is noticed where the connection is served.
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

    /// Sends the notifications that wait, or ends the connection.
    pub(super) async fn flush(&self, deadline: Duration) -> Result<(), End> {
        let until = Instant::now() + deadline;
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
            tokio::select! {
                ready = timeout_at(until, self.stream.writable()) => match ready {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return Err(End::Failed(error)),
                    Err(_) => return Err(End::NotRead),
                },
                () = self.woken.notified() => {}
            }
        }
    }

    /// Counts the bytes of its requests: those being read, and `waiting`, those that wait for an answer.
    /// False if there is no room for them.
    pub(super) fn keep(&self, waiting: usize) -> bool {
        self.shares.memory.keep(self.scanner.borrow().kept() + waiting)
    }

    /// Counts again what it was sent and has not received: all, as long as it has not received the last; gives how many descriptors.
    pub(super) fn settle(&self) -> usize {
        if self.shares.unreceived.kept() != 0 && unreceived::is_none(self.stream.as_fd()) {
            self.shares.unreceived.keep(0);
        }
        self.shares.unreceived.kept()
    }

    /// Whether it may be sent so many more at once.
    pub(super) fn has_room(&self, count: usize) -> bool {
        let room = || self.shares.unreceived.has_room(count);
        room() || self.settle() == 0 && room()
    }

    /// Notes that it was sent so many.
    pub fn was_sent(&self, count: usize) {
        if count != 0 {
            self.shares.unreceived.keep(self.shares.unreceived.kept() + count);
        }
    }

    /// How many descriptors it was sent and may not have received yet.
    pub fn unreceived(&self) -> usize {
        self.shares.unreceived.kept()
    }

    /// It has ended, and is kept until its peer has received all that it was sent.
    pub(super) fn linger(&self) {
        let Progress { busy, follows, leaving, lingers, .. } = &self.progress;
        [busy, follows, leaving].iter().for_each(|state| state.set(false));
        lingers.set(true);
        self.pending.take();
        self.scanner.borrow_mut().clear();
        self.shares.memory.keep(0);
    }

    /// Whether it has ended, and is kept until then.
    pub fn lingers(&self) -> bool {
        self.progress.lingers.get()
    }

    /// The part of a request that has been read, if another image can resume from there. A descriptor
    /// that was received is not handed over.
    pub fn unread(&self) -> Option<Vec<u8>> {
        if self.is_busy()
            || self.progress.follows.get()
            || !self.received.descriptors.borrow().is_empty()
        {
            return None;
        }
        self.scanner.borrow().unread().map(<[u8]>::to_vec)
    }

    /// Notes the request whose answer is an upgrade; with None that it is answered otherwise.
    pub fn set_upgrade(&self, id: Option<String>) {
        *self.upgrade.borrow_mut() = id;
    }

    /// The request whose answer is an upgrade.
    pub fn upgrade(&self) -> Option<String> {
        self.upgrade.borrow().clone()
    }

    /// Descriptors for the request that is being answered, in the order in which they came.
    pub fn take_received(&self) -> Vec<Foreign> {
        self.shares.in_flight.keep(0);
        self.received.descriptors.take()
    }

    /// Waits until what its user has passed is closed, but for some, for `patience` at most. False if it is not.
    pub(super) async fn closed(&self, patience: Duration) -> bool {
        let account = &self.received.account;
        account.unclosed() <= UNCLOSED || timeout(patience, account.until(UNCLOSED)).await.is_ok()
    }

    /// Ends it from both sides. What is given is to be dropped after it, so that nobody waits.
    #[must_use]
    pub(super) fn end(&self) -> Option<Foreign> {
        self.received.account.end(self.stream.as_fd())
    }

    /// Reads what there is, and cuts it into frames. None at the end of the stream.
    pub(super) fn read(&self) -> io::Result<Option<Taken>> {
        // One for all connections: nothing of it is needed once it is cut into frames.
        thread_local!(static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into()));
        BUFFER.with_borrow_mut(|buffer| {
            let mut received = self.received.descriptors.borrow_mut();
            let (mut came, mut passed) = (None, Vec::new());
            let read = self.stream.try_io(Interest::READABLE, || {
                let count = bindonce_fd::recv(self.stream.as_fd(), buffer, &mut passed)?;
                came = Some(count);
                // A message with descriptors ends a read; any other short one has emptied the
                // socket, and what comes next is an event. Saying so spares a read in vain.
                if count < buffer.len() && passed.is_empty() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(count)
            });
            let count = came.map_or(read, Ok)?;
            received.extend(passed.into_iter().map(|fd| self.received.account.foreign(fd)));
            let fits = self.shares.in_flight.keep(received.len());
            if received.len() > bindonce_fd::MAX_FDS || !fits {
                // More than any request, or the connections of a user together, may have.
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

/// What one read gave.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) frames: Vec<Frame>,
    /// It filled the buffer, so more has come already.
    pub(super) more: bool,
}
