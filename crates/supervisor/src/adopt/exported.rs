//! `_getsocks`: how a haproxy hands its listening sockets to the next one (`-x`). This module takes
//! the part of the next one.
//!
//! Source: `_getsocks` in haproxy's src/cli.c and `sock_get_old_sockets` in src/sock.c, checked
//! against 2.6.12, 3.0.11 and 3.2.26. On the stats socket, after the command:
//!
//! 1. an int, of the machine's byte order: how many sockets there are;
//! 2. batches of at most 253 descriptors (SCM_RIGHTS), whose bytes hold for each: a byte with the
//!    length of its network namespace's name, the name, a byte with the length of its
//!    interface's name, the name, and an int that was once options;
//! 3. after each batch an int from us. haproxy waits a second for it *with that thread*, so
//!    nothing here does anything else in between.
//!
//! haproxy hangs up at once if the stats socket does not expose listeners, or no socket is left.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Error;
use bindonce_sys::exchange::connect;
use bindonce_sys::patience::{LAST_LOOK, Late, Patience};

/// A socket that haproxy handed over.
#[derive(Debug)]
pub struct Exported {
    /// A duplicate: haproxy still has its own descriptor.
    pub fd: OwnedFd,
    /// The network namespace that its bind line names.
    pub namespace: Option<String>,
}

/// More than haproxy can have, by its own limit on descriptors.
const MOST: usize = 1 << 20;

/// Two names of at most 255 bytes, their lengths, and an int.
const LONGEST_ENTRY: usize = 2 * 256 + 4;

/// Asks the haproxy at a stats socket for all of its listening sockets, in `limit` at most. Its
/// stats sockets are among them. haproxy keeps all and still accepts.
///
/// # Errors
/// [`Error::StatsSocket`], [`Error::NotExposed`], [`Error::Malformed`].
pub fn exported(path: &Path, limit: Duration) -> Result<Vec<Exported>, Error> {
    patiently(path, Patience::new(limit))
}

fn patiently(path: &Path, mut patience: Patience) -> Result<Vec<Exported>, Error> {
    let failed = |source| Error::StatsSocket { path: path.to_owned(), source };
    let malformed = |what| Error::Malformed { path: path.to_owned(), what };
    let mut stream = connect(path).map_err(failed)?;
    stream.set_write_timeout(Some(patience.limit().max(LAST_LOOK))).map_err(failed)?;
    stream.write_all(b"_getsocks\n").map_err(failed)?;

    let mut fds = Vec::new();
    let mut count = [0; 4];
    let mut filled = 0;
    while let Some(rest) = count.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match receive(&stream, rest, &mut fds, &mut patience).map_err(failed)? {
            0 => return Err(Error::NotExposed { path: path.to_owned() }),
            more => filled += more,
        }
    }
    let count = usize::try_from(i32::from_ne_bytes(count)).unwrap_or(usize::MAX);
    if count > MOST {
        return Err(malformed("it begins with no number of sockets"));
    }

    let mut names = Vec::new();
    let mut pending = Vec::new();
    let mut buffer = vec![0; 128 * 1024];
    while names.len() < count || fds.len() < count {
        let received = receive(&stream, &mut buffer, &mut fds, &mut patience).map_err(failed)?;
        if received == 0 {
            return Err(malformed("it ends before all sockets have come"));
        }
        pending.extend_from_slice(buffer.get(..received).unwrap_or_default());
        let used = entries(&pending, &mut names);
        pending.drain(..used);
        if fds.len() > count || names.len() > count || pending.len() > LONGEST_ENTRY {
            return Err(malformed("it holds more than it announced"));
        }
        if names.len() == fds.len() {
            // After the last batch haproxy may have gone already.
            let _ = stream.write_all(&(fds.len() as u32).to_ne_bytes());
        }
    }
    let exported = fds.into_iter().zip(names);
    Ok(exported.map(|(fd, namespace)| Exported { fd, namespace }).collect())
}

/// Reads some bytes and the descriptors sent with them. 0 at the end, also if haproxy resets the
/// connection.
fn receive(
    stream: &UnixStream,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    patience: &mut Patience,
) -> io::Result<usize> {
    while let Some(wait) = patience.next_wait(Instant::now()) {
        stream.set_read_timeout(Some(wait))?;
        match bindonce_fd::recv(stream.as_fd(), buffer, fds).map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
    Err(Late.into())
}

/// Reads whole entries from the beginning, and of each the name of its network namespace. Gives the
/// number of bytes read.
fn entries(bytes: &[u8], names: &mut Vec<Option<String>>) -> usize {
    let mut used = 0;
    while let Some((name, length)) = entry(bytes.get(used..).unwrap_or_default()) {
        names.push(name);
        used += length;
    }
    used
}

fn entry(bytes: &[u8]) -> Option<(Option<String>, usize)> {
    let (namespace, rest) = counted(bytes)?;
    let (interface, rest) = counted(rest)?;
    rest.get(..4)?;
    let length = 1 + namespace.len() + 1 + interface.len() + 4;
    let namespace =
        (!namespace.is_empty()).then(|| String::from_utf8_lossy(namespace).into_owned());
    Some((namespace, length))
}

fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn entries_are_read_however_they_are_cut() {
        let bytes = b"\x00\x02lo\0\0\0\0\x04blue\x00\0\0\0\0\x00\x00\0\0\0\0";
        for cut in 0..=bytes.len() {
            let mut names = Vec::new();
            let mut pending = bytes[..cut].to_vec();
            let used = entries(&pending, &mut names);
            pending.drain(..used);
            pending.extend_from_slice(&bytes[cut..]);
            assert_eq!(entries(&pending, &mut names), pending.len(), "{cut}");
            assert_eq!(names, [None, Some("blue".to_owned()), None], "{cut}");
        }
    }

    /// The patience of a process that was stopped for twice the limit in its first wait.
    fn stopped() -> Patience {
        let limit = Duration::from_secs(5);
        let mut patience = Patience::new(limit);
        let begun = Instant::now().checked_sub(2 * limit).expect("this machine runs for longer");
        assert!(patience.next_wait(begun).is_some());
        patience
    }

    /// Runs `serve` as a fake haproxy after the command, and gives the number of sockets received,
    /// although this process was stopped.
    fn exchanged(
        name: &str,
        serve: impl FnOnce(UnixStream) + Send + 'static,
    ) -> Result<usize, Error> {
        let path = std::env::temp_dir().join(format!("bindonce-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("bind");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut command = [0; 10];
            io::Read::read_exact(&mut stream, &mut command).expect("the command");
            assert_eq!(&command, b"_getsocks\n");
            serve(stream);
        });
        let result = patiently(&path, stopped()).map(|sockets| sockets.len());
        server.join().expect("server");
        std::fs::remove_file(&path).expect("remove");
        result
    }

    #[test]
    fn batches_are_acknowledged_and_counted() {
        let got = exchanged("batches", |mut stream| {
            stream.write_all(&3_i32.to_ne_bytes()).expect("count");
            for batch in [2, 1] {
                let fd = stream.try_clone().expect("fd");
                let bytes = vec![0; 6 * batch];
                bindonce_fd::send(&stream, &bytes, &vec![fd.as_fd(); batch]).expect("send");
                let mut ack = [0; 4];
                io::Read::read_exact(&mut stream, &mut ack).expect("ack");
            }
        });
        assert_eq!(got.expect("sockets"), 3);
    }

    #[test]
    fn what_is_no_handover_is_told_apart() {
        let refused = exchanged("refused", drop);
        assert!(matches!(refused, Err(Error::NotExposed { .. })), "{refused:?}");
        let cut =
            exchanged("cut", |mut stream| stream.write_all(&2_i32.to_ne_bytes()).expect("count"));
        assert!(matches!(cut, Err(Error::Malformed { .. })), "{cut:?}");
        let http =
            exchanged("http", |mut stream| stream.write_all(b"HTTP/1.0 400 Bad").expect("text"));
        assert!(matches!(http, Err(Error::Malformed { .. })), "{http:?}");
    }
}
