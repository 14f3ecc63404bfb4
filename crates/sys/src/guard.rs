//! Detects at once when a listener stops listening, and makes it listen again.
//!
//! Every holder of a shared listener can end its LISTEN state for all holders: by connect(2) to
//! AF_UNSPEC (haproxy's SIGTTOU on a socket that came by `-x`) or by shutdown(2). What the kernel
//! then allows, tested on Linux 6.18:
//!
//! - TCP: listen(2) on the same descriptor restores it, with its address, its options and its
//!   inode. Connections in its accept queue have been reset. A port that the kernel chose (port 0)
//!   is lost and must be bound again first.
//! - UNIX: shutdown(2) of the reading side is permanent. SO_ACCEPTCONN stays set, and listen(2)
//!   succeeds without effect. Only EPOLLRDHUP reveals the shutdown, and only a new socket helps.
//!
//! An epoll registration without EPOLLIN costs nothing per connection: the kernel filters wake-ups
//! by their events, and always reports a hang-up. The registration is edge-triggered, so that a
//! listener that cannot be repaired does not spin.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bindonce_core::address::Address;
use nix::errno::Errno;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How many listeners one call reports at most.
const EVENTS: usize = 64;

/// Watches listeners for the end of their LISTEN state; becomes readable when a listener leaves it.
#[derive(Debug)]
pub struct Guard {
    epoll: OwnedFd,
}

impl Guard {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// Errors from epoll_create1(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Watches a listener, which [`Guard::fallen`] reports as `number`. One system call. Call
    /// [`Guard::remove`] before the descriptor is closed: other processes hold the socket, so the
    /// kernel would keep the registration.
    ///
    /// # Errors
    /// Errors from epoll_ctl(2): `ENOSPC` at /proc/sys/fs/epoll/max_user_watches.
    pub fn add(&self, listener: BorrowedFd<'_>, number: u64) -> io::Result<()> {
        // RDHUP reports that the reading side of a UNIX listener was shut down.
        let events = EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, listener, EventData::new_u64(number), events)?)
    }

    /// Stops watching a listener.
    ///
    /// # Errors
    /// Errors from epoll_ctl(2); `ENOENT` if it is not watched.
    pub fn remove(&self, listener: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, listener)?)
    }

    /// The numbers of listeners that have changed, up to 64 per call; empty when no more are left.
    /// Does not wait.
    ///
    /// # Errors
    /// Errors from epoll_wait(2).
    pub fn fallen(&self) -> io::Result<Vec<u64>> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&now))?;
        Ok(events.iter().map(|event| event.data.u64()).collect())
    }
}

impl AsFd for Guard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// The result of [`repair`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The socket listens, and has not stopped.
    Listening,
    /// The socket had left the LISTEN state and listens again.
    Repaired,
    /// A UNIX socket that was shut down: only a new socket can replace it.
    ShutDown,
}

/// Makes a socket that was bound to `bound` listen again, with a backlog as in listen(2).
///
/// # Errors
/// Errors from bind(2) and listen(2): `EADDRINUSE` if another socket has taken the port meanwhile.
pub fn repair(listener: BorrowedFd<'_>, bound: &Address, backlog: u32) -> io::Result<Health> {
    if rustix::net::sockopt::socket_acceptconn(listener)? {
        let health = if is_shut_down(listener) { Health::ShutDown } else { Health::Listening };
        return Ok(health);
    }
    if let Address::Tcp(at) = bound {
        // On disconnect the kernel releases a port that it chose itself (no SOCK_BINDPORT_LOCK),
        // and listen(2) would choose another; getsockname(2) does not reveal this. A socket that
        // still has its port answers EINVAL.
        match rustix::net::bind(listener, at) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    rustix::net::listen(listener, backlog)?;
    Ok(Health::Repaired)
}

/// Whether the reading side of a socket in the LISTEN state is shut down, permanently, as can
/// happen to a UNIX listener. (A TCP listener leaves the LISTEN state instead, and has no RDHUP
/// while in it.)
pub(crate) fn is_shut_down(listener: BorrowedFd<'_>) -> bool {
    let mut poller = [PollFd::new(&listener, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut poller, Some(&now)), Ok(1..))
        && poller[0].revents().contains(PollFlags::RDHUP)
}

/// Whether the system has no room for another registration (epoll(7)).
pub fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOSPC as i32)
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use rustix::net::{Shutdown as How, connect_unspec, shutdown};
    use socket2::{Domain, SockAddr, Socket, Type};

    use super::*;
    use crate::queue::is_listening;
    use crate::testing::Directory;

    fn disconnect(listener: &TcpListener) {
        connect_unspec(listener).expect("connect to AF_UNSPEC");
    }

    #[test]
    fn a_tcp_listener_comes_back_as_often_as_it_leaves() {
        let guard = Guard::new().expect("epoll");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let bound = Address::Tcp(address);
        guard.add(listener.as_fd(), 7).expect("add");
        for round in 0..20 {
            drop(TcpStream::connect(address).expect("connect"));
            assert_eq!(guard.fallen().expect("events"), [], "a connection is no event");
            match round % 3 {
                0 => disconnect(&listener),
                1 => shutdown(&listener, How::Read).expect("shutdown"),
                _ => shutdown(&listener, How::Both).expect("shutdown"),
            }
            assert_eq!(guard.fallen().expect("events"), [7]);
            assert_eq!(guard.fallen().expect("events"), [], "told once");
            assert_eq!(repair(listener.as_fd(), &bound, 5).expect("repair"), Health::Repaired);
            assert_eq!(repair(listener.as_fd(), &bound, 5).expect("repair"), Health::Listening);
            assert_eq!(listener.local_addr().expect("address"), address);
        }
        let client = TcpStream::connect(address).expect("connect");
        listener.accept().expect("accept");
        client.shutdown(Shutdown::Both).expect("shutdown");
        guard.remove(listener.as_fd()).expect("remove");
        disconnect(&listener);
        assert_eq!(guard.fallen().expect("events"), []);
    }

    #[test]
    fn a_unix_listener_that_was_shut_down_is_told_and_beyond_repair() {
        let directory = Directory::new("guard");
        for how in [How::Read, How::Both] {
            let guard = Guard::new().expect("epoll");
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("socket");
            let path = directory.path().join(format!("{how:?}"));
            let bound = Address::Unix(path.display().to_string());
            let address = SockAddr::unix(&path).expect("address");
            socket.bind(&address).expect("bind");
            socket.listen(5).expect("listen");
            guard.add(socket.as_fd(), 8).expect("add");
            let client = Socket::new(Domain::UNIX, Type::STREAM, None).expect("socket");
            client.connect(&address).expect("connect");
            assert_eq!(guard.fallen().expect("events"), []);
            assert!(is_listening(socket.as_fd()));

            shutdown(&socket, how).expect("shutdown");
            assert_eq!(guard.fallen().expect("events"), [8]);
            assert!(!is_listening(socket.as_fd()));
            assert_eq!(repair(socket.as_fd(), &bound, 5).expect("repair"), Health::ShutDown);
            // As the kernel does it: listen(2) succeeds and changes nothing.
            socket.listen(5).expect("listen");
            assert!(!is_listening(socket.as_fd()));
        }
    }
}
