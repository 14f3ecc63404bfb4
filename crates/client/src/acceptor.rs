//! Waiting for connections on a socket that is shared and therefore non-blocking.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{self as unix, UnixListener, UnixStream};
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::backoff::{Backoff, Verdict};

/// A std or tokio listener whose `accept` waits although the socket is non-blocking. Several
/// processes, threads and tasks may wait on one socket; each connection goes to one of them.
///
/// If this process can open no more files, the kernel has no memory for a connection, or another
/// holder has shut down the socket (the broker repairs that), `accept` waits 5 ms, then twice as
/// long each time up to a second, and tries again. Clients stay in the accept queue, and the server
/// lives. [`on_pause`](Self::on_pause) reports such a wait.
///
/// ```
/// use std::net::{TcpListener, TcpStream};
/// use std::time::{Duration, Instant};
///
/// # fn main() -> std::io::Result<()> {
/// // Stands in for `lease.into_tcp_acceptor()`.
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// listener.set_nonblocking(true)?;
/// let address = listener.local_addr()?;
/// let acceptor = bindonce::Acceptor::new(listener);
///
/// let client = TcpStream::connect(address)?;
/// let (_, peer) = acceptor.accept(Some(Instant::now() + Duration::from_secs(5)))?;
/// assert_eq!(peer, client.local_addr()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Acceptor<L> {
    listener: L,
    backoff: Backoff,
}

/// The result of waiting for a connection or for a stop.
#[derive(Debug)]
pub enum Accepted<S, A> {
    /// A connection and its peer's address.
    Connection(S, A),
    /// The `stop` descriptor is readable. If it is a [`Generation`](crate::Generation), call
    /// [`has_retired`](crate::Generation::has_retired).
    Stopped,
}

impl<L: AsFd> Acceptor<L> {
    /// Wraps a listener, whose blocking mode stays as it is. With a std listener that is blocking,
    /// `accept` may wait past its deadline and its stop.
    pub fn new(listener: L) -> Self {
        Self { listener, backoff: Backoff::default() }
    }

    /// Calls `tell` with the error when `accept` begins to wait because of one: once, until a
    /// connection is accepted again.
    #[must_use]
    pub fn on_pause(mut self, tell: impl Fn(&io::Error) + Send + Sync + 'static) -> Self {
        self.backoff.tell(tell);
        self
    }

    /// The listener.
    pub fn get_ref(&self) -> &L {
        &self.listener
    }

    /// Converts the acceptor into its listener.
    pub fn into_inner(self) -> L {
        self.listener
    }

    fn wait<S, A>(
        &self,
        stop: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
        accept: impl Fn(&L) -> io::Result<(S, A)>,
    ) -> io::Result<Accepted<S, A>> {
        // Try to accept first: if connections wait, that saves a system call. But a stop takes
        // precedence.
        let mut ask = stop.is_none();
        loop {
            if ask {
                match self.backoff.judge(accept(&self.listener)) {
                    Verdict::Accepted(stream, peer) => {
                        return Ok(Accepted::Connection(stream, peer));
                    }
                    Verdict::Wait => {}
                    Verdict::Pause(pause) => {
                        let until = Instant::now() + pause;
                        let until = deadline.map_or(until, |deadline| deadline.min(until));
                        match stop {
                            Some(stop) if wait_either(stop, None, Some(until))?.0 => {
                                return Ok(Accepted::Stopped);
                            }
                            Some(_) => {}
                            None => thread::sleep(until.saturating_duration_since(Instant::now())),
                        }
                        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                            return Err(io::ErrorKind::TimedOut.into());
                        }
                    }
                    Verdict::Failed(error) => return Err(error),
                }
            }
            ask = true;
            match wait_either(self.listener.as_fd(), stop, deadline)? {
                (_, true) => return Ok(Accepted::Stopped),
                (false, false) => return Err(io::ErrorKind::TimedOut.into()),
                (true, false) => {}
            }
        }
    }
}

impl Acceptor<TcpListener> {
    /// Waits for a connection. Without a `deadline` the wait has no limit.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when the deadline passes; else an error from accept(2) that no
    /// wait cures.
    pub fn accept(&self, deadline: Option<Instant>) -> io::Result<(TcpStream, SocketAddr)> {
        expect(self.wait(None, deadline, TcpListener::accept)?)
    }

    /// Waits for a connection, or until `stop` is readable (a [`Generation`](crate::Generation), a
    /// signalfd, a pipe). `stop` takes precedence.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn accept_or_stop(
        &self,
        stop: impl AsFd,
        deadline: Option<Instant>,
    ) -> io::Result<Accepted<TcpStream, SocketAddr>> {
        self.wait(Some(stop.as_fd()), deadline, TcpListener::accept)
    }
}

impl Acceptor<UnixListener> {
    /// Waits for a connection.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when the deadline passes; else an error from accept(2) that no
    /// wait cures.
    pub fn accept(&self, deadline: Option<Instant>) -> io::Result<(UnixStream, unix::SocketAddr)> {
        expect(self.wait(None, deadline, UnixListener::accept)?)
    }

    /// Waits for a connection, or until `stop` is readable. `stop` takes precedence.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn accept_or_stop(
        &self,
        stop: impl AsFd,
        deadline: Option<Instant>,
    ) -> io::Result<Accepted<UnixStream, unix::SocketAddr>> {
        self.wait(Some(stop.as_fd()), deadline, UnixListener::accept)
    }
}

/// With tokio: `accept` is cancel safe, and any number of tasks may share one acceptor.
#[cfg(feature = "tokio")]
impl Acceptor<tokio::net::TcpListener> {
    /// Waits for a connection.
    ///
    /// # Errors
    /// An error from accept(2) that no wait cures.
    pub async fn accept(&self) -> io::Result<(tokio::net::TcpStream, SocketAddr)> {
        self.wait_for(tokio::net::TcpListener::accept).await
    }
}

/// As for TCP.
#[cfg(feature = "tokio")]
impl Acceptor<tokio::net::UnixListener> {
    /// Waits for a connection.
    ///
    /// # Errors
    /// An error from accept(2) that no wait cures.
    pub async fn accept(
        &self,
    ) -> io::Result<(tokio::net::UnixStream, tokio::net::unix::SocketAddr)> {
        self.wait_for(tokio::net::UnixListener::accept).await
    }
}

#[cfg(feature = "tokio")]
impl<L> Acceptor<L> {
    async fn wait_for<S, A>(
        &self,
        accept: impl AsyncFn(&L) -> io::Result<(S, A)>,
    ) -> io::Result<(S, A)> {
        loop {
            match self.backoff.judge(accept(&self.listener).await) {
                Verdict::Accepted(stream, peer) => return Ok((stream, peer)),
                Verdict::Wait => {}
                Verdict::Pause(pause) => tokio::time::sleep(pause).await,
                Verdict::Failed(error) => return Err(error),
            }
        }
    }
}

/// Waits until a socket has a connection or a datagram. Returns `true` if it has one, `false` if
/// the deadline passed. Without a deadline the wait has no limit. Another holder of a shared socket
/// may still be faster, so expect `WouldBlock` afterwards.
///
/// # Errors
/// Errors from poll(2).
pub fn wait_readable(socket: impl AsFd, deadline: Option<Instant>) -> io::Result<bool> {
    wait_either(socket.as_fd(), None, deadline).map(|(ready, _)| ready)
}

/// The result of [`wait_readable_or_stop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// The socket has a connection or a datagram. Another holder may still be faster to take it.
    Socket,
    /// `stop` is readable. If it is a [`Generation`](crate::Generation), call
    /// [`has_retired`](crate::Generation::has_retired).
    Stop,
    /// The deadline has passed.
    Deadline,
}

/// Waits until a socket, such as a UDP socket, has something to read, or until `stop` is readable
/// (a [`Generation`](crate::Generation), a pipe). `stop` takes precedence. Without a deadline the
/// wait has no limit.
///
/// # Errors
/// Errors from poll(2).
pub fn wait_readable_or_stop(
    socket: impl AsFd,
    stop: impl AsFd,
    deadline: Option<Instant>,
) -> io::Result<Ready> {
    Ok(match wait_either(socket.as_fd(), Some(stop.as_fd()), deadline)? {
        (_, true) => Ready::Stop,
        (true, false) => Ready::Socket,
        (false, false) => Ready::Deadline,
    })
}

/// Whether the socket is ready, and whether `stop` is.
fn wait_either(
    socket: BorrowedFd<'_>,
    stop: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> io::Result<(bool, bool)> {
    let fd = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
    let mut both = [fd(socket), fd(stop.unwrap_or(socket))];
    let fds = if stop.is_some() { &mut both[..] } else { &mut both[..1] };
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // A time that the kernel cannot represent means no limit.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => break,
        }
    }
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    Ok((is_ready(&fds[0]), fds.get(1).is_some_and(is_ready)))
}

fn expect<S, A>(accepted: Accepted<S, A>) -> io::Result<(S, A)> {
    match accepted {
        Accepted::Connection(stream, peer) => Ok((stream, peer)),
        Accepted::Stopped => Err(io::ErrorKind::Interrupted.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn acceptor() -> Acceptor<TcpListener> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.set_nonblocking(true).expect("not shared yet");
        Acceptor::new(listener)
    }

    #[test]
    fn accept_waits_for_a_connection_or_the_deadline() {
        let acceptor = acceptor();
        let soon = Instant::now() + Duration::from_millis(20);
        let error = acceptor.accept(Some(soon)).expect_err("nobody connects");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(Instant::now() >= soon);

        let address = acceptor.get_ref().local_addr().expect("address");
        let client = std::thread::spawn(move || TcpStream::connect(address).expect("connect"));
        let (_, peer) = acceptor.accept(None).expect("accept");
        let client = client.join().expect("join");
        assert_eq!(peer, client.local_addr().expect("address"));
    }

    #[test]
    fn stop_goes_before_a_waiting_connection() {
        let acceptor = acceptor();
        let address = acceptor.get_ref().local_addr().expect("address");
        let _client = TcpStream::connect(address).expect("connect");
        let (stop, told) = UnixStream::pair().expect("pair");
        let accepted = acceptor.accept_or_stop(&told, None).expect("accept");
        assert!(matches!(accepted, Accepted::Connection(..)));
        let _second = TcpStream::connect(address).expect("connect");
        io::Write::write_all(&mut &stop, b"x").expect("write");
        let accepted = acceptor.accept_or_stop(&told, None).expect("accept");
        assert!(matches!(accepted, Accepted::Stopped));
    }

    #[test]
    fn stop_wakes_a_wait_for_datagrams_too() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let (stop, told) = UnixStream::pair().expect("pair");
        let wait = || wait_readable_or_stop(&socket, &told, Some(Instant::now())).expect("poll");
        assert_eq!(wait(), Ready::Deadline);
        socket.send_to(b"x", socket.local_addr().expect("address")).expect("send");
        assert_eq!(wait(), Ready::Socket);
        // Every thread that waits for it sees an end of file.
        drop(stop);
        assert_eq!(wait(), Ready::Stop);
    }
}
