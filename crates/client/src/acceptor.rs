//! Waiting for connections on a socket that is shared and therefore non-blocking.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{self as unix, UnixListener, UnixStream};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A listener whose `accept` waits, although its socket is non-blocking. Several
/// processes and threads may wait on one socket; one of them gets each connection.
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
}

/// What came of waiting for a connection or for word to stop.
#[derive(Debug)]
pub enum Accepted<S, A> {
    /// A connection and its peer's address.
    Connection(S, A),
    /// The descriptor that was given as `stop` is readable. Of a [`Generation`](crate::Generation) that
    /// means: call [`has_retired`](crate::Generation::has_retired).
    Stopped,
}

impl<L: AsFd> Acceptor<L> {
    /// Waits on this listener, whose blocking mode stays as it is.
    pub fn new(listener: L) -> Self {
        Self { listener }
    }

    /// The listener.
    pub fn get_ref(&self) -> &L {
        &self.listener
    }

    /// The listener itself.
    pub fn into_inner(self) -> L {
        self.listener
    }

    fn wait<S, A>(
        &self,
        stop: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
        accept: impl Fn(&L) -> io::Result<(S, A)>,
    ) -> io::Result<Accepted<S, A>> {
        loop {
            if stop.is_none() {
                // Ask first: where connections wait, that saves a system call.
                match accept(&self.listener) {
                    Ok((stream, peer)) => return Ok(Accepted::Connection(stream, peer)),
                    Err(error) if is_transient(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            let (ready, stopped) = wait_either(self.listener.as_fd(), stop, deadline)?;
            if stopped {
                return Ok(Accepted::Stopped);
            }
            if !ready {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if stop.is_some() {
                match accept(&self.listener) {
                    Ok((stream, peer)) => return Ok(Accepted::Connection(stream, peer)),
                    Err(error) if is_transient(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

impl Acceptor<TcpListener> {
    /// Waits for a connection; without a `deadline` it waits without limit.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when the deadline passes; else accept(2)'s,
    /// for example when this process may open no more files.
    pub fn accept(&self, deadline: Option<Instant>) -> io::Result<(TcpStream, SocketAddr)> {
        expect(self.wait(None, deadline, TcpListener::accept)?)
    }

    /// Waits for a connection, or for `stop` to become readable (a
    /// [`Generation`](crate::Generation), a signalfd, a pipe); the latter goes first.
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
    /// [`io::ErrorKind::TimedOut`] when the deadline passes; else accept(2)'s.
    pub fn accept(&self, deadline: Option<Instant>) -> io::Result<(UnixStream, unix::SocketAddr)> {
        expect(self.wait(None, deadline, UnixListener::accept)?)
    }

    /// Waits for a connection, or for `stop` to become readable; the latter goes first.
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

/// Waits until a socket has a connection or a datagram; says whether it has one
/// (`true`) or the deadline passed (`false`). With no deadline it waits without limit. Another holder of a shared socket
/// may still be faster, so be prepared for `WouldBlock` afterwards.
///
/// # Errors
/// poll(2)'s.
pub fn wait_readable(socket: impl AsFd, deadline: Option<Instant>) -> io::Result<bool> {
    wait_either(socket.as_fd(), None, deadline).map(|(ready, _)| ready)
}

/// The second is about `stop`.
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

/// Errors after which the next connection may be fine: nobody waits, another
/// process was faster, or a client left the queue (accept(2)).
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
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
}
