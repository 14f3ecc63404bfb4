//! Hides a TCP listener from new connections while it stays open: they go to the next one that covers its address.
//!
//! A socket that is bound to a device is found only by packets that come in through it (compute_score() in
//! net/ipv4/inet_hashtables.c), and SO_BINDTOIFINDEX takes the number of a device that there is not. What waits in the accept
//! queue stays there, and a handshake that is under way still ends there, since the kernel has noted the listener with it.
//! To be found again takes CAP_NET_RAW over the network namespace, so nothing is hidden without it.

use std::os::fd::{AsFd as _, BorrowedFd};

use nix::libc::{self, c_int};
use socket2::{Domain, Socket, Type};

use crate::options::{netns_cookie, number, set};

/// A number that the kernel gives no device, since it gives them in order.
const NO_DEVICE: c_int = c_int::MAX;

/// Says of sockets whether they can be found again when they were hidden.
#[derive(Debug)]
pub struct Hiding {
    /// The network namespace where this process may do so.
    netns: u64,
}

impl Hiding {
    /// What this process may do in its own network namespace; None if nothing, or the kernel does not know how (before Linux 5.14).
    pub fn here() -> Option<Self> {
        let tried = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
        let may = hide(tried.as_fd()) && show(tried.as_fd());
        let netns = netns_cookie(tried.as_fd())?;
        may.then_some(Self { netns })
    }

    /// Hides a listener. False if it is bound to a device, or could not be found again.
    pub fn hide(&self, listener: BorrowedFd<'_>) -> bool {
        netns_cookie(listener) == Some(self.netns) && device(listener) == Some(0) && hide(listener)
    }
}

/// Has a listener found again if it is hidden. False if that is not permitted.
pub fn show(listener: BorrowedFd<'_>) -> bool {
    !is_hidden(listener) || set(listener, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, 0)
}

/// Whether it is hidden.
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
    use crate::listen;
    use crate::queue::accept_queue;

    #[test]
    fn who_connects_to_a_hidden_listener_reaches_the_one_that_covers_it() {
        let Some(hiding) = Hiding::here() else {
            return eprintln!("skipped: it takes CAP_NET_RAW");
        };
        let one = TcpListener::bind("127.0.0.1:0").expect("bind");
        let at = one.local_addr().expect("address");
        let any: Listener = format!("*:{}", at.port()).parse().expect("address");
        let any = listen::open_beside(&any, &[one.as_fd()]).expect("beside it");
        let waiting = |fd| accept_queue(fd).expect("a queue").len;
        let waits = || [waiting(one.as_fd()), waiting(any.fd.as_fd())];
        let connect = || TcpStream::connect(at).expect("connect");

        let _first = connect();
        assert_eq!(waits(), [1, 0]);
        assert!(hiding.hide(one.as_fd()) && is_hidden(one.as_fd()));
        assert!(!hiding.hide(one.as_fd()), "it is bound to a device by now");
        let _second = connect();
        assert_eq!(waits(), [1, 1]);
        one.accept().expect("what came before is there");
        assert!(show(one.as_fd()) && !is_hidden(one.as_fd()));
        let _third = connect();
        assert_eq!(waits(), [1, 1]);
        assert!(show(any.fd.as_fd()), "it was never hidden");
    }
}
