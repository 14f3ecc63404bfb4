//! Messages from the supervisor to its [`watchdog`](super::watchdog): lines on a socket, some with
//! descriptors.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

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
    /// No line arrived by the deadline.
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

    /// Waits for the next line until `until` at most.
    pub(super) fn next(&mut self, until: Option<Instant>) -> Next {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line = self.text.drain(..=end).collect();
                return Next::Line(String::from_utf8(line).unwrap_or_default());
            }
            let left = until.map_or(PollTimeout::NONE, |until| {
                let left = until.saturating_duration_since(Instant::now());
                // Rounded up, so that the wait lasts at least until then.
                PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
            });
            let mut socket = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut socket, left) {
                Ok(0) => return Next::Late,
                Err(Errno::EINTR) => continue,
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
