//! Sends one question to a UNIX stream socket, and reads the whole answer by a deadline.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::patience::{LAST_LOOK, Late, Patience};

/// Sends `question`, and reads to the end of the stream: at most `most` bytes, within `limit`.
///
/// # Errors
/// The errors of connect(2) and read(2), `TimedOut`, and `InvalidData` for a longer answer.
pub fn exchange(path: &Path, question: &[u8], most: usize, limit: Duration) -> io::Result<Vec<u8>> {
    patiently(path, question, most, Patience::new(limit))
}

fn patiently(
    path: &Path,
    question: &[u8],
    most: usize,
    mut patience: Patience,
) -> io::Result<Vec<u8>> {
    let mut stream = connect(path)?;
    let mut answer = Vec::new();
    let mut part = vec![0; 16 * 1024];
    stream.set_write_timeout(Some(patience.limit().max(LAST_LOOK)))?;
    stream.write_all(question)?;
    while let Some(wait) = patience.next_wait(Instant::now()) {
        stream.set_read_timeout(Some(wait))?;
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
    Err(Late.into())
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::testing::{Directory, stopped_within};

    #[test]
    fn an_answer_is_read_although_this_process_was_stopped() {
        let directory = Directory::new("exchange");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut question = [0; 4];
            stream.read_exact(&mut question).expect("the question");
            stream.write_all(&question).expect("an answer");
        });
        let patience = stopped_within(Duration::from_secs(30));
        assert_eq!(patiently(&path, b"ask\n", 100, patience).expect("an answer"), b"ask\n");
        server.join().expect("the server");
        let silent = UnixListener::bind(directory.path().join("silent")).expect("a socket");
        let path = directory.path().join("silent");
        let late = exchange(&path, b"ask\n", 100, Duration::from_millis(20)).expect_err("silent");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        drop(silent);
    }
}
