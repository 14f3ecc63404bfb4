//! Messages from the supervisor to its [`watchdog`](super::watchdog): lines on a socket, some with
//! descriptors.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use bindonce_core::patience::Patience;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The incoming lines and descriptors.
pub(super) struct Inbox {
    socket: OwnedFd,
    text: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

pub(super) enum Next {
    /// A line, including its newline.
    Line(String),
    /// No line arrived in time.
    Late,
    /// The supervisor is gone.
    End,
}

impl Inbox {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, text: Vec::new(), descriptors: Vec::new() }
    }

    /// The oldest descriptor. Lines are handled in order of arrival, each with its own descriptors.
    pub(super) fn descriptor(&mut self) -> Option<OwnedFd> {
        (!self.descriptors.is_empty()).then(|| self.descriptors.remove(0))
    }

    /// Waits for the next line, as long as there is patience.
    pub(super) fn next(&mut self, mut patience: Option<&mut Patience>) -> Next {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line = self.text.drain(..=end).collect();
                return Next::Line(String::from_utf8(line).unwrap_or_default());
            }
            let wait = match &mut patience {
                None => PollTimeout::NONE,
                Some(patience) => match patience.next_wait(Instant::now()) {
                    Some(wait) => PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX),
                    None => return Next::Late,
                },
            };
            let mut socket = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut socket, wait) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) | Err(_) => {}
            }
            let mut buffer = [0; 4096];
            match bindonce_fd::recv(self.socket.as_fd(), &mut buffer, &mut self.descriptors) {
                Ok(0) => return Next::End,
                Ok(count) => self.text.extend_from_slice(&buffer[..count]),
                // Only the copy of a hold is lost.
                Err(bindonce_fd::Error::Truncated) => {}
                Err(_) => return Next::End,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_supervisor_that_was_stopped_together_with_its_watchdog_has_its_time() {
        let (ours, _supervisor) = UnixStream::pair().expect("a pair");
        let (limit, now) = (Duration::from_millis(300), Instant::now());
        let mut patience = Patience::new(limit);
        // For twice the limit, in the first wait.
        let begun = now.checked_sub(2 * limit).expect("this machine runs for longer");
        assert!(patience.next_wait(begun).is_some());
        let next = Inbox::new(ours.into()).next(Some(&mut patience));
        assert!(matches!(next, Next::Late));
        assert!(now.elapsed() >= limit * 4 / 5, "{:?}", now.elapsed());
    }
}
