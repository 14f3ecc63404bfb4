//! Waiting for a descriptor in tokio.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells when a descriptor becomes readable. It has a copy of its own, so the
/// descriptor may be used and closed elsewhere.
#[derive(Debug)]
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Watches what `fd` refers to. Call it within a tokio runtime.
    ///
    /// # Errors
    /// Those of fcntl(2) F_DUPFD_CLOEXEC and epoll_ctl(2).
    pub fn new(fd: &impl AsFd) -> io::Result<Self> {
        let copy = fd.as_fd().try_clone_to_owned()?;
        // SAFETY: `register_with_interest` wants `as_raw_fd` to name one descriptor that stays open
        // for as long as the AsyncFd lives. It is an OwnedFd that nothing but the AsyncFd can
        // reach: its number never changes and only its drop closes it.
        let watch = unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) };
        Ok(Self(watch.map_err(|error| error.into_parts().1)?))
    }

    /// Waits until it has become readable since the last time that this was
    /// asked. Read until nothing is left before asking again.
    ///
    /// # Errors
    /// Only if the runtime is being shut down.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}
