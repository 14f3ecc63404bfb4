//! Detects data sent on a UNIX connection and not yet received.
//!
//! Descriptors in transit count against the user who sent them until they are received, or the
//! receiver closes its end: even if the sender has long closed its own (unix(7), ETOOMANYREFS).

use std::io;
use std::os::fd::BorrowedFd;

use rustix::event::epoll;

use crate::queue;

/// Less than any message counts. The kernel wakes waiters before it has subtracted all of the last
/// message.
const ANY_MESSAGE: u64 = 256;

/// How many connections one call reports at most.
const AT_ONCE: usize = 64;

/// Whether the peer has received everything, or has closed its end.
pub fn is_none(connection: BorrowedFd<'_>) -> bool {
    queue::unread(connection).is_ok_and(|bytes| bytes < ANY_MESSAGE)
}

/// Connections whose peers have data to receive.
#[derive(Debug)]
pub struct Watched {
    epoll: std::os::fd::OwnedFd,
    ready: crate::watch::Watch,
}

impl Watched {
    /// Watches nothing yet. Call it within a tokio runtime.
    ///
    /// # Errors
    /// Errors from epoll_create1(2) and epoll_ctl(2).
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let ready = crate::watch::Watch::new(&epoll)?;
        Ok(Self { epoll, ready })
    }

    /// Watches this connection too, and reports it as `number`. Check it with [`is_none`] after
    /// this call.
    ///
    /// # Errors
    /// Errors from epoll_ctl(2).
    pub fn add(&self, connection: BorrowedFd<'_>, number: u64) -> io::Result<()> {
        // The peer frees buffer space whenever it receives. Edge-triggered: reported once each
        // time, however much data is left.
        let events = epoll::EventFlags::OUT | epoll::EventFlags::ET;
        match epoll::add(&self.epoll, connection, epoll::EventData::new_u64(number), events) {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Stops watching this connection.
    pub fn remove(&self, connection: BorrowedFd<'_>) {
        // A failure means that the connection was not watched.
        let _ = epoll::delete(&self.epoll, connection);
    }

    /// Waits until peers have received something; returns the numbers of their connections.
    ///
    /// # Errors
    /// Errors from epoll_wait(2).
    pub async fn next(&self) -> io::Result<Vec<u64>> {
        loop {
            let mut events = Vec::with_capacity(AT_ONCE);
            let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let space = rustix::buffer::spare_capacity(&mut events);
            epoll::wait(&self.epoll, space, Some(&none))?;
            if !events.is_empty() {
                return Ok(events.iter().map(|event| event.data.u64()).collect());
            }
            self.ready.readable().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_read_or_thrown_away_lies_there_no_more() {
        let (mut one, mut other) = UnixStream::pair().expect("a pair");
        assert!(is_none(one.as_fd()));
        bindonce_fd::send(&one, b"x", &[one.as_fd()]).expect("sent");
        assert!(!is_none(one.as_fd()));
        other.read_exact(&mut [0]).expect("read");
        assert!(is_none(one.as_fd()));
        one.write_all(b"x").expect("written");
        // Even if this end accepts nothing more.
        one.shutdown(std::net::Shutdown::Both).expect("ended");
        assert!(!is_none(one.as_fd()));
        drop(other);
        assert!(is_none(one.as_fd()));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_ended_connection_is_told_of_when_its_peer_has_received() {
        let watched = Watched::new().expect("watched");
        let (mut one, mut other) = UnixStream::pair().expect("a pair");
        one.write_all(b"x").expect("written");
        one.shutdown(std::net::Shutdown::Both).expect("ended");
        watched.add(one.as_fd(), 7).expect("added");
        watched.add(one.as_fd(), 7).expect("it is there");
        // A new connection is reported at once.
        assert_eq!(watched.next().await.expect("told"), [7]);
        assert!(!is_none(one.as_fd()));
        let reader = std::thread::spawn(move || {
            other.read_exact(&mut [0]).expect("read");
            other
        });
        while !is_none(one.as_fd()) {
            assert_eq!(watched.next().await.expect("told"), [7]);
        }
        reader.join().expect("read");
    }
}
