//! Descriptors over a UNIX socket (SCM_RIGHTS, unix(7)).
//!
//! Sending is sendfd's. Receiving is rustix's, because what it hands out is
//! owned from the first moment: whatever arrives is close-on-exec and is either
//! given to the caller or closed, also when the kernel truncates the message
//! (nix refuses to list the descriptors of a truncated message, which leaks
//! them; sendfd neither sets close-on-exec nor reports truncation).

use std::io::{self, IoSliceMut};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use sendfd::SendWithFd;

use crate::error::Error;

/// The most descriptors in one message (SCM_MAX_FD of the kernel).
pub const MAX_FDS: usize = 253;

/// Sends some of `bytes` and, with them, all of `fds`; gives how many bytes
/// went out. The rest of the bytes must follow without the descriptors.
///
/// # Errors
/// `InvalidInput` for more than [`MAX_FDS`] descriptors or for descriptors
/// without a byte to ride on; else sendmsg(2)'s. `WouldBlock` means that
/// nothing was sent.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > MAX_FDS || (bytes.is_empty() && !fds.is_empty()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `socket` is open for the length of this call, and ManuallyDrop
    // keeps the stream from closing what it does not own.
    let stream = ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(socket.as_raw_fd()) });
    if fds.is_empty() {
        return io::Write::write(&mut &*stream, bytes);
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    loop {
        match stream.send_with_fd(bytes, &raw) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Receives bytes into `buffer` and appends the descriptors that came with
/// them to `fds`; gives the number of bytes, 0 at the end of the stream.
///
/// # Errors
/// [`Error::Truncated`] if descriptors were lost, usually because this process
/// may open no more; those that arrived are closed and `fds` is as it was. Else
/// [`Error::Call`] with recvmsg(2)'s error; `EAGAIN` on a non-blocking socket.
pub fn recv(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<usize, Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            done => break done.map_err(|error| Error::call("recvmsg", error))?,
        }
    };
    let before = fds.len();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        fds.truncate(before);
        return Err(Error::Truncated);
    }
    Ok(received.bytes)
}
