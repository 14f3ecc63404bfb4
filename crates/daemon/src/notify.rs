//! Talks to the service manager (sd_notify(3), sd_listen_fds(3)) without its library.
//!
//! A state is a datagram to `$NOTIFY_SOCKET`. Descriptors that go with one enter the service's
//! descriptor store, and come back with their names when the service is started again after a
//! crash. A datagram that was sent reaches the manager even if this process is killed the moment
//! after.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bindonce_sys::{inherit, worker};

/// The variable with the socket of the process that started a broker for itself, as `bindonce run`
/// does, and waits for one READY=1, as in sd_notify(3).
pub const STARTER: &str = "BINDONCE_READY";

/// Sends `state` (such as `READY=1` or `STATUS=...`) to the socket that `$NOTIFY_SOCKET` names, a
/// path or `@` and an abstract name. Does nothing outside of a service manager. Never waits: a
/// manager that does not read gets the states later, in order. Logs a failure.
pub fn tell(state: &str) {
    static STATES: Unsent = Unsent::new();
    let Some(target) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = STATES.send(&target, state) {
        tracing::warn!(%error, state, "cannot tell the service manager");
    }
}

/// Sends `state` to the socket at `target`, a path or `@` and an abstract name.
///
/// # Errors
/// Errors from sending a datagram, `WouldBlock` if the receiver has too much to read;
/// `InvalidInput` for an address of neither form.
pub fn send_to(target: &OsStr, state: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address(target.as_bytes())?).map(drop)
}

/// Most states that wait for a manager that does not read.
const MOST_UNSENT: usize = 64;

/// States for which the manager had no room yet. While there are some, a thread waits for room:
/// nothing that decides may wait for the manager.
struct Unsent(Mutex<VecDeque<String>>);

impl Unsent {
    const fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    /// # Errors
    /// As [`send_to`], but for `WouldBlock`; if too many states wait; errors from pthread_create(3).
    fn send(&'static self, target: &OsStr, state: &str) -> io::Result<()> {
        let mut waiting = self.lock();
        if waiting.is_empty() {
            match send_to(target, state) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return sent,
            }
            let address = address(target.as_bytes())?;
            worker::start("notify", move || self.pass_on(&address))?;
        }
        if waiting.len() == MOST_UNSENT {
            let text = format!("it does not read, and {MOST_UNSENT} earlier states wait");
            return Err(io::Error::other(text));
        }
        waiting.push_back(state.to_owned());
        Ok(())
    }

    /// Sends what waits, until nothing does.
    fn pass_on(&self, address: &SocketAddr) {
        loop {
            // It stays in the queue until it is sent: a later state must not overtake it.
            let Some(state) = self.lock().front().cloned() else { return };
            let sent = UnixDatagram::unbound()
                .and_then(|socket| socket.send_to_addr(state.as_bytes(), address));
            let mut waiting = self.lock();
            waiting.pop_front();
            if let Err(error) = sent {
                tracing::warn!(%error, state, "cannot tell the service manager");
            }
            if waiting.is_empty() {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to the service manager that never waits: every call fails with `WouldBlock` while
/// the manager has too much to read. The descriptor is writable when there is room again.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
}

impl Notifier {
    /// Connects to the manager that `$NOTIFY_SOCKET` names; None if it is not set.
    ///
    /// # Errors
    /// Errors from socket(2) and connect(2); `InvalidInput` for an address of neither form.
    pub fn from_env() -> io::Result<Option<Self>> {
        let Some(target) = env::var_os("NOTIFY_SOCKET").filter(|target| !target.is_empty()) else {
            return Ok(None);
        };
        Self::connect(&address(target.as_bytes())?).map(Some)
    }

    /// Connects to the manager at this address.
    ///
    /// # Errors
    /// Errors from socket(2) and connect(2).
    pub fn connect(address: &SocketAddr) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// Sends one or more lines of state.
    ///
    /// # Errors
    /// Errors from send(2).
    pub fn send(&self, state: &str) -> io::Result<()> {
        self.socket.send(state.as_bytes()).map(drop)
    }

    /// Puts a descriptor into the store. `name` has at most 255 bytes, no colon and no control
    /// character. The manager does not watch the descriptor for hang-ups (FDPOLL=0): a socket that
    /// is bound and does not listen looks hung up, and would be dropped.
    ///
    /// # Errors
    /// Errors from sendmsg(2).
    pub fn store(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        let state = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        bindonce_fd::send(&self.socket, state.as_bytes(), &[fd]).map(drop)
    }

    /// Removes every descriptor of this name from the store.
    ///
    /// # Errors
    /// Errors from send(2).
    pub fn forget(&self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"))
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How often the manager expects `WATCHDOG=1` from this process (half of `$WATCHDOG_USEC`, as
/// sd_watchdog_enabled(3) advises); None if it expects none.
pub fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    if number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(process::id())) {
        return None;
    }
    let period = Duration::from_micros(number("WATCHDOG_USEC")? / 2);
    (!period.is_zero()).then_some(period)
}

/// The descriptors that the service manager passed to this process, with their names, close-on-exec
/// from now on. Only the first call returns them.
///
/// # Errors
/// `EBADF` if fewer are open than `$LISTEN_FDS` says.
pub fn passed() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name| env::var(name).ok()?.parse::<i32>().ok();
    let ours = number("LISTEN_PID").and_then(|pid| u32::try_from(pid).ok()) == Some(process::id());
    let count = number("LISTEN_FDS").unwrap_or(0);
    if !ours || count <= 0 || TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    (inherit::FIRST..inherit::FIRST.saturating_add(count))
        .map(|number| Ok((names.next().unwrap_or("unknown").to_owned(), inherit::take(number)?)))
        .collect()
}

fn address(target: &[u8]) -> io::Result<SocketAddr> {
    match target {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(OsStr::from_bytes(target)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Directory;

    #[test]
    fn takes_a_path_or_an_abstract_name() {
        assert!(address(b"/run/systemd/notify").expect("path").as_pathname().is_some());
        assert_eq!(address(b"@a").expect("abstract").as_abstract_name(), Some(&b"a"[..]));
        assert!(address(b"vsock:1").is_err());
    }

    #[test]
    fn a_descriptor_rides_on_its_name() {
        let directory = Directory::new("notify");
        let path = directory.0.join("notify");
        let manager = UnixDatagram::bind(&path).expect("bind");
        let address = SocketAddr::from_pathname(&path).expect("address");
        let notifier = Notifier::connect(&address).expect("connect");
        notifier.store("a1", manager.as_fd()).expect("store");
        notifier.forget("a1").expect("forget");
        let mut buffer = [0; 100];
        let mut fds = Vec::new();
        let count = bindonce_fd::recv(manager.as_fd(), &mut buffer, &mut fds).expect("receive");
        assert_eq!(&buffer[..count], b"FDSTORE=1\nFDNAME=a1\nFDPOLL=0");
        assert_eq!(fds.len(), 1);
        let count = manager.recv(&mut buffer).expect("receive");
        assert_eq!(&buffer[..count], b"FDSTOREREMOVE=1\nFDNAME=a1");
    }

    #[test]
    fn a_manager_that_does_not_read_delays_nobody() {
        let directory = Directory::new("notify-full");
        let path = directory.0.join("notify");
        let _manager = UnixDatagram::bind(&path).expect("bind");
        let address = SocketAddr::from_pathname(&path).expect("address");
        let notifier = Notifier::connect(&address).expect("connect");
        let full = (0..100_000).find_map(|_| notifier.send("STATUS=busy").err());
        assert_eq!(full.expect("full").kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_manager_that_reads_late_gets_every_state_in_order() {
        static STATES: Unsent = Unsent::new();
        let directory = Directory::new("notify-late");
        let path = directory.0.join("notify");
        let manager = UnixDatagram::bind(&path).expect("bind");
        let states = |from: usize| {
            let sent = (from..).take(10_000);
            let sent = sent.map_while(|n| STATES.send(path.as_os_str(), &n.to_string()).ok());
            from + sent.count()
        };
        let count = states(0);
        assert!(
            (MOST_UNSENT..10_000).contains(&count),
            "{count} states were taken, and none waited for"
        );
        let mut buffer = [0; 100];
        for expected in 0..count {
            let read = manager.recv(&mut buffer).expect("receive");
            assert_eq!(std::str::from_utf8(&buffer[..read]), Ok(&*expected.to_string()));
        }
        // The thread has ended or is about to: the next state goes before no earlier one.
        STATES.send(path.as_os_str(), "last").expect("there is room");
        let read = manager.recv(&mut buffer).expect("receive");
        assert_eq!(&buffer[..read], b"last");
    }
}
