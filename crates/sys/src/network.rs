//! The network namespace and device of this process's sockets. A private namespace is for sockets
//! that must neither meet the listeners of this host nor be met by them.

use std::io;
use std::os::fd::AsFd as _;

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};

use crate::error::Error;
use crate::identity;
use crate::netlink::Netlink;

const RTM_NEWLINK: u16 = 16;
/// The loopback device is the first of every network namespace.
const LOOPBACK: u32 = 1;
const IFF_UP: u32 = 1;

/// Moves the calling thread, and everything it starts from then on, to a new network namespace
/// (network_namespaces(7)) that contains only a loopback device. Call it before other threads
/// exist: they would stay in the old one. False if the kernel refuses (without CAP_SYS_ADMIN, in
/// most containers); then nothing has changed.
/// # Errors
/// [`Error::Call`] if the loopback device of the new namespace cannot be set up.
pub fn isolate() -> Result<bool, Error> {
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        return Ok(false);
    }
    // struct ifinfomsg: family, padding, type, index, flags, and the mask of changed flags.
    let mut request = [0; 16];
    for (at, number) in [(4, LOOPBACK), (8, IFF_UP), (12, IFF_UP)] {
        request[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    Netlink::route()?.command(RTM_NEWLINK, &request).map(|()| true)
}

/// The device that new IP sockets of this process are bound to from their creation, if any: `ip vrf
/// exec` does that with a BPF program on the process's cgroup. Determined with a new socket.
///
/// # Errors
/// Errors from socket(2) and getsockopt(2).
pub fn device_of_new_sockets() -> io::Result<Option<String>> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    Ok(identity::ip_options(socket.as_fd())?.interface)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;

    /// On a separate thread, because the move is permanent.
    #[test]
    fn in_a_network_of_its_own_loopback_works_and_nothing_else_is_met() {
        let done = thread::spawn(|| {
            if !isolate().expect("a loopback device") {
                return crate::testing::skip("no network namespace can be had here");
            }
            assert_eq!(crate::diag::tcp().expect("sockets"), []);
            let listener = TcpListener::bind("127.0.0.1:80").expect("every port is free");
            let address = listener.local_addr().expect("its address");
            TcpStream::connect(address).expect("the loopback device is up");
            assert_eq!(crate::diag::tcp().expect("sockets").len(), 1);
        });
        done.join().expect("the thread");
    }
}
