//! A socket on which a started process reports READY=1 (sd_notify(3)): a generation of a program,
//! or a broker. The kernel supplies the sender's pid.

use std::collections::BTreeSet;
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

/// Time between two looks at the queue. Any process can send, and a flood must neither keep this
/// process busy nor keep the awaited one from a place in the queue, which has ten
/// (net.unix.max_dgram_qlen).
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Number of messages taken at once, from all senders together.
const AT_ONCE: usize = 64;

/// The longest message that is read whole. A longer one is no READY=1 of a sane program.
const LONGEST: usize = 4096;

/// The socket on which one generation, or a broker, reports that it is ready.
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

    /// The value for NOTIFY_SOCKET.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Waits for READY=1, and gives the pids of its senders. Any process of this host can send it.
    pub(crate) async fn ready(&self) -> io::Result<BTreeSet<i32>> {
        loop {
            self.socket.readable().await?;
            let mut senders = BTreeSet::new();
            for _ in 0..AT_ONCE {
                match self.socket.try_io(Interest::READABLE, || self.receive()) {
                    Ok(sender) => senders.extend(sender),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if !senders.is_empty() {
                return Ok(senders);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until this process sends READY=1.
    pub(crate) async fn from(&self, pid: i32) -> Result<(), Error> {
        let failed = || Error::system("receive the readiness of the broker");
        while !self.ready().await.map_err(failed())?.contains(&pid) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Takes one message. Gives the pid of its sender if it contains READY=1.
    fn receive(&self) -> io::Result<Option<i32>> {
        let mut text = [0; LONGEST];
        let mut parts = [IoSliceMut::new(&mut text)];
        // Room for the credentials only: the kernel closes any descriptors sent along, as with
        // FDSTORE=1.
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// A thousand senders wait for a place in the queue, which has ten, before the awaited one
    /// does.
    const FLOOD: &str = "import socket, sys, threading\n\
        def flood():\n\
        \x20   s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect('\\0' + sys.argv[1][1:])\n\
        \x20   while True: s.send(b'READY=1')\n\
        for _ in range(int(sys.argv[2])): threading.stack_size(262144); threading.Thread(target=flood, daemon=True).start()\n\
        print('begun', flush=True)\n\
        if sys.argv[2] == '0':\n\
        \x20   s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect('\\0' + sys.argv[1][1:])\n\
        \x20   s.send(b'READY=1')\n\
        sys.stdin.read()\n";

    #[test]
    fn a_flood_of_ready_keeps_nobody_from_saying_so() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let notifications = Notifications::new().expect("a socket");
            let start = |threads: &str| {
                let mut command = Command::new("python3");
                command.args(["-c", FLOOD, notifications.address(), threads]);
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3")
            };
            let mut stranger = start("1000");
            // The queue is full from here on.
            let first = notifications.ready().await.expect("a message");
            let mut program = start("0");
            let pid = i32::try_from(program.id()).expect("a pid");
            assert!(!first.contains(&pid));
            let told = tokio::time::timeout(Duration::from_secs(30), notifications.from(pid)).await;
            stranger.kill().and_then(|()| stranger.wait()).expect("kill");
            program.kill().and_then(|()| program.wait()).expect("kill");
            told.expect("in time").expect("told");
        });
    }
}
