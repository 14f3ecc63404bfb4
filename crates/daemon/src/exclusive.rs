//! One daemon at a time for one control socket: the lock that the daemon holds for its whole life.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use bindonce_sys::exchange::connect;
use bindonce_sys::lock::LockFile;
use bindonce_wire::message::{Id, encode_request};

/// How long a daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// How long a daemon that does not answer may still hold the lock.
const ENDING: Duration = Duration::from_secs(3);

/// Takes the lock at `lock`. None if a daemon answers on `socket`, or if a daemon that does not
/// answer keeps the lock for 3 s.
///
/// # Errors
/// Errors from opening and locking the file, and from starting a thread.
pub fn lock(lock: &Path, socket: &Path) -> io::Result<Option<LockFile>> {
    LockFile::acquire(lock, ENDING, || ask(socket).is_ok_and(|count| count != 0))
}

/// Pings the daemon on `socket`. Returns 0 if it hangs up without an answer; an error is an answer
/// too.
fn ask(socket: &Path) -> io::Result<usize> {
    let mut stream = connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(&encode_request(&Id::Null, "ping", &[(); 0])?)?;
    stream.read(&mut [0])
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::testing::Directory;

    #[test]
    fn one_whose_queue_is_full_does_not_answer_and_keeps_nobody() {
        let directory = Directory::new("exclusive");
        let socket = directory.0.join("control.sock");
        let listener = UnixListener::bind(&socket).expect("bind");
        rustix::net::listen(&listener, 0).expect("a short queue");
        let waiting: Vec<_> = std::iter::from_fn(|| connect(&socket).ok()).take(100).collect();
        assert!(waiting.len() < 100, "its queue is full");
        let (sender, asked) = mpsc::channel();
        let ask_it = move || sender.send(ask(&socket).map_err(|error| error.kind()));
        let asking = thread::spawn(ask_it);
        let answer = asked.recv_timeout(Duration::from_secs(60)).expect("it waits for nobody");
        assert_eq!(answer, Err(io::ErrorKind::WouldBlock));
        asking.join().expect("it ends").expect("heard");
    }
}
