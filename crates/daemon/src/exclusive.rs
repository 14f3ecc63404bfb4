//! One daemon at a time for one control socket: the lock that it has for its whole life.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bindonce_sys::lock::LockFile;
use bindonce_wire::message::{Id, encode_request};

/// How long a daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// How long one that does not answer may still have the lock.
const ENDING: Duration = Duration::from_secs(3);

/// Takes the lock at `lock`; None if a daemon answers on `socket`, or one that does not answer keeps the lock for 3 s.
///
/// # Errors
/// Those of opening and locking the file.
pub fn lock(lock: &Path, socket: &Path) -> io::Result<Option<LockFile>> {
    LockFile::acquire(lock, ENDING, || ask(socket).is_ok_and(|count| count != 0))
}

/// How many bytes of an answer come first. An error is an answer too.
fn ask(socket: &Path) -> io::Result<usize> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(&encode_request(&Id::Null, "ping", &[(); 0])?)?;
    stream.read(&mut [0])
}
