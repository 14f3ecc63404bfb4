//! Closes descriptors that other processes have shared.
//!
//! The last close(2) may block: for a connection as long as its SO_LINGER says (socket(7)), which
//! its owner sets; for a file of a FUSE mount as long as its server likes; and for a UNIX socket on
//! the unread data in it, since descriptors in transit are closed along with it. So every
//! descriptor that a client has passed, or may have left in a socket, is closed on a separate
//! thread. Each user has an [`Account`] of descriptors not yet closed. An account whose close
//! blocks occupies one thread; other accounts use the other threads.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bindonce_core::address::Address;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::Shutdown;

use crate::{queue, worker};

/// Maximum number of threads that close at the same time.
const THREADS: usize = 8;

/// The descriptors of one user that wait to be closed.
#[derive(Debug, Clone, Default)]
pub struct Account(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Notified when a descriptor is closed.
    closed: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    descriptors: VecDeque<OwnedFd>,
    /// The account waits for a thread, or has one.
    ready: bool,
    /// A thread is closing one of the descriptors.
    closing: bool,
}

/// A descriptor that a client has passed. On drop it is closed on another thread.
#[derive(Debug)]
pub struct Foreign {
    /// None only during drop.
    fd: Option<OwnedFd>,
    account: Account,
}

impl Foreign {
    /// Duplicates the descriptor. Closing the duplicate does not block while this value exists.
    ///
    /// # Errors
    /// Errors from fcntl(2).
    pub fn try_clone(&self) -> std::io::Result<OwnedFd> {
        match &self.fd {
            Some(fd) => fd.try_clone(),
            None => Err(rustix::io::Errno::BADF.into()),
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.fd.take().into_iter().for_each(|fd| self.account.close(fd));
    }
}

impl Account {
    /// Number of descriptors not yet closed.
    pub fn unclosed(&self) -> usize {
        let waiting = lock(&self.0.waiting);
        waiting.descriptors.len() + usize::from(waiting.closing)
    }

    /// Waits until at most `few` descriptors are not yet closed.
    pub async fn until(&self, few: usize) {
        loop {
            // From here on no notification is missed.
            let closed = self.0.closed.notified();
            if self.unclosed() <= few {
                return;
            }
            closed.await;
        }
    }

    /// Takes a descriptor that a client of this user has passed.
    pub fn foreign(&self, fd: OwnedFd) -> Foreign {
        Foreign { fd: Some(fd), account: self.clone() }
    }

    /// Queues a descriptor to be closed on another thread.
    fn close(&self, fd: OwnedFd) {
        let first = {
            let mut waiting = lock(&self.0.waiting);
            waiting.descriptors.push_back(fd);
            !std::mem::replace(&mut waiting.ready, true)
        };
        if first {
            ready(self.clone());
        }
    }

    /// Shuts down a connection on both sides. If its peer has left unread data in it, drop the
    /// returned value after the connection's own descriptor.
    #[must_use]
    pub fn end(&self, connection: BorrowedFd<'_>) -> Option<Foreign> {
        // After this nothing more arrives.
        let _ = rustix::net::shutdown(connection, Shutdown::Both);
        let unread = rustix::io::ioctl_fionread(connection).is_ok_and(|bytes| bytes != 0);
        unread.then(|| connection.try_clone_to_owned().ok().map(|fd| self.foreign(fd))).flatten()
    }
}

/// Prepares the close of a listener that others have shared. If that close may block (it is not a
/// listener any more, or its queue holds connections whose clients have sent data already), drop
/// the returned value after the listener's own descriptor.
#[must_use]
pub fn shared(listener: BorrowedFd<'_>, address: &Address) -> Option<Foreign> {
    static ALL: Mutex<Option<Account>> = Mutex::new(None);
    let may_wait = match address {
        Address::Tcp(_) => !queue::is_listening(listener),
        Address::Udp(_) | Address::Quic(_) => false,
        _ => {
            let poll = poll(&mut [PollFd::new(listener, PollFlags::POLLIN)], PollTimeout::ZERO);
            poll != Ok(0)
        }
    };
    let account = || lock(&ALL).get_or_insert_default().clone();
    may_wait.then(|| listener.try_clone_to_owned().ok().map(|fd| account().foreign(fd))).flatten()
}

/// The accounts that wait for a thread.
#[derive(Default)]
struct Ready {
    accounts: VecDeque<Account>,
    threads: usize,
}

static READY: Mutex<Option<Ready>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ready(account: Account) {
    let mut ready = lock(&READY);
    let ready = ready.get_or_insert_default();
    ready.accounts.push_back(account);
    // If no thread can be started, the next account that becomes ready tries again.
    if ready.threads < THREADS && worker::start("closing", work).is_ok() {
        ready.threads += 1;
    }
}

/// Closes one descriptor of each account in turn, until none is left.
fn work() {
    while let Some(account) = next() {
        let one = {
            let mut waiting = lock(&account.0.waiting);
            waiting.closing = true;
            waiting.descriptors.pop_front()
        };
        drop(one);
        let more = {
            let mut waiting = lock(&account.0.waiting);
            waiting.closing = false;
            waiting.ready = !waiting.descriptors.is_empty();
            waiting.ready
        };
        account.0.closed.notify_waiters();
        if more {
            lock(&READY).get_or_insert_default().accounts.push_back(account);
        }
    }
}

/// The next account; without one the thread ends.
fn next() -> Option<Account> {
    let mut ready = lock(&READY);
    let ready = ready.get_or_insert_default();
    let account = ready.accounts.pop_front();
    ready.threads -= usize::from(account.is_none());
    account
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::*;

    /// How long the close of such a connection would block.
    const LINGER: Duration = Duration::from_secs(20);

    /// A connection with unread data, whose last close blocks; and its peer.
    fn lingering() -> (OwnedFd, (TcpListener, TcpStream)) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let mut stream =
            TcpStream::connect(listener.local_addr().expect("its address")).expect("connect");
        let peer = listener.accept().expect("a peer").0;
        stream.set_nonblocking(true).expect("non-blocking");
        while stream.write(&[0; 1 << 16]).is_ok() {}
        socket2::SockRef::from(&stream).set_linger(Some(LINGER)).expect("SO_LINGER");
        (stream.into(), (listener, peer))
    }

    fn eventually(what: impl Fn() -> bool) {
        let begun = Instant::now();
        while !what() {
            assert!(begun.elapsed() < Duration::from_secs(60), "in vain");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_close_that_waits_keeps_nobody_else_waiting() {
        let begun = Instant::now();
        let (hostile, other) = (Account::default(), Account::default());
        let mut peers = Vec::new();
        // Passed and dropped; and unread in a connection that ends.
        let (fd, peer) = lingering();
        peers.push(peer);
        drop(hostile.foreign(fd));
        let (connection, client) = UnixStream::pair().expect("a pair");
        let (fd, peer) = lingering();
        peers.push(peer);
        bindonce_fd::send(&client, b"x", &[fd.as_fd()]).expect("sent");
        drop((fd, client));
        let last = hostile.end(connection.as_fd());
        drop(connection);
        drop(last);
        assert_eq!(hostile.unclosed(), 2);
        let (one, another) = UnixStream::pair().expect("a pair");
        drop(other.foreign(one.into()));
        eventually(|| other.unclosed() == 0);
        drop(another);
        assert!(begun.elapsed() < LINGER, "{:?}", begun.elapsed());
        assert_ne!(hostile.unclosed(), 0, "the first waits");
        // The peer goes away, and nothing blocks any more.
        drop(peers);
        eventually(|| hostile.unclosed() == 0);
    }
}
