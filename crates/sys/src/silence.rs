//! Finds idle TCP connections of another process, and ends them as if the client had ended them.
//!
//! The process reads the end of its input (shutdown(2) with SHUT_RD, on a copy of its descriptor)
//! and closes the connection itself, as for a client that has no more requests: it still says what
//! its protocol requires, and reads what arrived before. No request that was read is lost. A later
//! request meets a closed connection, as with any server that ends an idle connection.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use rustix::net::{AddressFamily, Shutdown, SocketType, shutdown, sockopt};

use crate::holders::Holder;
use crate::queue;

/// The TCP connections among a process's sockets that have no data in flight, and on which nothing
/// was received or sent for this long. Sockets that the process has closed meanwhile are left out.
///
/// # Errors
/// `EPERM` without the right to trace the process.
pub fn find(sockets: &[Holder], silence: Duration) -> io::Result<Vec<Holder>> {
    let mut found = Vec::new();
    for holder in sockets {
        found.extend(take(holder, silence)?.map(|_| *holder));
    }
    Ok(found)
}

/// Ends the input of a connection, if the process still has it under that number and it is still
/// silent; returns whether it did.
///
/// # Errors
/// Errors from [`find`].
pub fn end_input(holder: &Holder, silence: Duration) -> io::Result<bool> {
    // The client may have reset the connection meanwhile: it has ended too.
    Ok(take(holder, silence)?.is_some_and(|socket| shutdown(&socket, Shutdown::Read).is_ok()))
}

/// A copy of the descriptor, if the connection is silent. Drop it at once: if the process closes
/// the connection meanwhile, it stays in the process's epoll sets for as long as a copy exists (see
/// [`crate::ghosts`]).
fn take(holder: &Holder, silence: Duration) -> io::Result<Option<OwnedFd>> {
    match holder.take() {
        // For a socket that is not a TCP connection the answer is no.
        Ok(socket) => Ok(is_silent(socket.as_fd(), silence).unwrap_or(false).then_some(socket)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Err(_) => Ok(None),
    }
}

fn is_silent(socket: BorrowedFd<'_>, silence: Duration) -> io::Result<bool> {
    /// The state of an established connection in tcp_info (`TCP_ESTABLISHED`).
    const ESTABLISHED: u8 = 1;
    let family = sockopt::socket_domain(socket)?;
    let is_tcp = matches!(family, AddressFamily::INET | AddressFamily::INET6)
        && sockopt::socket_type(socket)? == SocketType::STREAM;
    if !is_tcp || rustix::io::ioctl_fionread(socket)? > 0 {
        return Ok(false);
    }
    // The head of struct tcp_info: eight bytes, of which the first is the state, then 32-bit
    // counters.
    let info: [u32; 14] = queue::words(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    let [states, .., unacked, _sacked, _lost, _retrans, _fackets, sent, _ack_sent, received] = info;
    // In milliseconds; a large number if nothing was sent yet.
    let quiet = Duration::from_millis(sent.min(received).into());
    Ok(states.to_ne_bytes()[0] == ESTABLISHED && unacked == 0 && quiet >= silence)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;

    use super::*;
    use crate::holders;

    #[test]
    fn only_a_connection_without_traffic_is_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        let pair = || {
            let client = TcpStream::connect(address).expect("connected");
            (client, listener.accept().expect("accepted").0)
        };
        let ((mut idle, idle_server), (mut busy, busy_server)) = (pair(), pair());
        busy.write_all(b"GET").expect("written");
        let numbers = [&idle_server, &busy_server].map(|server| server.as_raw_fd());
        let own = holders::of_table(std::process::id().cast_signed());
        let ours: Vec<_> = own.into_iter().filter(|held| numbers.contains(&held.fd)).collect();
        assert_eq!(ours.len(), 2, "{ours:?}");
        let listening = Holder { fd: listener.as_raw_fd(), ..ours[0] };
        assert!(find(&[listening], Duration::ZERO).expect("another socket").is_empty());
        let hour = Duration::from_secs(3600);
        assert!(find(&ours, hour).expect("looked at").is_empty());
        let found = find(&ours, Duration::ZERO).expect("looked at");
        assert_eq!(found.iter().map(|held| held.fd).collect::<Vec<_>>(), [numbers[0]]);
        // Data that came before is read before the end.
        assert!(!end_input(&found[0], hour).expect("not silent for so long"));
        let other = ours.iter().find(|held| held.fd == numbers[1]).expect("the busy one");
        let another = Holder { inode: other.inode, ..found[0] };
        assert!(!end_input(&another, Duration::ZERO).expect("the number is another socket's"));
        assert!(end_input(&found[0], Duration::ZERO).expect("ended"));
        let mut read = String::new();
        (&idle_server).read_to_string(&mut read).expect("the end");
        assert_eq!(read, "");
        (&idle_server).write_all(b"bye").expect("its own half is open");
        drop(idle_server);
        idle.read_to_string(&mut read).expect("its words");
        assert_eq!(read, "bye");
        idle.write_all(b"x").ok();
        assert!(find(&found, Duration::ZERO).expect("closed").is_empty());
    }
}
