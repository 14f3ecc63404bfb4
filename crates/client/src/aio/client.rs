//! One connection to a broker, for tokio.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::time::Duration;

use bindonce_fd::MAX_FDS;
use bindonce_wire::message::Notification;
use bindonce_wire::params::Join;
use bindonce_wire::result::{EventsResult, ListResult, PingResult, StatusResult};
use serde::Serialize;
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::blocking::{AGAIN, at_least};
use crate::claim::{Claim, Give};
use crate::error::Error;
use crate::lease::{Lease, only};
use crate::session::{Answer, DEFAULT_TIMEOUT, Session, typed};
use crate::transfer::{Outgoing, READ_SIZE};
use crate::verbs::Verb;
use crate::{socket, transfer, verbs};

/// A connection to a broker. Until it is dropped, it counts as a user of every listener that it has
/// claimed, so keep it as long as you serve.
///
/// ```no_run
/// # async fn run() -> Result<(), bindonce::Error> {
/// let mut client = bindonce::aio::Client::connect(&bindonce::default_socket()).await?;
/// let lease = client.claim(&["web=0.0.0.0:8080".into()]).await?.remove(0);
/// let listener = lease.into_tokio_tcp_listener()?;
/// let (stream, peer) = listener.accept().await.map_err(bindonce::Error::Io)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    session: Session,
    buffer: Box<[u8]>,
    timeout: Duration,
}

impl Client {
    /// Connects to the broker at `path`, usually [`default_socket`](crate::default_socket).
    ///
    /// # Errors
    /// [`Error::Connect`], or [`Error::TimedOut`] after [`DEFAULT_TIMEOUT`].
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        Self::connect_within(path, DEFAULT_TIMEOUT).await
    }

    /// Connects, with this timeout for connecting and for each call.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::TimedOut`].
    pub async fn connect_within(path: &Path, timeout: Duration) -> Result<Self, Error> {
        // While the server's accept queue is full, a non-blocking connect(2) on a UNIX socket
        // fails, and no event says when to try again. So a thread waits.
        let (path, timeout) = (path.to_owned(), at_least(timeout));
        #[expect(clippy::disallowed_methods, reason = "it ends at the deadline")]
        let connect = tokio::task::spawn_blocking(move || socket::connect(&path, timeout));
        let stream = connect.await.map_err(|error| Error::Io(io::Error::other(error)))??;
        let mut client = Self::from_stream(stream.into())?;
        client.timeout = timeout;
        Ok(client)
    }

    /// Connects to the next broker after one was lost. As soon as a broker answers, this gives back
    /// the listeners that this process holds ([`Lease::give`]) and joins as its generation. Tries
    /// for as long as `patience`.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub async fn reconnect(
        path: &Path,
        listeners: &[Give<'_>],
        join: Option<&Join>,
        patience: Duration,
    ) -> Result<Self, Error> {
        let until = tokio::time::Instant::now() + patience;
        loop {
            let attempt = async {
                let mut client = Self::connect(path).await?;
                client.store(listeners).await?;
                if let Some(join) = join {
                    client.join(join).await?;
                }
                Ok::<_, Error>(client)
            };
            match attempt.await {
                Err(error) if error.is_absence() && tokio::time::Instant::now() < until => {
                    tokio::time::sleep(AGAIN).await;
                }
                done => return done,
            }
        }
    }

    /// Uses a connection that is already open, for example an inherited one.
    ///
    /// # Errors
    /// [`Error::Io`] if the runtime does not take the socket.
    pub fn from_stream(stream: StdStream) -> Result<Self, Error> {
        stream.set_nonblocking(true).map_err(Error::Io)?;
        let stream = UnixStream::from_std(stream).map_err(Error::Io)?;
        let buffer = vec![0; READ_SIZE].into_boxed_slice();
        Ok(Self { stream, session: Session::new(), buffer, timeout: DEFAULT_TIMEOUT })
    }

    /// Sets how long each call may take from now on; at least a millisecond.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = at_least(timeout);
    }

    /// Claims listeners, all or none. Returns one lease for each, in order; a range of ports gives
    /// one for each port.
    ///
    /// # Errors
    /// [`Error::Refused`] with the broker's reason; see [`Error`].
    pub async fn claim(&mut self, claims: &[Claim]) -> Result<Vec<Lease>, Error> {
        self.ask(&verbs::claim(claims)).await
    }

    /// Claims one listener, as [`claim`](Self::claim) does. A claim of a range of ports is an
    /// error.
    ///
    /// # Errors
    /// As [`claim`](Self::claim), and [`Error::NotOne`].
    pub async fn claim_one(&mut self, claim: impl Into<Claim>) -> Result<Lease, Error> {
        only(self.claim(&[claim.into()]).await?)
    }

    /// Tells the broker which generation of which service this connection belongs to, for a
    /// supervisor that numbers and orders its generations itself. To let the broker do that, use
    /// [`Generation`](crate::aio::Generation). Call it again when the process or the state changes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn join(&mut self, join: &Join) -> Result<(), Error> {
        self.ask(&verbs::join(join)).await
    }

    /// Closes listeners, given by name or address, all or none. Returns their names.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`IN_USE`](crate::ErrorCode::IN_USE) while another
    /// connection uses one; see [`Error`].
    pub async fn release(&mut self, listeners: &[impl AsRef<str>]) -> Result<Vec<String>, Error> {
        self.ask(&verbs::release(listeners)).await
    }

    /// Every listener that the broker holds.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&mut self) -> Result<ListResult, Error> {
        self.ask(&verbs::list()).await
    }

    /// The broker, its listeners and the services that use them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&mut self) -> Result<StatusResult, Error> {
        self.ask(&verbs::status()).await
    }

    /// The remembered events after the event with the id `since`; 0 for all of them.
    /// [`Follower`](crate::Follower), which blocks, also gives later events.
    ///
    /// # Errors
    /// [`Error::Refused`] if the caller may not see every listener; see [`Error`].
    pub async fn events(&mut self, since: u64) -> Result<EventsResult, Error> {
        self.ask(&verbs::events(since)).await
    }

    /// Checks that the broker answers, and returns its version.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ping(&mut self) -> Result<PingResult, Error> {
        self.ask(&verbs::ping()).await
    }

    /// Gives the broker listeners that this process holds, and uses them from then on as if it had
    /// claimed them. A listener that the broker already holds is only used. Returns their names, in
    /// order. Works in batches of 253, each all or nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] if a socket is not what its claim says, or another listener has its name
    /// or address; see [`Error`].
    pub async fn store(&mut self, listeners: &[Give<'_>]) -> Result<Vec<String>, Error> {
        let mut names = Vec::with_capacity(listeners.len());
        for part in listeners.chunks(MAX_FDS) {
            let fds: Vec<_> = part.iter().map(|give| give.fd).collect();
            names.extend(self.ask_with(&verbs::store(part), &fds).await?);
        }
        Ok(names)
    }

    /// Calls any method of the protocol (docs/protocol-requests.md) that returns no descriptors,
    /// and returns its `result`. `params` is an array.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`METHOD_NOT_FOUND`](crate::ErrorCode::METHOD_NOT_FOUND) if the
    /// broker does not have the method; see [`Error`].
    pub async fn call<P: Serialize + ?Sized>(
        &mut self,
        method: &'static str,
        params: &P,
    ) -> Result<Value, Error> {
        self.exchange(method, params, &[], false).await.and_then(typed)
    }

    /// Waits until the broker closes the connection (or breaks the protocol with an unexpected
    /// message). The wait is cancel safe.
    pub async fn closed(&self) {
        let mut byte = [0; 1];
        loop {
            if self.stream.readable().await.is_err() {
                return;
            }
            // Readiness may be left over from the last reply; a read clears it.
            match self.stream.try_read(&mut byte) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
        }
    }

    /// Allows notifications from now on.
    pub(super) fn expect_notifications(&mut self) {
        self.session.expect_notifications();
    }

    /// Waits for a notification. The wait is cancel safe.
    pub(super) async fn hear(&mut self) -> Result<Notification, Error> {
        loop {
            if let Some(notification) = self.session.next_notification() {
                return Ok(notification);
            }
            let (fd, session, buffer) = (&self.stream, &mut self.session, &mut self.buffer);
            let overhear = || transfer::overhear(fd.as_fd(), buffer, session);
            fd.async_io(Interest::READABLE, overhear).await.map_err(Error::Io)??;
        }
    }

    pub(super) async fn ask<P: Serialize, T>(&mut self, verb: &Verb<P, T>) -> Result<T, Error> {
        self.ask_with(verb, &[]).await
    }

    async fn ask_with<P: Serialize, T>(
        &mut self,
        verb: &Verb<P, T>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<T, Error> {
        self.exchange(verb.method, &verb.params, fds, verb.binds).await.and_then(verb.read)
    }

    async fn exchange<P: Serialize + ?Sized>(
        &mut self,
        method: &'static str,
        params: &P,
        fds: &[BorrowedFd<'_>],
        binds: bool,
    ) -> Result<Answer, Error> {
        let request = self.session.begin(method, params, binds)?;
        let guard = Unfinished(&mut self.session);
        let request = Outgoing::new(&request, fds);
        let exchange = converse(&self.stream, guard.0, &mut self.buffer, request, method);
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::TimedOut { during: method, after: self.timeout }),
        }
    }
}

/// The connection's descriptor, for example to read the peer credentials.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Closes the descriptors of a call that did not finish, also if it was dropped.
struct Unfinished<'a>(&'a mut Session);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

async fn converse(
    stream: &UnixStream,
    session: &mut Session,
    buffer: &mut [u8],
    mut request: Outgoing<'_>,
    method: &'static str,
) -> Result<Answer, Error> {
    loop {
        let send = || request.push(stream);
        if stream.async_io(Interest::WRITABLE, send).await.map_err(Error::Io)? {
            break;
        }
    }
    loop {
        let receive = || transfer::pull(stream.as_fd(), buffer, session, method);
        let received = stream.async_io(Interest::READABLE, receive).await;
        if let Some(answer) = received.map_err(Error::Io)?? {
            return Ok(answer);
        }
    }
}
