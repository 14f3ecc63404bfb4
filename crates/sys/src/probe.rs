//! A connection that puts one entry into an accept queue and is gone.

use std::io;
use std::time::Duration;

use bindonce_core::address::Address;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::listen::padded;

/// Connects to a listener on this host and resets the connection at once. The
/// entry stays in the accept queue until somebody accepts it, and they find a
/// connection that has already ended (tcp(7), unix(7)).
///
/// On loopback the handshake is complete when connect(2) returns, so nothing is
/// waited for.
///
/// # Errors
/// Those of socket(2) and connect(2); a datagram address is `Unsupported`.
pub fn connect_and_reset(to: &Address) -> io::Result<()> {
    let address = match to {
        Address::Tcp(address) => SockAddr::from(*address),
        Address::Unix(path) => SockAddr::unix(path)?,
        Address::Abstract(name) => padded(name)?,
        Address::Udp(_) => return Err(io::ErrorKind::Unsupported.into()),
    };
    let socket = Socket::new(Domain::from(i32::from(address.family())), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    if let Address::Tcp(_) = to {
        // Closing sends a reset: nothing is left behind in TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;
    use crate::queue::accept_queue;

    #[test]
    fn the_entry_stays_until_it_is_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = Address::Tcp(listener.local_addr().expect("address"));
        for length in 1..4 {
            connect_and_reset(&address).expect("connect");
            assert_eq!(accept_queue(listener.as_fd()).expect("queue").len, length);
        }
        listener.accept().expect("accept");
        assert_eq!(accept_queue(listener.as_fd()).expect("queue").len, 2);
    }
}
