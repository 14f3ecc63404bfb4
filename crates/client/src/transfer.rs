//! One attempt to send or to receive on a connection that may not be ready, for both clients: what
//! an end of the stream or a system error means for the current call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::Error;
use crate::session::{Answer, Session};

/// Bytes per read: a message of the kernel holds no more.
pub(crate) const READ_SIZE: usize = 64 * 1024;

/// A request that is being sent.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    rest: &'a [u8],
    fds: &'a [BorrowedFd<'a>],
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(request: &'a [u8], fds: &'a [BorrowedFd<'a>]) -> Self {
        Self { rest: request, fds }
    }

    /// Sends what there is room for. Returns whether all is sent.
    pub(crate) fn push(&mut self, socket: impl AsFd) -> io::Result<bool> {
        match bindonce_fd::send(socket, self.rest, self.fds) {
            Ok(count) => {
                self.rest = &self.rest[count..];
                // The descriptors went with the first byte.
                self.fds = &[];
                Ok(self.rest.is_empty())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            // The broker has hung up, perhaps after sending a reason: read it.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// Receives one message of the reply to `method`. The outer error is the system's; `WouldBlock`
/// means to wait.
pub(crate) fn pull(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    session: &mut Session,
    method: &'static str,
) -> io::Result<Result<Option<Answer>, Error>> {
    let Some(fds) = session.descriptors() else { return Ok(Err(Error::Interrupted)) };
    match bindonce_fd::recv(socket, buffer, fds) {
        Ok(0) => Ok(Err(Error::Closed { during: method })),
        Ok(count) => Ok(session.receive(&buffer[..count])),
        // Not an error of the system, so it passes through as a value.
        Err(bindonce_fd::Error::Truncated) => Ok(Err(Error::Truncated)),
        Err(error) => match io::Error::from(error) {
            error if error.kind() == io::ErrorKind::ConnectionReset => {
                Ok(Err(Error::Closed { during: method }))
            }
            error => Err(error),
        },
    }
}

/// Receives notifications between two calls. The outer error is the system's.
pub(crate) fn overhear(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    session: &mut Session,
) -> io::Result<Result<(), Error>> {
    let closed = Err(Error::Closed { during: "a wait" });
    // Notifications carry no descriptors: any that come are closed here.
    match bindonce_fd::recv(socket, buffer, &mut Vec::new()) {
        Ok(0) => Ok(closed),
        Ok(count) => Ok(session.overhear(&buffer[..count])),
        Err(bindonce_fd::Error::Truncated) => Ok(Err(Error::Truncated)),
        Err(error) => match io::Error::from(error) {
            error if error.kind() == io::ErrorKind::ConnectionReset => Ok(closed),
            error => Err(error),
        },
    }
}
