//! The parts of netlink(7) that socket queries and device setup need.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::Error;

/// Size of struct nlmsghdr: length, type, flags, sequence number, port.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
/// The kernel builds dump messages of at most this size (netlink_dump).
const BUFFER: usize = 32 * 1024;

const NLM_F_ACK: u16 = 4;

/// A connection to one of the kernel's netlink families.
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    /// For socket diagnosis (sock_diag(7)).
    pub(crate) fn diagnosis() -> Result<Self, Error> {
        Self::open(Some(rustix::net::netlink::SOCK_DIAG), "socket(NETLINK_SOCK_DIAG)")
    }

    /// For devices and routes (rtnetlink(7)).
    pub(crate) fn route() -> Result<Self, Error> {
        // NETLINK_ROUTE is 0, the number for no protocol.
        Self::open(None, "socket(NETLINK_ROUTE)")
    }

    fn open(protocol: Option<Protocol>, operation: &'static str) -> Result<Self, Error> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol)
            .map(Self)
            .map_err(|error| Error::call(operation, error))
    }

    /// Requests all objects that match.
    pub(crate) fn dump(
        &self,
        kind: u16,
        request: &[u8],
        each: impl FnMut(Message<'_>),
    ) -> Result<(), Error> {
        self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, request)?;
        self.receive(false, each)
    }

    /// Requests exactly one object.
    pub(crate) fn ask(
        &self,
        kind: u16,
        request: &[u8],
        each: impl FnMut(Message<'_>),
    ) -> Result<(), Error> {
        self.send(kind, NLM_F_REQUEST, request)?;
        self.receive(true, each)
    }

    /// Sends a command to the kernel, and waits for its acknowledgement.
    pub(crate) fn command(&self, kind: u16, request: &[u8]) -> Result<(), Error> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK, request)?;
        self.receive(true, |_| {})
    }

    fn send(&self, kind: u16, flags: u16, request: &[u8]) -> Result<(), Error> {
        let length = HEADER + request.len();
        let mut message = Vec::with_capacity(length);
        message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(request);
        rustix::net::send(&self.0, &message, SendFlags::empty())
            .map(drop)
            .map_err(|error| Error::call("send to netlink", error))
    }

    fn receive(&self, single: bool, mut each: impl FnMut(Message<'_>)) -> Result<(), Error> {
        let mut buffer = vec![0_u8; BUFFER];
        loop {
            let received = match rustix::net::recv(&self.0, &mut buffer, RecvFlags::empty()) {
                Ok((received, _)) => received,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(Error::call("recv from netlink", error)),
            };
            let mut rest = Message(buffer.get(..received).unwrap_or_default());
            while let Some((kind, message)) = rest.next_message() {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        // 0 is the acknowledgement that NLM_F_ACK requests.
                        return match message.u32(0).map_or(0, u32::cast_signed) {
                            0 => Ok(()),
                            errno => Err(Error::call("netlink", Errno::from_raw(-errno))),
                        };
                    }
                    _ => each(message),
                }
                if single {
                    return Ok(());
                }
            }
            if received == 0 {
                return Ok(());
            }
        }
    }
}

/// Bytes from the kernel. Reading beyond their end returns None.
#[derive(Clone, Copy)]
pub(crate) struct Message<'a>(pub(crate) &'a [u8]);

impl<'a> Message<'a> {
    pub(crate) fn bytes<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    pub(crate) fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u16(self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_ne_bytes)
    }

    pub(crate) fn u32(self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_ne_bytes)
    }

    /// Takes the next message off the front: its type and its payload.
    fn next_message(&mut self) -> Option<(u16, Message<'a>)> {
        let length = usize::try_from(self.u32(0)?).ok()?;
        let kind = self.u16(4)?;
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, Message(payload)))
    }

    /// The attributes (struct rtattr: length, type, value) from `at` on.
    pub(crate) fn attributes(self, at: usize) -> impl Iterator<Item = (u16, Message<'a>)> {
        let mut rest = Message(self.0.get(at..).unwrap_or_default());
        std::iter::from_fn(move || {
            let length = usize::from(rest.u16(0)?);
            let kind = rest.u16(2)?;
            let value = rest.0.get(4..length)?;
            rest.0 = rest.0.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, Message(value)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_lie_about_their_length_end_the_reading() {
        for bad in [&[][..], &[1], &[0; 4], &[0xff; 16], &[3, 0, 0, 0, 1, 0], &[15, 0, 0, 0, 0, 0]]
        {
            assert!(Message(bad).next_message().is_none());
            assert!(Message(bad).attributes(0).count() <= 1, "{bad:?}");
        }
        let mut good = Message(&[17, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 42, 0, 0, 0]);
        let (kind, payload) = good.next_message().expect("message");
        assert_eq!((kind, payload.u8(0), payload.u32(0)), (9, Some(42), None));
        assert!(good.next_message().is_none());
    }
}
