//! A socket on which a process that was started says READY=1 (sd_notify(3)): a generation of a program, or
//! a broker. The kernel tells who has sent it.

use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use crate::error::Error;

/// Between two looks at who has said READY=1: each reads all of /proc.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The longest message that is read whole; what is longer is no READY=1 of a sane program.
const LONGEST: usize = 4096;

/// Where one generation says that it is ready.
#[derive(Debug)]
pub(crate) struct Notifications {
    socket: UnixDatagram,
    address: String,
}

impl Notifications {
    pub(crate) fn new() -> Result<Self, Error> {
        let made = socket().and_then(|(socket, address)| {
            setsockopt(&socket, sockopt::PassCred, &true)?;
            Ok(Self { socket, address })
        });
        made.map_err(Error::system("make a socket for the program's notifications"))
    }

    /// What NOTIFY_SOCKET is to be.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Waits for READY=1, and gives the pid of its sender. Any process of this host can send it.
    pub(crate) async fn ready(&self) -> io::Result<i32> {
        loop {
            let message = self.socket.async_io(Interest::READABLE, || self.receive()).await?;
            if let Some(pid) = message {
                return Ok(pid);
            }
        }
    }

    /// Waits until this process says READY=1.
    pub(crate) async fn from(&self, pid: i32) -> Result<(), Error> {
        while self.ready().await.map_err(Error::system("receive the broker's word"))? != pid {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Takes one message; the pid of its sender if it says READY=1.
    fn receive(&self) -> io::Result<Option<i32>> {
        let mut text = [0; LONGEST];
        let mut parts = [IoSliceMut::new(&mut text)];
        // Room for the credentials and for nothing else: descriptors that come along, as with
        // FDSTORE=1, the kernel closes.
        let mut control = cmsg_space!(UnixCredentials);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let raw = self.socket.as_raw_fd();
        let received = recvmsg::<()>(raw, &mut parts, Some(&mut control), flags)?;
        let sender = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
            _ => None,
        });
        let length = received.bytes;
        let says = text.get(..length).unwrap_or_default();
        let ready = says.split(|byte| *byte == b'\n').any(|line| line == b"READY=1");
        Ok(sender.filter(|_| ready))
    }
}

/// A datagram socket with a name that the kernel chose (unix(7), "Autobind feature"), and that
/// name as sd_notify(3) wants it.
fn socket() -> io::Result<(UnixDatagram, String)> {
    let socket = net::UnixDatagram::unbound()?;
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?;
    let name = address.as_abstract_name().unwrap_or_default();
    let name = format!("@{}", String::from_utf8_lossy(name));
    Ok((UnixDatagram::from_std(socket)?, name))
}
