//! One connection: requests in order, each with a deadline for being sent and
//! for its reply being read.
//!
//! What a connection is in the middle of is kept in its [`Link`], where an upgrade in
//! place finds it. Descriptors that a peer sends are received, because those that come with a
//! `store` are wanted, and closed at the latest when the request that they came with ends.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bindonce_observe::{Follower, follow};
use bindonce_sys::scm;
use bindonce_wire::framing::{Frame, Scanner};
use bindonce_wire::message::{Id, Request, encode_error};
use bindonce_wire::{ErrorCode, RpcError};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout, timeout_at};

use crate::budgets::Share;
use crate::requests::{self, Caller};
use crate::sending::{Sending, send};
use crate::state::State;

/// Most requests are far shorter. Longer ones take more than one read, each a turn of its own.
const READ: usize = 16 * 1024;

/// From this length on a reply counts as large.
const LARGE: usize = 32 * 1024;

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The peer closed it.
    Closed,
    /// The peer used nothing and said nothing for long.
    Idle,
    /// The peer left a request unfinished for too long.
    Unfinished,
    /// What the peer sent cannot be cut into requests.
    Malformed,
    /// The peer did not read its reply in time.
    NotRead,
    /// The kernel let no more descriptors be in flight (ETOOMANYREFS, unix(7)).
    TooManyInFlight,
    /// More would have to be kept for the peer than there is room for.
    TooMuch,
    /// The broker has given it up.
    CutOff,
    /// Reading or writing failed.
    Failed(io::Error),
}

/// A connection, and how far it is.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) caller: Caller,
    pub(crate) stream: UnixStream,
    scanner: RefCell<Scanner>,
    /// Descriptors that came with what is not answered yet.
    received: RefCell<Vec<OwnedFd>>,
    /// How many these are.
    in_flight: Share,
    /// The longest request, in bytes.
    cap: usize,
    /// What is kept for it in memory.
    share: Share,
    /// No rule allowed the peer anything when it connected.
    pub(crate) stranger: bool,
    /// A request is being answered.
    busy: Cell<bool>,
    /// A reply to it was large.
    large: Cell<bool>,
    /// Notifications that could not be sent at once.
    untold: RefCell<Vec<u8>>,
    /// The connection must end.
    cut: Cell<bool>,
    /// Rung when one of these two has changed.
    woken: Notify,
    /// The id, as JSON text, of the request for an upgrade that waits to be answered.
    owed: RefCell<Option<String>>,
    /// It follows the events from this id on, and does nothing else any more.
    following: RefCell<Option<(Follower, u64)>>,
    follows: Cell<bool>,
}

impl Link {
    /// A connection that begins, or that goes on with what has been read of a request.
    pub(crate) fn new(
        stream: UnixStream,
        caller: Caller,
        unread: &[u8],
        state: &State,
    ) -> Rc<Self> {
        let cap = state.limits.request_bytes;
        let uid = caller.peer.uid;
        let spared = state.policy.owns_names(uid);
        let share = Share::new(&state.budget, uid, spared);
        let stranger = !state.policy.knows(caller.peer, &caller.groups);
        let mut scanner = Scanner::new(cap);
        let mut input = unread;
        // Less than a request, so no frame comes of it.
        while scanner.next(&mut input).is_some() {}
        Rc::new(Self {
            caller,
            stream,
            scanner: RefCell::new(scanner),
            received: RefCell::default(),
            // Nobody is spared: the system has so many descriptors and not more.
            in_flight: Share::new(&state.in_flight, uid, false),
            cap,
            share,
            stranger,
            busy: Cell::new(false),
            large: Cell::new(false),
            untold: RefCell::default(),
            cut: Cell::new(false),
            woken: Notify::new(),
            owed: RefCell::new(None),
            following: RefCell::new(None),
            follows: Cell::new(false),
        })
    }

    /// Whether its request has yet to be answered by this image.
    pub(crate) fn is_busy(&self) -> bool {
        let answers = self.busy.get() && self.owed.borrow().is_none() && !self.follows.get();
        answers || !self.untold.borrow().is_empty()
    }

    /// It is a follower's once its request is answered.
    pub(crate) fn follow(&self, follower: Follower, last: u64) {
        *self.following.borrow_mut() = Some((follower, last));
    }

    /// Whether it is a follower's.
    pub(crate) fn is_following(&self) -> bool {
        self.follows.get()
    }

    /// Sends a notification: at once where nothing is being sent and the peer has room, else
    /// as soon as it can be, with the same deadline as a reply.
    pub(crate) fn tell(&self, line: Vec<u8>) {
        if self.follows.get() {
            return;
        }
        let mut untold = self.untold.borrow_mut();
        let mut line = line;
        if untold.is_empty() && !self.busy.get() {
            // Whatever fails is noticed where the connection is served.
            let sent = self.stream.try_write(&line).unwrap_or(0);
            line.drain(..sent);
        }
        if !line.is_empty() {
            untold.append(&mut line);
            self.woken.notify_one();
        }
    }

    /// Ends the connection.
    pub(crate) fn cut(&self) {
        self.cut.set(true);
        self.woken.notify_one();
    }

    /// Sends the notifications that wait, or ends the connection.
    async fn flush(&self, deadline: Duration) -> Result<(), End> {
        let until = Instant::now() + deadline;
        loop {
            if self.cut.get() {
                return Err(End::CutOff);
            }
            {
                let mut untold = self.untold.borrow_mut();
                while !untold.is_empty() {
                    match self.stream.try_write(&untold) {
                        Ok(sent) => drop(untold.drain(..sent)),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(End::Failed(error)),
                    }
                }
                if untold.is_empty() {
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

    /// Counts what is kept of its requests, beside those that wait to be answered. False if there
    /// is no room for it.
    fn keep(&self, waiting: usize) -> bool {
        let kept = self.scanner.borrow().kept() + waiting;
        self.large.set(self.large.get() || kept >= LARGE);
        self.share.keep(kept)
    }

    /// Whether what its requests and replies took is worth giving back to the system.
    pub(crate) fn was_large(&self) -> bool {
        self.large.get()
    }

    /// What has been read of a request, if another image can go on from there. A descriptor
    /// that was received stays behind.
    pub(crate) fn unread(&self) -> Option<Vec<u8>> {
        if self.is_busy() || self.follows.get() || !self.received.borrow().is_empty() {
            return None;
        }
        self.scanner.borrow().unread().map(<[u8]>::to_vec)
    }

    /// Notes the request whose answer is an upgrade; with None that it is answered otherwise.
    pub(crate) fn owe(&self, id: Option<String>) {
        *self.owed.borrow_mut() = id;
    }

    /// The request whose answer is an upgrade.
    pub(crate) fn owed(&self) -> Option<String> {
        self.owed.borrow().clone()
    }

    /// Descriptors for the request that is being answered, in the order in which they came.
    pub(crate) fn take_received(&self) -> Vec<OwnedFd> {
        self.in_flight.keep(0);
        self.received.take()
    }

    /// Reads what there is, and cuts it into frames. None at the end of the stream.
    fn read(&self) -> io::Result<Option<Taken>> {
        // One for all connections: nothing of it is needed once it is cut into frames.
        thread_local!(static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into()));
        BUFFER.with_borrow_mut(|buffer| {
            let mut received = self.received.borrow_mut();
            let before = received.len();
            let mut came = None;
            let read = self.stream.try_io(Interest::READABLE, || {
                let count =
                    scm::recv(self.stream.as_fd(), buffer, &mut received).map_err(|error| {
                        error.errno().map_or_else(
                            || io::Error::other(error.to_string()),
                            io::Error::from_raw_os_error,
                        )
                    })?;
                came = Some(count);
                // A message with descriptors ends a read; any other short one has emptied the
                // socket, and what comes next is an event. Saying so spares a read in vain.
                if count < buffer.len() && received.len() == before {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(count)
            });
            let count = came.map_or(read, Ok)?;
            let fits = self.in_flight.keep(received.len());
            if received.len() > scm::MAX_FDS || !fits {
                // More than any request, or the connections of a user together, may have.
                self.in_flight.keep(0);
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
struct Taken {
    frames: Vec<Frame>,
    /// It filled the buffer, so more has come already.
    more: bool,
}

/// Serves a connection to its end. One that has sent much gives way to the others after each
/// request and each read: none of them waits for more than one of its steps.
pub(crate) async fn serve(link: &Rc<Link>, state: &RefCell<State>) -> End {
    let in_progress = || link.scanner.borrow().in_progress();
    // Since when the request in progress has been in progress.
    let mut begun = in_progress().then(Instant::now);
    loop {
        let (deadline, idle) = {
            let limits = &state.borrow().limits;
            (limits.request_time, limits.idle_time)
        };
        if let Err(end) = link.flush(deadline).await {
            return end;
        }
        let readable = async {
            tokio::select! {
                ready = link.stream.readable() => ready.map(|()| true),
                () = link.woken.notified() => Ok(false),
            }
        };
        let ready = match begun {
            None => match timeout(idle, readable).await {
                Ok(ready) => ready,
                Err(_) if state.borrow().registry.is_used(link.caller.connection) => continue,
                Err(_) => return End::Idle,
            },
            Some(begun) => match timeout_at(begun + deadline, readable).await {
                Ok(ready) => ready,
                Err(_) => return unfinished(&link.stream, deadline).await,
            },
        };
        let read = |ready| if ready { link.read() } else { Ok(Some(Taken::default())) };
        let Taken { frames, more } = match ready.and_then(read) {
            Ok(Some(taken)) => taken,
            Ok(None) => return End::Closed,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return End::Failed(error),
        };
        let waiting: usize = frames.iter().map(Frame::memory).sum();
        if !link.keep(waiting) {
            return too_much(link, &frames);
        }
        let complete = !frames.is_empty();
        link.busy.set(complete);
        let last = frames.len().saturating_sub(1);
        for (index, frame) in frames.into_iter().enumerate() {
            let last_word = frame.ends_connection();
            let reply = match frame {
                // In a box: most connections are idle, and the way to an answer is long.
                Frame::Request(frame) => Box::pin(requests::answer(state, link, &frame)).await,
                bad => encode_error(&Id::Null, &bad.refusal(link.cap)).into(),
            };
            link.large.set(link.large.get() || reply.text.len() >= LARGE);
            let mut sending = Sending::new(reply);
            let sent = sending.push(&link.stream);
            // Before anything else has a turn, whatever has become of the reply.
            state.borrow_mut().settle();
            let sent = match sent {
                Ok(false) if !link.share.keep_one(waiting + sending.memory()) => {
                    return End::TooMuch;
                }
                Ok(false) => sending.finish(&link.stream, deadline).await,
                done => done.map(drop),
            };
            if let Err(end) = sent {
                return end;
            }
            if last_word {
                return End::Malformed;
            }
            let following = link.following.take();
            if let Some((follower, last)) = following {
                link.follows.set(true);
                state.borrow().upgrade.calmer();
                return match follow(&follower, last, &link.stream, deadline).await {
                    Ok(()) => End::Closed,
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => End::NotRead,
                    Err(error) => End::Failed(error),
                };
            }
            if index < last {
                yield_now().await;
            }
        }
        if more {
            yield_now().await;
        }
        // What is kept is less now.
        link.keep(0);
        if complete {
            link.busy.set(false);
            state.borrow().upgrade.calmer();
        }
        let in_progress = in_progress();
        if !in_progress {
            // Nobody has asked for these.
            link.take_received();
        }
        begun = match (in_progress, begun) {
            (false, _) => None,
            (true, Some(begun)) if !complete => Some(begun),
            (true, _) => Some(Instant::now()),
        };
    }
}

/// There is no room for what has been read. The last word; where the peer has no room for it, the
/// end of the connection tells as much.
fn too_much(link: &Link, frames: &[Frame]) -> End {
    let message =
        "more requests wait, or are not finished, than the broker keeps for one user or for all";
    let error = RpcError::new(ErrorCode::LIMIT, message).with_hint(
        "finish one before the next, on fewer connections, or raise buffered_bytes in [limits] of \
         the broker's configuration",
    );
    let id = frames.iter().find_map(|frame| match frame {
        Frame::Request(text) => Request::decode(text).ok().map(|request| request.id),
        _ => None,
    });
    let _ = link.stream.try_write(&encode_error(&id.unwrap_or(Id::Null), &error));
    End::TooMuch
}

async fn unfinished(stream: &UnixStream, deadline: Duration) -> End {
    let message = format!(
        "the request was begun and not finished within {}",
        bindonce_core::duration::format(deadline)
    );
    let error = RpcError::new(ErrorCode::TIMED_OUT, message)
        .with_hint("send a request as a whole; the connection is closed now");
    match send(stream, encode_error(&Id::Null, &error).into(), deadline).await {
        Ok(()) => End::Unfinished,
        Err(end) => end,
    }
}
