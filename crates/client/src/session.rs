//! One connection without its socket: the bytes to send for a call, and the meaning of the bytes
//! and descriptors that come back.
//!
//! The blocking and the tokio client share it, so both are equally strict: a reply must come with
//! exactly the descriptors that it lists, batch by batch (docs/protocol.md). As soon as a
//! descriptor is known to be missing or surplus, the call fails, all received descriptors are
//! closed (they are owned from the system call on), and the connection is not used again: what
//! follows on it is unknown.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::mem;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bindonce_fd::MAX_FDS;
use bindonce_wire::RpcError;
use bindonce_wire::message::{Id, Notification, Reply, encode_request};
use bindonce_wire::result::{BindResult, Bound};
use memchr::memchr;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::error::Error;
use crate::lease::Lease;

/// The default timeout for connecting and for each call.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest reply that a client reads, in bytes: enough for the list of about
/// a hundred thousand listeners.
pub const MAX_REPLY: usize = 64 << 20;

/// The longest notification that a client reads, in bytes.
const MAX_NOTIFICATION: usize = 64 << 10;

/// The most notifications that are queued: a broker sends a generation a few in its life.
const MAX_NOTIFICATIONS: usize = 1024;

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Session {
    /// The received part of an incomplete line.
    partial: Vec<u8>,
    last_id: u64,
    call: Option<Call>,
    /// Whether the broker may send notifications, because it was asked to.
    overhears: bool,
    /// Notifications that are not read yet.
    notifications: VecDeque<Notification>,
}

/// A call that waits for its reply.
#[derive(Debug)]
struct Call {
    id: Id,
    binds: bool,
    reply: Option<Result<Reading, RpcError>>,
    /// Space bytes that came after the reply; each announces a batch.
    spaces: usize,
    descriptors: Vec<OwnedFd>,
}

/// The text of a reply, without its descriptors.
#[derive(Debug)]
enum Reading {
    Plain(Box<RawValue>),
    Bound(Vec<Bound>),
}

/// The result of a call.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The result of any method but `bind`.
    Plain(Box<RawValue>),
    /// The listeners from `bind`, and as many descriptors.
    Bound(Vec<Bound>, Vec<OwnedFd>),
}

impl Session {
    pub(crate) fn new() -> Self {
        Self {
            partial: Vec::new(),
            last_id: 0,
            call: None,
            overhears: false,
            notifications: VecDeque::new(),
        }
    }

    /// Allows notifications from now on.
    pub(crate) fn expect_notifications(&mut self) {
        self.overhears = true;
    }

    /// The oldest notification that is not read yet.
    pub(crate) fn next_notification(&mut self) -> Option<Notification> {
        self.notifications.pop_front()
    }

    /// Takes bytes that were received between two calls.
    pub(crate) fn overhear(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        if !self.overhears || self.call.is_some() {
            return Err(Error::Protocol("a message without a request".to_owned()));
        }
        while let Some(line) = next_line(&mut self.partial, &mut bytes, MAX_NOTIFICATION)? {
            match notification(&line)? {
                Some(notification) => enqueue(&mut self.notifications, notification)?,
                None => return Err(Error::Protocol("a reply without a request".to_owned())),
            }
        }
        Ok(())
    }

    /// Begins a call and returns the bytes to send. Only a call that `binds` may receive
    /// descriptors.
    pub(crate) fn begin<P: Serialize + ?Sized>(
        &mut self,
        method: &str,
        params: &P,
        binds: bool,
    ) -> Result<Vec<u8>, Error> {
        if self.call.is_some() {
            return Err(Error::Interrupted);
        }
        let id = Id::from(self.last_id + 1);
        let request = encode_request(&id, method, params).map_err(Error::Encode)?;
        self.last_id += 1;
        let (descriptors, reply) = (Vec::new(), None);
        self.call = Some(Call { id, binds, reply, spaces: 0, descriptors });
        Ok(request)
    }

    /// Where to put the descriptors of the next message.
    pub(crate) fn descriptors(&mut self) -> Option<&mut Vec<OwnedFd>> {
        self.call.as_mut().map(|call| &mut call.descriptors)
    }

    /// Takes the bytes of one message, whose descriptors are in [`descriptors`](Self::descriptors).
    /// Returns the answer when it is complete.
    pub(crate) fn receive(&mut self, mut bytes: &[u8]) -> Result<Option<Answer>, Error> {
        let outcome = self.take(&mut bytes);
        if matches!(outcome, Ok(Some(_)) | Err(Error::Refused(_))) {
            // The connection is ready for the next call.
            self.call = None;
            if !bytes.is_empty() {
                self.overhear(bytes)?;
            }
        }
        outcome
    }

    /// Abandons an unfinished call, if there is one: its descriptors are closed, and the connection
    /// is not used any more.
    pub(crate) fn abandon(&mut self) {
        if let Some(call) = &mut self.call {
            call.descriptors = Vec::new();
        }
    }

    fn take(&mut self, bytes: &mut &[u8]) -> Result<Option<Answer>, Error> {
        let call = self.call.as_mut().ok_or(Error::Interrupted)?;
        while call.reply.is_none() {
            let Some(line) = next_line(&mut self.partial, bytes, MAX_REPLY)? else {
                // The text comes with at most the first batch.
                if call.descriptors.len() > MAX_FDS {
                    return Err(call.miscounted(0));
                }
                return Ok(None);
            };
            if self.overhears {
                if let Some(notification) = notification(&line)? {
                    enqueue(&mut self.notifications, notification)?;
                    continue;
                }
            }
            call.reply = Some(call.read(&line)?);
        }
        let expected = match &call.reply {
            Some(Ok(Reading::Bound(bound))) => bound.len(),
            _ => 0,
        };
        let spaces = bytes.iter().take_while(|byte| **byte == b' ').count();
        let rest = &bytes[spaces..];
        call.spaces += spaces;
        // Descriptors come no later than the byte that carries them.
        let due = expected.min(MAX_FDS.saturating_mul(call.spaces + 1));
        if !rest.is_empty() && (!self.overhears || due < expected) {
            return Err(Error::Protocol("more than one line to one request".to_owned()));
        }
        if call.descriptors.len() != due {
            return Err(call.miscounted(expected));
        }
        if due < expected {
            call.descriptors.reserve_exact(expected - due);
            return Ok(None);
        }
        *bytes = rest;
        let descriptors = mem::take(&mut call.descriptors);
        match call.reply.take() {
            Some(Ok(Reading::Bound(bound))) => Ok(Some(Answer::Bound(bound, descriptors))),
            Some(Ok(Reading::Plain(result))) => Ok(Some(Answer::Plain(result))),
            Some(Err(error)) => Err(Error::Refused(error)),
            None => Ok(None),
        }
    }
}

impl Call {
    /// Reads the line of the reply.
    fn read(&self, line: &[u8]) -> Result<Result<Reading, RpcError>, Error> {
        fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<Reply<T>, Error> {
            Reply::decode(line).map_err(|error| Error::Protocol(error.to_string()))
        }
        let (id, outcome) = if self.binds {
            let Reply { id, outcome } = decode::<BindResult>(line)?;
            (id, outcome.map(|result| Reading::Bound(result.listeners)))
        } else {
            let Reply { id, outcome } = decode(line)?;
            (id, outcome.map(Reading::Plain))
        };
        // A reply to a request that the broker could not read has no id.
        if id != self.id && !(id == Id::Null && outcome.is_err()) {
            return Err(Error::Protocol("the reply is to another request".to_owned()));
        }
        Ok(outcome)
    }

    fn miscounted(&self, expected: usize) -> Error {
        Error::Descriptors { expected, received: self.descriptors.len() }
    }
}

/// The next complete line, with its line end. An incomplete line is kept in `partial`.
fn next_line<'a>(
    partial: &mut Vec<u8>,
    bytes: &mut &'a [u8],
    longest: usize,
) -> Result<Option<Cow<'a, [u8]>>, Error> {
    let Some(end) = memchr(b'\n', bytes) else {
        if partial.len() + bytes.len() > longest {
            return Err(Error::Protocol(format!("longer than {longest} bytes")));
        }
        partial.extend_from_slice(bytes);
        *bytes = &[];
        return Ok(None);
    };
    let (line, rest) = bytes.split_at(end + 1);
    *bytes = rest;
    if partial.is_empty() {
        return Ok(Some(line.into()));
    }
    let mut whole = mem::take(partial);
    whole.extend_from_slice(line);
    Ok(Some(whole.into()))
}

fn enqueue(
    notifications: &mut VecDeque<Notification>,
    notification: Notification,
) -> Result<(), Error> {
    if notifications.len() == MAX_NOTIFICATIONS {
        return Err(Error::Protocol(format!(
            "more than {MAX_NOTIFICATIONS} messages without a request"
        )));
    }
    notifications.push_back(notification);
    Ok(())
}

fn notification(line: &[u8]) -> Result<Option<Notification>, Error> {
    Notification::decode(line).map_err(|error| Error::Protocol(error.to_string()))
}

/// Decodes the result of a method into the type that the method returns.
pub(crate) fn typed<T: DeserializeOwned>(answer: Answer) -> Result<T, Error> {
    match answer {
        Answer::Plain(raw) => {
            serde_json::from_str(raw.get()).map_err(|error| Error::Protocol(error.to_string()))
        }
        Answer::Bound(..) => Err(Error::Protocol("unexpected listeners in the reply".to_owned())),
    }
}

/// Converts the answer to `bind` into leases.
pub(crate) fn leases(answer: Answer) -> Result<Vec<Lease>, Error> {
    match answer {
        Answer::Bound(bound, fds) => {
            Ok(bound.into_iter().zip(fds).map(|(bound, fd)| Lease::new(bound, fd)).collect())
        }
        Answer::Plain(_) => Err(Error::Protocol("no listeners in the reply".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_talks_without_end_is_cut_off() {
        let line = b"{\"jsonrpc\":\"2.0\",\"method\":\"retire\",\"params\":[{\"service\":\"web\",\"generation\":1,\"successor\":2}]}\n";
        assert!(matches!(notification(line), Ok(Some(_))));
        for in_a_call in [false, true] {
            let mut session = Session::new();
            session.expect_notifications();
            if in_a_call {
                session.begin("ping", &(), false).expect("a call");
            }
            let mut deliver = || match in_a_call {
                false => session.overhear(line),
                true => session.receive(line).map(drop),
            };
            (0..MAX_NOTIFICATIONS).for_each(|_| deliver().expect("some"));
            assert!(matches!(deliver(), Err(Error::Protocol(_))));
            assert_eq!(session.notifications.len(), MAX_NOTIFICATIONS);
        }
    }
}
