//! Sends replies: the text and the descriptors that go with it, as fast as the peer reads, until a
//! deadline.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bindonce_fd::batch::Transmission;
use bindonce_sys::Errno;
use bindonce_sys::patience::{Patience, within};
use bindonce_wire::message::{Id, encode_error};
use bindonce_wire::{ErrorCode, RpcError};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::task::yield_now;

use super::clients::Clients;
use super::end::End;
use super::link::Link;

/// How many messages with descriptors are sent in one turn: some 40 us each.
const SENT_AT_ONCE: usize = 4;

/// A reply: its text, which ends in a line end, and the descriptors that go with it.
#[derive(Debug)]
pub struct Reply {
    /// The text.
    pub text: Vec<u8>,
    /// The descriptors, which the peer receives in this order.
    pub descriptors: Vec<Rc<OwnedFd>>,
}

impl From<Vec<u8>> for Reply {
    fn from(text: Vec<u8>) -> Self {
        Self { text, descriptors: Vec::new() }
    }
}

/// Sends a whole reply, or ends the connection.
pub(super) async fn send(
    link: &Link,
    clients: &Clients,
    reply: Reply,
    deadline: Duration,
) -> Result<(), End> {
    Sending::new(reply).finish(link, clients, deadline).await
}

/// How much of a reply is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// All of it is sent.
    Whole,
    /// As much as one turn allows.
    Part,
    /// The connection is full.
    Full,
    /// This many descriptors are next, and the peer's user has as many unreceived ones as it may
    /// have.
    Crowded(usize),
}

/// A reply that is being sent.
pub(super) struct Sending {
    length: usize,
    transmission: Transmission,
    descriptors: Vec<Rc<OwnedFd>>,
}

impl Sending {
    pub(super) fn new(reply: Reply) -> Self {
        let Reply { text, descriptors } = reply;
        let length = text.capacity() + descriptors.len() * size_of::<Rc<OwnedFd>>();
        Self { length, transmission: Transmission::new(text, descriptors.len()), descriptors }
    }

    /// About how much memory the reply takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.length
    }

    /// Sends what the peer has room for, but only [`SENT_AT_ONCE`] messages with descriptors.
    pub(super) fn push(&mut self, link: &Link) -> Result<Pushed, End> {
        let stream = &link.stream;
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        let mut messages = 0;
        while let Some((bytes, batch)) = self.transmission.next() {
            if messages == SENT_AT_ONCE {
                return Ok(Pushed::Part);
            }
            let count = batch.len();
            messages += usize::from(count != 0);
            if count != 0 && !link.has_room(count) {
                return Ok(Pushed::Crowded(count));
            }
            fds.clear();
            fds.extend(self.descriptors[batch].iter().map(|fd| fd.as_fd()));
            let sent = stream.try_io(Interest::WRITABLE, || bindonce_fd::send(stream, bytes, &fds));
            match sent {
                Ok(bytes) => {
                    link.was_sent(count);
                    self.transmission.advance(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Pushed::Full),
                Err(error) if error.raw_os_error() == Some(Errno::ETOOMANYREFS as i32) => {
                    let hint = "connect and ask again; raising the broker's RLIMIT_NOFILE raises this limit as well";
                    return Err(too_many(stream, &self.transmission, hint));
                }
                Err(error) => return Err(End::Failed(error)),
            }
        }
        Ok(Pushed::Whole)
    }

    /// Sends the rest, as the peer makes room, until the deadline.
    pub(super) async fn finish(
        mut self,
        link: &Link,
        clients: &Clients,
        deadline: Duration,
    ) -> Result<(), End> {
        let mut patience = Patience::new(deadline);
        loop {
            match self.push(link)? {
                Pushed::Whole => return Ok(()),
                Pushed::Part => yield_now().await,
                Pushed::Full => match within(&mut patience, link.stream.writable()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return Err(End::Failed(error)),
                    Err(_) => return Err(End::NotRead),
                },
                Pushed::Crowded(count) => {
                    if !clients.room_for(link, count, &mut patience).await {
                        let hint = "receive the descriptors of every reply, on all connections of this user, and close those that are not read";
                        return Err(too_many(&link.stream, &self.transmission, hint));
                    }
                }
            }
        }
    }
}

/// Unreceived descriptors fill this process's limit, or the part that the user may have of it.
/// Sends an error if no descriptor of the reply is sent yet; the leases end with the connection.
fn too_many(stream: &UnixStream, transmission: &Transmission, hint: &str) -> End {
    if transmission.descriptors_sent() == 0 {
        let message = "too many descriptors are in flight to clients that have not received them";
        let error = RpcError::new(ErrorCode::LIMIT, message).with_hint(hint);
        // The peer waits for this reply, so there is room for it; if not, the close says the same.
        let _ = stream.try_write(&encode_error(&Id::Null, &error));
    }
    End::TooManyInFlight
}
