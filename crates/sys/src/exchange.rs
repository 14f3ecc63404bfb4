//! Sends one question to a UNIX stream socket, and reads the whole answer by a deadline.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Sends `question`, and reads to the end of the stream: at most `most` bytes, within `limit`.
///
/// # Errors
/// The errors of connect(2) and read(2), `TimedOut`, and `InvalidData` for a longer answer.
pub fn exchange(path: &Path, question: &[u8], most: usize, limit: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + limit;
    let mut stream = connect(path)?;
    let mut answer = Vec::new();
    let mut part = vec![0; 16 * 1024];
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(Some(left)),
    };
    stream.set_write_timeout(left()?)?;
    stream.write_all(question)?;
    loop {
        stream.set_read_timeout(left()?)?;
        match stream.read(&mut part) {
            Ok(0) => return Ok(answer),
            Ok(length) => answer.extend_from_slice(&part[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A socket reports a timeout as EAGAIN.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if answer.len() > most {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Connects without waiting: if the queue is full, the server would not take the connection anyway.
///
/// # Errors
/// Errors from socket(2) and connect(2).
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
