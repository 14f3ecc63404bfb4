//! One connection to a broker, for tokio.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bindonce_fd::MAX_FDS;
use bindonce_wire::RpcError;
use bindonce_wire::message::Notification;
use bindonce_wire::params::Join;
use bindonce_wire::result::{EventsResult, ListResult, PingResult, StatusResult};
use serde::Serialize;
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::patience;
use crate::blocking::{AGAIN, at_least};
use crate::claim::{Claim, Give, GivingBack};
use crate::error::Error;
use crate::lease::{Lease, only};
use crate::membership::ATTEMPT;
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
    /// for as long as `patience`; then each request of an attempt that has begun has one second
    /// more. Also returns the refusals of listeners that the broker does not take back, such as one
    /// whose UNIX path was removed; it has all others.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub async fn reconnect(
        path: &Path,
        listeners: &[Give<'_>],
        join: Option<&Join>,
        patience: Duration,
    ) -> Result<(Self, Vec<RpcError>), Error> {
        let begun = Instant::now();
        let left = || patience.saturating_sub(begun.elapsed());
        let limit = || left().clamp(ATTEMPT, DEFAULT_TIMEOUT);
        loop {
            // This process may be stopped during an attempt: the last one begins after the limit.
            let is_last = left().is_zero();
            let attempt = async {
                let mut client = Self::connect_within(path, limit()).await?;
                let refused = client.give_back(listeners, limit).await?;
                if let Some(join) = join {
                    client.set_timeout(limit());
                    client.join(join).await?;
                }
                client.set_timeout(DEFAULT_TIMEOUT);
                Ok::<_, Error>((client, refused))
            };
            match attempt.await {
                Err(error) if error.is_absence() && !is_last => tokio::time::sleep(AGAIN).await,
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
    /// error and binds nothing.
    ///
    /// # Errors
    /// As [`claim`](Self::claim), and [`Error::NotOne`].
    pub async fn claim_one(&mut self, claim: impl Into<Claim>) -> Result<Lease, Error> {
        only(self.claim(&[Claim::of_one(claim)?]).await?)
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

    /// Gives back listeners to the broker that has followed a lost one, as [`store`](Self::store)
    /// does, but without those that it does not take. Returns their refusals. `limit` is how long
    /// the next request may take.
    pub(super) async fn give_back(
        &mut self,
        listeners: &[Give<'_>],
        limit: impl Fn() -> Duration,
    ) -> Result<Vec<RpcError>, Error> {
        let mut giving = GivingBack::new(listeners);
        while let Some(part) = giving.next_part() {
            self.set_timeout(limit());
            let answer = self.store(part).await;
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
        match patience::timeout(self.timeout, exchange).await {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// The client and its broker run in one thread: while it sleeps, both are stopped.
    #[tokio::test(flavor = "current_thread")]
    async fn a_call_has_its_time_although_this_process_was_stopped() {
        let (ours, theirs) = StdStream::pair().expect("a pair");
        let (mut client, limit) = (Client::from_stream(ours).expect("it"), Duration::from_secs(1));
        client.set_timeout(limit);
        theirs.set_nonblocking(true).expect("non-blocking");
        let mut broker = UnixStream::from_std(theirs).expect("a stream");
        let reply = async {
            assert_ne!(broker.read(&mut [0; 1024]).await.expect("a request"), 0);
            std::thread::sleep(limit + Duration::from_millis(200));
            // The client looks at its clock before the reply comes.
            tokio::time::sleep(Duration::from_millis(10)).await;
            let text = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":true}\n";
            broker.write_all(text.as_bytes()).await.expect("a reply");
        };
        let (answer, ()) = tokio::join!(client.call("ping", &[(); 0]), reply);
        assert_eq!(answer.expect("an answer"), Value::Bool(true));
    }

    #[tokio::test]
    async fn an_attempt_to_reconnect_lasts_no_longer_than_its_limit_and_a_second() {
        let name = format!("bindonce-silent-tokio-{}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        // Its queue takes the connection, and no process answers.
        let _silent = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        let service = "edge".parse().expect("a name");
        let join = Join::new(service, 1, None, bindonce_wire::params::State::Serving);
        let limit = Duration::from_millis(10);
        let attempt = Client::reconnect(&path, &[], Some(&join), limit);
        let error = attempt.await.expect_err("no answer");
        assert!(matches!(error, Error::TimedOut { after, .. } if after == ATTEMPT), "{error}");
        // Later calls have their usual time.
        let (client, _) = Client::reconnect(&path, &[], None, limit).await.expect("a connection");
        assert_eq!(client.timeout, DEFAULT_TIMEOUT);
        std::fs::remove_file(path).expect("remove");
    }
}
