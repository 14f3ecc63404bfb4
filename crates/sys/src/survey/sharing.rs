//! Whether another process could bind beside a socket.

use std::os::fd::AsFd as _;

use rustix::net::sockopt;

use crate::process::Pidfd;

/// Whether descriptor `number` of a process has SO_REUSEPORT set; None where it
/// may not be asked (pidfd_getfd(2) needs the right to trace).
///
/// For the time of one call the socket is held here too, and nothing is changed.
pub fn joinable(pid: i32, number: i32) -> Option<bool> {
    let socket = Pidfd::open(pid).ok()?.take(number).ok()?;
    sockopt::socket_reuseport(socket.as_fd()).ok()
}
