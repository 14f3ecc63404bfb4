//! Sends and receives file descriptors over a UNIX socket (SCM_RIGHTS, unix(7)): without a leak,
//! and more of them than one message takes.
//!
//! This crate is the part of [bindonce](https://github.com/bindonce/bindonce), a broker for
//! listening sockets, that does not depend on its protocol. Any program that passes descriptors can
//! use it. **To get sockets from the broker, use the crate
//! [`bindonce`](https://docs.rs/bindonce).**
//!
//! | you want | use |
//! |---|---|
//! | to send bytes, with descriptors | [`send`] |
//! | to receive bytes and descriptors | [`recv`] |
//! | to send hundreds of them | [`batch`]: which go with which message ([`MAX_FDS`] fit in one) |
//! | the sockets that systemd or `bindonce exec` passed at the start (`LISTEN_FDS`) | [`passed()`] |
//!
//! A received descriptor is owned and close-on-exec from the first moment. It goes to the caller or
//! is closed, even if the kernel truncates the message.
//!
//! # Example
//! ```
//! use std::net::TcpListener;
//! use std::os::fd::AsFd;
//! use std::os::unix::net::UnixStream;
//!
//! let (here, there) = UnixStream::pair()?;
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let address = listener.local_addr()?;
//! bindonce_fd::send(&here, b"web", &[listener.as_fd()])?;
//! drop(listener); // The socket lives on: a descriptor of it is on its way.
//!
//! let (mut name, mut descriptors) = ([0; 16], Vec::new());
//! let read = bindonce_fd::recv(there.as_fd(), &mut name, &mut descriptors)?;
//! assert_eq!(&name[..read], b"web");
//! let listener = TcpListener::from(descriptors.remove(0));
//! assert_eq!(listener.local_addr()?, address);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Both directions use rustix: nix refuses to list the descriptors of a truncated message, which
//! leaks them.

// Only taking over a descriptor number that was left open needs unsafe code.
#![deny(unsafe_code)]

pub mod batch;
mod passed;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub use passed::{passed, pidfd_id};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The most descriptors in one message (SCM_MAX_FD in linux/net/scm.h).
pub const MAX_FDS: usize = 253;

/// Why nothing was received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A message came with more descriptors than this process could take. Those that arrived are
    /// closed again.
    #[error("descriptors were lost on the way: the kernel truncated the message")]
    Truncated,
    /// The error from recvmsg(2).
    #[error(transparent)]
    Receive(io::Error),
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Truncated => io::Error::other(error),
            Error::Receive(error) => error,
        }
    }
}

/// Sends some of `bytes` and, with them, all of `fds`. Returns how many bytes were sent. Send the
/// rest of the bytes without the descriptors.
///
/// # Errors
/// `InvalidInput` for more than [`MAX_FDS`] descriptors, or for descriptors without a byte to carry
/// them; else errors from sendmsg(2). `WouldBlock` means that nothing was sent.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > MAX_FDS || (bytes.is_empty() && !fds.is_empty()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

/// Receives bytes into `buffer` and appends the descriptors that came with them to `fds`. Returns
/// the number of bytes, 0 at the end of the stream.
///
/// # Errors
/// [`Error::Truncated`] if descriptors were lost, usually because this process can open no more;
/// those that arrived are closed, and `fds` is unchanged. Else [`Error::Receive`]; `WouldBlock` on
/// a non-blocking socket.
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
            done => break done.map_err(|error| Error::Receive(error.into()))?,
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn ino(fd: &OwnedFd) -> u64 {
        rustix::fs::fstat(fd).expect("fstat").st_ino
    }

    #[test]
    fn the_most_descriptors_arrive_closed_on_exec_and_in_order() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let sockets: Vec<OwnedFd> =
            (0..MAX_FDS).map(|_| UnixStream::pair().expect("pair").0.into()).collect();
        let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        assert_eq!(send(&ours, b"hello", &borrowed).expect("send"), 5);
        let (mut buffer, mut fds) = ([0; 16], Vec::new());
        assert_eq!(recv(theirs.as_fd(), &mut buffer, &mut fds).expect("receive"), 5);
        assert_eq!(&buffer[..5], b"hello");
        assert!(fds.iter().map(ino).eq(sockets.iter().map(ino)));
        for fd in &fds {
            let flags = rustix::io::fcntl_getfd(fd).expect("flags");
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        drop(ours);
        assert_eq!(recv(theirs.as_fd(), &mut buffer, &mut fds).expect("end"), 0);
    }

    #[test]
    fn too_many_or_without_a_byte_is_refused_before_the_kernel_sees_it() {
        let (ours, _theirs) = UnixStream::pair().expect("pair");
        let many = vec![ours.as_fd(); MAX_FDS + 1];
        assert_eq!(send(&ours, b"x", &many).expect_err("many").kind(), io::ErrorKind::InvalidInput);
        assert!(send(&ours, b"", &many[..1]).is_err());
    }

    #[test]
    fn a_socket_that_would_block_says_so() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        theirs.set_nonblocking(true).expect("mode");
        let error = recv(theirs.as_fd(), &mut [0; 16], &mut Vec::new()).expect_err("empty");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::WouldBlock);
        drop(ours);
    }
}
