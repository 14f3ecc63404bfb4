//! The blocking client.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bindonce_core::patience::Patience;
use bindonce_fd::MAX_FDS;
use bindonce_wire::RpcError;
use bindonce_wire::message::Notification;
use bindonce_wire::params::Join;
use bindonce_wire::result::{EventsResult, ListResult, PingResult, StatusResult};
use serde::Serialize;
use serde_json::Value;

use crate::acceptor::wait_readable;
use crate::claim::{Claim, Give, GivingBack};
use crate::error::Error;
use crate::lease::{Lease, only};
use crate::membership::ATTEMPT;
use crate::session::{Answer, DEFAULT_TIMEOUT, Session, typed};
use crate::transfer::{Outgoing, READ_SIZE};
use crate::verbs::Verb;
use crate::{socket, transfer, verbs};

/// The wait before another attempt to connect: no event says when a broker listens.
pub(crate) const AGAIN: Duration = Duration::from_millis(20);

/// A connection to a broker. Until it is dropped, it counts as a user of every listener that it has
/// claimed, so keep it as long as you serve.
///
/// For a server that takes over from an earlier start of itself, use
/// [`Generation`](crate::Generation), which has its own connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    session: Session,
    buffer: Box<[u8]>,
    timeout: Duration,
    /// How long the socket waits in one system call; None until it is set.
    wait: Option<Duration>,
}

impl Client {
    /// Connects to the broker at `path`, usually [`default_socket`](crate::default_socket).
    ///
    /// # Errors
    /// [`Error::Connect`], or [`Error::TimedOut`] after [`DEFAULT_TIMEOUT`].
    pub fn connect(path: &Path) -> Result<Self, Error> {
        Self::connect_within(path, DEFAULT_TIMEOUT)
    }

    /// Connects, with this timeout for connecting and for each call.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::TimedOut`].
    pub fn connect_within(path: &Path, timeout: Duration) -> Result<Self, Error> {
        let timeout = at_least(timeout);
        Self::over(socket::connect(path, timeout)?.into(), timeout)
    }

    /// Connects to the next broker after one was lost. As soon as a broker answers, this gives back
    /// the listeners that this process holds ([`Lease::give`]) and joins as its generation. Tries
    /// for as long as `patience`; then each request of an attempt that has begun has one second
    /// more. Also returns the refusals of listeners that the broker does not take back, such as one
    /// whose UNIX path was removed; it has all others.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub fn reconnect(
        path: &Path,
        listeners: &[Give<'_>],
        join: Option<&Join>,
        patience: Duration,
    ) -> Result<(Self, Vec<RpcError>), Error> {
        let begun = Instant::now();
        let left = || patience.saturating_sub(begun.elapsed());
        let limit = || left().clamp(ATTEMPT, DEFAULT_TIMEOUT);
        let attempt = || {
            let mut client = Self::connect_within(path, limit())?;
            let refused = client.give_back(listeners, limit)?;
            if let Some(join) = join {
                client.set_timeout(limit())?;
                client.join(join)?;
            }
            client.set_timeout(DEFAULT_TIMEOUT)?;
            Ok((client, refused))
        };
        loop {
            // This process may be stopped during an attempt: the last one begins after the limit.
            let is_last = left().is_zero();
            match attempt() {
                Err(error) if Error::is_absence(&error) && !is_last => std::thread::sleep(AGAIN),
                done => return done,
            }
        }
    }

    /// Uses a connection that is already open, for example an inherited one.
    ///
    /// # Errors
    /// [`Error::Io`] if the socket's timeouts cannot be set.
    pub fn from_stream(stream: UnixStream) -> Result<Self, Error> {
        Self::over(stream, DEFAULT_TIMEOUT)
    }

    fn over(stream: UnixStream, timeout: Duration) -> Result<Self, Error> {
        stream.set_nonblocking(false).map_err(Error::Io)?;
        let buffer = vec![0; READ_SIZE].into_boxed_slice();
        let session = Session::new();
        let mut client = Self { stream, session, buffer, timeout, wait: None };
        client.set_timeout(timeout)?;
        Ok(client)
    }

    /// Sets how long each call may take from now on; at least a millisecond.
    ///
    /// # Errors
    /// [`Error::Io`] if the socket's timeouts cannot be set.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), Error> {
        self.timeout = at_least(timeout);
        self.wait_at_most(self.timeout).map_err(Error::Io)
    }

    /// Claims listeners, all or none. Returns one lease for each, in order; a range of ports gives
    /// one for each port.
    ///
    /// # Errors
    /// [`Error::Refused`] with the broker's reason; see [`Error`].
    pub fn claim(&mut self, claims: &[Claim]) -> Result<Vec<Lease>, Error> {
        self.ask(&verbs::claim(claims))
    }

    /// Claims one listener, as [`claim`](Self::claim) does. A claim of a range of ports is an
    /// error and binds nothing.
    ///
    /// # Errors
    /// As [`claim`](Self::claim), and [`Error::NotOne`].
    pub fn claim_one(&mut self, claim: impl Into<Claim>) -> Result<Lease, Error> {
        only(self.claim(&[Claim::of_one(claim)?])?)
    }

    /// Tells the broker which generation of which service this connection belongs to, for a
    /// supervisor that numbers and orders its generations itself. To let the broker do that, use
    /// [`Generation`](crate::Generation). Call it again when the process or the state changes.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn join(&mut self, join: &Join) -> Result<(), Error> {
        self.ask(&verbs::join(join))
    }

    /// Closes listeners, given by name or address, all or none. Returns their names.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`IN_USE`](crate::ErrorCode::IN_USE) while another
    /// connection uses one; see [`Error`].
    pub fn release(&mut self, listeners: &[impl AsRef<str>]) -> Result<Vec<String>, Error> {
        self.ask(&verbs::release(listeners))
    }

    /// Every listener that the broker holds.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn list(&mut self) -> Result<ListResult, Error> {
        self.ask(&verbs::list())
    }

    /// The broker, its listeners and the services that use them.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn status(&mut self) -> Result<StatusResult, Error> {
        self.ask(&verbs::status())
    }

    /// The remembered events after the event with the id `since`; 0 for all of them.
    /// [`Follower`](crate::Follower) also gives later events.
    ///
    /// # Errors
    /// [`Error::Refused`] if the caller may not see every listener; see [`Error`].
    pub fn events(&mut self, since: u64) -> Result<EventsResult, Error> {
        self.ask(&verbs::events(since))
    }

    /// Checks that the broker answers, and returns its version.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn ping(&mut self) -> Result<PingResult, Error> {
        self.ask(&verbs::ping())
    }

    /// Gives the broker listeners that this process holds, and uses them from then on as if it had
    /// claimed them. A listener that the broker already holds is only used. Returns their names, in
    /// order. Works in batches of 253, each all or nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] if a socket is not what its claim says, or another listener has its name
    /// or address; see [`Error`].
    pub fn store(&mut self, listeners: &[Give<'_>]) -> Result<Vec<String>, Error> {
        let mut names = Vec::with_capacity(listeners.len());
        for part in listeners.chunks(MAX_FDS) {
            let fds: Vec<_> = part.iter().map(|give| give.fd).collect();
            names.extend(self.ask_with(&verbs::store(part), &fds)?);
        }
        Ok(names)
    }

    /// Gives back listeners to the broker that has followed a lost one, as [`store`](Self::store)
    /// does, but without those that it does not take. Returns their refusals. `limit` is how long
    /// the next request may take.
    pub(crate) fn give_back(
        &mut self,
        listeners: &[Give<'_>],
        limit: impl Fn() -> Duration,
    ) -> Result<Vec<RpcError>, Error> {
        let mut giving = GivingBack::new(listeners);
        while let Some(part) = giving.next_part() {
            self.set_timeout(limit())?;
            let answer = self.store(part);
            giving.answered(part, answer)?;
        }
        Ok(giving.refused)
    }

    /// Calls any method of the protocol (docs/protocol-requests.md) that returns no descriptors,
    /// and returns its `result`. `params` is an array.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`METHOD_NOT_FOUND`](crate::ErrorCode::METHOD_NOT_FOUND) if the
    /// broker does not have the method; see [`Error`].
    pub fn call<P: Serialize + ?Sized>(
        &mut self,
        method: &'static str,
        params: &P,
    ) -> Result<Value, Error> {
        self.exchange(method, params, &[], false).and_then(typed)
    }

    /// Allows notifications from now on.
    pub(crate) fn expect_notifications(&mut self) {
        self.session.expect_notifications();
    }

    /// The next notification, if one has come. Does not wait.
    pub(crate) fn hear(&mut self) -> Result<Option<Notification>, Error> {
        loop {
            if let Some(notification) = self.session.next_notification() {
                return Ok(Some(notification));
            }
            if !wait_readable(&self.stream, Some(Instant::now())).map_err(Error::Io)? {
                return Ok(None);
            }
            transfer::overhear(self.stream.as_fd(), &mut self.buffer, &mut self.session)
                .map_err(Error::Io)??;
        }
    }

    pub(crate) fn ask<P: Serialize, T>(&mut self, verb: &Verb<P, T>) -> Result<T, Error> {
        self.ask_with(verb, &[])
    }

    fn ask_with<P: Serialize, T>(
        &mut self,
        verb: &Verb<P, T>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<T, Error> {
        self.exchange(verb.method, &verb.params, fds, verb.binds).and_then(verb.read)
    }

    fn exchange<P: Serialize + ?Sized>(
        &mut self,
        method: &'static str,
        params: &P,
        fds: &[BorrowedFd<'_>],
        binds: bool,
    ) -> Result<Answer, Error> {
        let request = self.session.begin(method, params, binds)?;
        let outcome = self.converse(Outgoing::new(&request, fds), method);
        self.session.abandon();
        outcome
    }

    fn converse(
        &mut self,
        mut request: Outgoing<'_>,
        method: &'static str,
    ) -> Result<Answer, Error> {
        let mut patience = Patience::new(self.timeout);
        self.wait_for_a_part(&mut patience, method)?;
        while !unless_it_waits(request.push(&self.stream))?.unwrap_or(false) {
            self.wait_for_a_part(&mut patience, method)?;
        }
        loop {
            let fd = self.stream.as_fd();
            let pulled = transfer::pull(fd, &mut self.buffer, &mut self.session, method);
            if let Some(answer) = unless_it_waits(pulled)?.transpose()?.flatten() {
                return Ok(answer);
            }
            self.wait_for_a_part(&mut patience, method)?;
        }
    }

    /// Lets the next send or receive wait for the next part of the timeout.
    fn wait_for_a_part(
        &mut self,
        patience: &mut Patience,
        during: &'static str,
    ) -> Result<(), Error> {
        match patience.next_wait(Instant::now()) {
            Some(wait) => self.wait_at_most(wait).map_err(Error::Io),
            None => Err(Error::TimedOut { during, after: self.timeout }),
        }
    }

    fn wait_at_most(&mut self, wait: Duration) -> io::Result<()> {
        if self.wait != Some(wait) {
            self.stream.set_write_timeout(Some(wait))?;
            self.stream.set_read_timeout(Some(wait))?;
            self.wait = Some(wait);
        }
        Ok(())
    }
}

/// The result of an attempt to send or to receive; None if the socket was not ready in time.
fn unless_it_waits<T>(attempt: io::Result<T>) -> Result<Option<T>, Error> {
    match attempt {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        done => done.map(Some).map_err(Error::Io),
    }
}

/// The connection's descriptor. Between two calls it becomes readable only when
/// the broker closes the connection, so it can be watched for that.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The system treats a timeout of zero as no timeout.
pub(crate) fn at_least(timeout: Duration) -> Duration {
    timeout.max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use bindonce_wire::params::State;

    use super::*;

    #[test]
    fn an_attempt_to_reconnect_lasts_no_longer_than_its_limit_and_a_second() {
        let name = format!("bindonce-silent-{}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        // Its queue takes the connection, and no process answers.
        let _silent = UnixListener::bind(&path).expect("bind");
        let join = Join::new("edge".parse().expect("a name"), 1, None, State::Serving);
        let limit = Duration::from_millis(10);
        let error = Client::reconnect(&path, &[], Some(&join), limit).expect_err("no answer");
        assert!(matches!(error, Error::TimedOut { after, .. } if after == ATTEMPT), "{error}");
        // Later calls have their usual time.
        let (client, _) = Client::reconnect(&path, &[], None, limit).expect("a connection");
        assert_eq!(client.timeout, DEFAULT_TIMEOUT);
        std::fs::remove_file(path).expect("remove");
    }
}
