//! Hides an open TCP listener from new connections, which then go to the next listener that covers
//! its address.
//!
//! The kernel finds a socket that is bound to a device only for packets that arrive through that
//! device (compute_score() in net/ipv4/inet_hashtables.c), and SO_BINDTOIFINDEX accepts the number
//! of a device that does not exist. Connections in the accept queue stay there, and a handshake
//! under way still completes, since the kernel has recorded the listener with it. Showing a
//! listener again needs CAP_NET_RAW over the network namespace, so without it nothing is hidden. A
//! listener with a device (`interface`) gets that device back. It is not hidden if a VRF may exist:
//! the kernel has recorded its port with the VRF, and looks the port up there again in listen(2)
//! (inet_csk_get_port() in net/ipv4/inet_connection_sock.c).

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use nix::libc::{self, c_int};
use socket2::{Domain, SockRef, Socket, Type};

use crate::options::{netns_cookie, number, set};

/// A number that the kernel assigns to no device, since it assigns numbers in order.
const NO_DEVICE: c_int = c_int::MAX;

/// This directory exists if the kernel supports VRFs.
const VRF: &str = "/proc/sys/net/vrf";

/// The right to hide and show sockets again.
#[derive(Debug)]
pub struct Hiding {
    /// The network namespace in which this process may do so.
    netns: u64,
    /// Whether a device may belong to a VRF.
    vrf: bool,
}

impl Hiding {
    /// The right of this process in the network namespace of this thread; None without the right,
    /// or if the kernel does not support it (before Linux 5.14).
    pub fn here() -> Option<Self> {
        let tried = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
        let may = hide(tried.as_fd()) && show(tried.as_fd(), None);
        let netns = netns_cookie(tried.as_fd())?;
        may.then(|| Self { netns, vrf: Path::new(VRF).exists() })
    }

    /// Hides a bound TCP socket; `interface` is that of its listener. False if the socket could not
    /// be shown again as it is, or is hidden already.
    pub fn hide(&self, socket: BorrowedFd<'_>, interface: Option<&str>) -> bool {
        let may = match (device(socket), interface) {
            (Some(0), None) => true,
            (Some(number), Some(_)) => number != 0 && number != NO_DEVICE && !self.vrf,
            // The kernel chose the device of a link-local address.
            _ => false,
        };
        may && netns_cookie(socket) == Some(self.netns) && hide(socket)
    }
}

/// Shows a hidden listener again, on `interface` if it has one. False if that is not permitted, or
/// the device does not exist.
pub fn show(listener: BorrowedFd<'_>, interface: Option<&str>) -> bool {
    !is_hidden(listener)
        || match interface {
            None => set(listener, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, 0),
            Some(name) => SockRef::from(&listener).bind_device(Some(name.as_bytes())).is_ok(),
        }
}

/// Whether the listener is hidden.
pub fn is_hidden(listener: BorrowedFd<'_>) -> bool {
    device(listener) == Some(NO_DEVICE)
}

fn hide(socket: BorrowedFd<'_>) -> bool {
    set(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, NO_DEVICE)
}

fn device(socket: BorrowedFd<'_>) -> Option<c_int> {
    number(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use bindonce_core::listener::Listener;

    use super::*;
    use crate::queue::accept_queue;
    use crate::{identity, listen};

    fn waiting(fd: BorrowedFd<'_>) -> u32 {
        accept_queue(fd).expect("a queue").len
    }

    #[test]
    fn who_connects_to_a_hidden_listener_reaches_the_one_that_covers_it() {
        let Some(hiding) = Hiding::here() else {
            return eprintln!("skipped: it takes CAP_NET_RAW");
        };
        let one = TcpListener::bind("127.0.0.1:0").expect("bind");
        let at = one.local_addr().expect("address");
        let any: Listener = format!("*:{}", at.port()).parse().expect("address");
        let any = listen::open_beside(&any, &[one.as_fd()], false).expect("beside it");
        let waits = || [waiting(one.as_fd()), waiting(any.fd.as_fd())];
        let connect = || TcpStream::connect(at).expect("connect");

        let _first = connect();
        assert_eq!(waits(), [1, 0]);
        assert!(hiding.hide(one.as_fd(), None) && is_hidden(one.as_fd()));
        assert!(!hiding.hide(one.as_fd(), None), "it is bound to a device by now");
        let _second = connect();
        assert_eq!(waits(), [1, 1]);
        one.accept().expect("what came before is there");
        assert!(show(one.as_fd(), None) && !is_hidden(one.as_fd()));
        let _third = connect();
        assert_eq!(waits(), [1, 1]);
        assert!(show(any.fd.as_fd(), None), "it was never hidden");
    }

    #[test]
    fn one_that_is_opened_hidden_takes_no_connection_until_it_is_shown() {
        let Some(hiding) = Hiding::here() else {
            return eprintln!("skipped: it takes CAP_NET_RAW");
        };
        for (any, text, interface) in [
            ("*:0", "127.0.0.1:PORT", None),
            ("*:0", "*:PORT,interface=lo", Some("lo")),
            ("*:0,mptcp", "127.0.0.1:PORT,mptcp", None),
            ("[::]:0", "[::1]:PORT", None),
        ] {
            let parse = |text: &str| text.parse::<Listener>().expect("an address");
            let v6 = text.starts_with('[');
            let Ok(any) = listen::open(&parse(any)) else {
                eprintln!("skipped: {any}");
                continue;
            };
            let port = any.bound.port().expect("a port");
            let new = parse(&text.replace("PORT", &port.to_string()));
            let new = listen::open_beside(&new, &[any.fd.as_fd()], true).expect(text);
            assert_eq!(new.hidden, interface.is_none() || !hiding.vrf, "{text}");
            if !new.hidden {
                continue;
            }
            // An observer sees the socket as it will be once shown.
            let seen = identity::of(new.fd.as_fd()).expect(text);
            assert_eq!((seen.listening, seen.options.interface), (true, None), "{text}");
            let connect = || TcpStream::connect((if v6 { "::1" } else { "127.0.0.1" }, port));
            let waits = || [waiting(any.fd.as_fd()), waiting(new.fd.as_fd())];
            let _first = connect().expect("connect");
            assert_eq!(waits(), [1, 0], "{text}");
            assert!(show(new.fd.as_fd(), interface), "{text}");
            let seen = identity::of(new.fd.as_fd()).expect(text).options.interface;
            assert_eq!(seen.as_deref(), interface, "{text}");
            let _second = connect().expect("connect");
            assert_eq!(waits(), [1, 1], "{text}");
        }
    }
}
