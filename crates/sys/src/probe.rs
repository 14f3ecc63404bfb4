//! A connection that puts one entry into an accept queue and is gone.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
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

/// The IPv6 addresses of this network, from /proc/net/if_inet6; none where there is no IPv6.
pub fn local_ipv6() -> Vec<SocketAddrV6> {
    let text = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let address = |line: &str| {
        let mut fields = line.split_whitespace();
        let ip = Ipv6Addr::from_bits(u128::from_str_radix(fields.next()?, 16).ok()?);
        let device = u32::from_str_radix(fields.next()?, 16).ok()?;
        let scope = if ip.is_unicast_link_local() { device } else { 0 };
        Some(SocketAddrV6::new(ip, 0, 0, scope))
    };
    text.lines().filter_map(address).collect()
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

    #[test]
    fn the_addresses_of_this_network_are_found() {
        let found = local_ipv6();
        // Where there is no IPv6 there is none.
        let there = std::net::TcpListener::bind("[::1]:0").is_ok();
        assert_eq!(found.iter().any(|at| at.ip().is_loopback()), there, "{found:?}");
    }
}
