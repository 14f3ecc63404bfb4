//! Talks to the service manager (sd_notify(3), sd_listen_fds(3)) without its library.
//!
//! A state is a datagram to `$NOTIFY_SOCKET`; descriptors that ride on one go into the
//! service's descriptor store, and come back, with their names, when the service is
//! started again after a crash. What is sent is in the manager's hands even if this
//! process is killed the moment after.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bindonce_sys::inherit;

/// The variable that names the socket of the process that has started a broker for itself, as `bindonce run` does, and waits
/// for its word: READY=1, once, in the manner of sd_notify(3).
pub const STARTER: &str = "BINDONCE_READY";

/// Sends `state` (such as `READY=1` or `STATUS=...`) to the socket that
/// `$NOTIFY_SOCKET` names, a path or `@` and an abstract name. False if there
/// is none, which is the case outside a service manager.
///
/// # Errors
/// Those of sending a datagram; an address that is neither form is `InvalidInput`.
fn send(state: &str) -> io::Result<bool> {
    let Some(target) = env::var_os("NOTIFY_SOCKET") else {
        return Ok(false);
    };
    send_to(&target, state)?;
    Ok(true)
}

/// Tells the service manager one state, where there is one.
pub fn tell(state: &str) {
    if let Err(error) = send(state) {
        tracing::warn!(%error, state, "cannot tell the service manager");
    }
}

/// Sends `state` to the socket at `target`, a path or `@` and an abstract name.
///
/// # Errors
/// Those of sending a datagram; an address that is neither form is `InvalidInput`.
pub fn send_to(target: &OsStr, state: &str) -> io::Result<()> {
    let address = address(target.as_bytes())?;
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// A connection to the service manager that never waits for it: every call fails with
/// `WouldBlock` while the manager has too much to read, and the descriptor is
/// writable when it has not.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
}

impl Notifier {
    /// To the manager that `$NOTIFY_SOCKET` names; None without one.
    ///
    /// # Errors
    /// Those of socket(2) and connect(2); an address of neither form is `InvalidInput`.
    pub fn from_env() -> io::Result<Option<Self>> {
        let Some(target) = env::var_os("NOTIFY_SOCKET").filter(|target| !target.is_empty()) else {
            return Ok(None);
        };
        Self::connect(&address(target.as_bytes())?).map(Some)
    }

    /// To a manager at this address.
    ///
    /// # Errors
    /// Those of socket(2) and connect(2).
    pub fn connect(address: &SocketAddr) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// Sends one or more lines of state.
    ///
    /// # Errors
    /// Those of send(2).
    pub fn send(&self, state: &str) -> io::Result<()> {
        self.socket.send(state.as_bytes()).map(drop)
    }

    /// Puts a descriptor into the store. `name` has at most 255 bytes, no colon and
    /// no control character. It is not watched for hang-ups (FDPOLL=0), because a socket that
    /// is bound and does not listen looks hung up, and would be dropped.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub fn store(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        let state = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        bindonce_fd::send(&self.socket, state.as_bytes(), &[fd]).map(drop)
    }

    /// Takes every descriptor of this name out of the store.
    ///
    /// # Errors
    /// Those of send(2).
    pub fn forget(&self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"))
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How often the manager expects to hear `WATCHDOG=1` from this process (half of
/// `$WATCHDOG_USEC`, as sd_watchdog_enabled(3) advises); None if it does not.
pub fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    if number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(process::id())) {
        return None;
    }
    let period = Duration::from_micros(number("WATCHDOG_USEC")? / 2);
    (!period.is_zero()).then_some(period)
}

/// The descriptors that the service manager passed to this process, with their
/// names, close-on-exec from now on. The first call has them; every other none.
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
}
