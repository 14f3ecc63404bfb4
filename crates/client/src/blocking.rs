//! The client that blocks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bindonce_sys::scm;
use bindonce_wire::batch::MAX_FDS;
use bindonce_wire::params::{Events, Join};
use bindonce_wire::result::{
    EventsResult, JoinResult, ListResult, PingResult, ReleaseResult, StatusResult, StoreResult,
};
use serde::Serialize;
use serde_json::Value;

use crate::claim::{Claim, Give};
use crate::error::Error;
use crate::lease::Lease;
use crate::session::{Answer, DEFAULT_TIMEOUT, Session, leases, typed};
use crate::socket;

/// What fits into one message of the kernel anyway.
pub(crate) const READ_SIZE: usize = 64 * 1024;

/// How long to wait before trying again to connect: nothing tells when a broker listens.
pub(crate) const AGAIN: Duration = Duration::from_millis(20);

/// What calls without parameters send.
pub(crate) const NOTHING: [(); 0] = [];

/// A connection to a broker. It counts as a user of every listener that it has
/// claimed until it is dropped, so keep it as long as you serve.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    session: Session,
    buffer: Box<[u8]>,
    timeout: Duration,
    /// The socket's timeout for receiving, which only differs from `timeout`
    /// after a reply in many messages.
    receive_timeout: Duration,
}

impl Client {
    /// Connects to the broker at `path`, usually [`default_socket`](crate::default_socket).
    ///
    /// # Errors
    /// [`Error::Connect`], or [`Error::TimedOut`] after [`DEFAULT_TIMEOUT`].
    pub fn connect(path: &Path) -> Result<Self, Error> {
        Self::connect_within(path, DEFAULT_TIMEOUT)
    }

    /// Connects, and allows that long for connecting and for each call.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::TimedOut`].
    pub fn connect_within(path: &Path, timeout: Duration) -> Result<Self, Error> {
        let timeout = at_least(timeout);
        Self::over(OwnedFd::from(socket::connect(path, timeout)?).into(), timeout)
    }

    /// Connects to the broker that follows one that was lost: as soon as one answers, gives
    /// back what this process holds, and says what it stands for. Tries for as long as `patience`.
    ///
    /// # Errors
    /// That of the last attempt.
    pub fn reconnect(
        path: &Path,
        listeners: &[Give<'_>],
        join: Option<&Join>,
        patience: Duration,
    ) -> Result<Self, Error> {
        let until = Instant::now() + patience;
        let attempt = || {
            let mut client = Self::connect(path)?;
            client.store(listeners)?;
            if let Some(join) = join {
                client.join(join)?;
            }
            Ok(client)
        };
        loop {
            match attempt() {
                Err(error) if Error::is_absence(&error) && Instant::now() < until => {
                    std::thread::sleep(AGAIN);
                }
                done => return done,
            }
        }
    }

    /// Talks over a connection that is open already, for example an inherited one.
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
        let mut client = Self { stream, session, buffer, timeout, receive_timeout: timeout };
        client.set_timeout(timeout)?;
        Ok(client)
    }

    /// Sets how long each call may take from now on; at least a millisecond.
    ///
    /// # Errors
    /// [`Error::Io`] if the socket's timeouts cannot be set.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), Error> {
        self.timeout = at_least(timeout);
        self.stream.set_write_timeout(Some(self.timeout)).map_err(Error::Io)?;
        self.receive_within(self.timeout)
    }

    /// Claims listeners, all or none. Gives one lease for each, in order; a range
    /// of ports gives many.
    ///
    /// # Errors
    /// [`Error::Refused`] with the broker's reason; see [`Error`].
    pub fn claim(&mut self, claims: &[Claim]) -> Result<Vec<Lease>, Error> {
        let binds: Vec<_> = claims.iter().map(|claim| &claim.0).collect();
        self.exchange("bind", &binds, true).and_then(leases)
    }

    /// Says which generation of which service this connection is. May be said
    /// again when the process or the state changes.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn join(&mut self, join: &Join) -> Result<(), Error> {
        self.exchange("join", &[join], false).and_then(typed::<JoinResult>).map(drop)
    }

    /// Closes listeners, given by name or address, all or none. Gives their names.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`IN_USE`](crate::ErrorCode::IN_USE) while another
    /// connection uses one; see [`Error`].
    pub fn release(&mut self, listeners: &[impl AsRef<str>]) -> Result<Vec<String>, Error> {
        let listeners: Vec<&str> = listeners.iter().map(AsRef::as_ref).collect();
        let answer = self.exchange("release", &listeners, false)?;
        typed::<ReleaseResult>(answer).map(|result| result.released)
    }

    /// Every listener that the broker holds.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn list(&mut self) -> Result<ListResult, Error> {
        self.exchange("list", &NOTHING, false).and_then(typed)
    }

    /// The broker, its listeners and the services that use them.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn status(&mut self) -> Result<StatusResult, Error> {
        self.exchange("status", &NOTHING, false).and_then(typed)
    }

    /// What happened after the event with the id `since`, as far as it is remembered; 0 for
    /// all of it. [`Follower`](crate::Follower) tells what happens from then on.
    ///
    /// # Errors
    /// [`Error::Refused`] where the caller may not see every listener; see [`Error`].
    pub fn events(&mut self, since: u64) -> Result<EventsResult, Error> {
        self.exchange("events", &[Events { since, follow: false }], false).and_then(typed)
    }

    /// Asks whether the broker is there, and its version.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn ping(&mut self) -> Result<PingResult, Error> {
        self.exchange("ping", &NOTHING, false).and_then(typed)
    }

    /// Gives the broker listeners that this process holds, and uses them from then on as if it
    /// had claimed them. What the broker has already is only used. Gives their names, in order.
    /// Done in parts of 253, each all or nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] if one is not what it is said to be, or another holds its name or
    /// address; see [`Error`].
    pub fn store(&mut self, listeners: &[Give<'_>]) -> Result<Vec<String>, Error> {
        let mut names = Vec::with_capacity(listeners.len());
        for part in listeners.chunks(MAX_FDS) {
            let what: Vec<_> = part.iter().map(|give| &give.what).collect();
            let fds: Vec<_> = part.iter().map(|give| give.fd).collect();
            let answer = self.exchange_with("store", &what, &fds, false)?;
            let result = typed::<StoreResult>(answer)?;
            names.extend(result.listeners.into_iter().map(|listener| listener.name));
        }
        Ok(names)
    }

    /// Calls any method that gives no descriptors; `params` is an array.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn call<P: Serialize + ?Sized>(
        &mut self,
        method: &'static str,
        params: &P,
    ) -> Result<Value, Error> {
        self.exchange(method, params, false).and_then(typed)
    }

    fn exchange<P: Serialize + ?Sized>(
        &mut self,
        method: &'static str,
        params: &P,
        binds: bool,
    ) -> Result<Answer, Error> {
        self.exchange_with(method, params, &[], binds)
    }

    fn exchange_with<P: Serialize + ?Sized>(
        &mut self,
        method: &'static str,
        params: &P,
        fds: &[BorrowedFd<'_>],
        binds: bool,
    ) -> Result<Answer, Error> {
        let request = self.session.begin(method, params, binds)?;
        let outcome = self.converse(&request, fds, method);
        self.session.abandon();
        outcome
    }

    fn converse(
        &mut self,
        request: &[u8],
        fds: &[BorrowedFd<'_>],
        method: &'static str,
    ) -> Result<Answer, Error> {
        let deadline = Instant::now() + self.timeout;
        self.send(request, fds, method, deadline)?;
        if self.receive_timeout != self.timeout {
            self.receive_within(self.timeout)?;
        }
        loop {
            let fds = self.session.descriptors().ok_or(Error::Interrupted)?;
            match scm::recv(self.stream.as_fd(), &mut self.buffer, fds).map_err(Error::from) {
                Ok(0) => return Err(Error::Closed { during: method }),
                Ok(count) => {
                    if let Some(answer) = self.session.receive(&self.buffer[..count])? {
                        return Ok(answer);
                    }
                }
                Err(error) => return Err(self.while_doing(method, error)),
            }
            // More must come; it has what is left of the time.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.timed_out(method));
            }
            self.receive_within(left)?;
        }
    }

    fn send(
        &self,
        request: &[u8],
        mut fds: &[BorrowedFd<'_>],
        method: &'static str,
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut rest = request;
        while !rest.is_empty() {
            match scm::send(self.stream.as_fd(), rest, fds) {
                Ok(count) => {
                    rest = &rest[count..];
                    // They went with the first byte.
                    fds = &[];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The broker has hung up, perhaps after saying why: read that.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(self.while_doing(method, Error::Io(error))),
            }
            if !rest.is_empty() && Instant::now() >= deadline {
                return Err(self.timed_out(method));
            }
        }
        Ok(())
    }

    fn receive_within(&mut self, timeout: Duration) -> Result<(), Error> {
        self.receive_timeout = at_least(timeout);
        self.stream.set_read_timeout(Some(self.receive_timeout)).map_err(Error::Io)
    }

    fn while_doing(&self, method: &'static str, error: Error) -> Error {
        match error {
            Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock => self.timed_out(method),
            Error::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Error::Closed { during: method }
            }
            error => error,
        }
    }

    fn timed_out(&self, during: &'static str) -> Error {
        Error::TimedOut { during, after: self.timeout }
    }
}

/// The connection's descriptor. Between two calls it becomes readable only when
/// the broker closes the connection, so it can be watched for that.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The system takes a timeout of zero for none at all.
pub(crate) fn at_least(timeout: Duration) -> Duration {
    timeout.max(Duration::from_millis(1))
}
