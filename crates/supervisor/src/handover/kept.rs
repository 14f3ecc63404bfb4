//! Admin connections that outlive the supervisor.
//!
//! A haproxy that was told to stop accepts no connection any more, so a supervisor that is killed would leave it out of reach. The
//! [`watchdog`](super::watchdog) has copies of the connections to older generations, and gives them to the supervisor that
//! comes next. They keep haproxy alive, so it has them for [`WAIT`] at most.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use bindonce_core::generation::GenerationId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long the connections are kept for the next supervisor.
const WAIT: Duration = Duration::from_secs(10);

/// How long the next supervisor waits for the watchdog, which may have a handover to finish, and how long that waits for it to read.
const PATIENCE: Duration = Duration::from_secs(2);

/// The line that the socket comes with at which the next supervisor asks.
pub(super) const ASKED: &str = "asked\n";

/// What the line of a connection begins with.
const KEEP: &str = "keep ";

/// The name of the supervisor's own connection, beside those that are named for their level.
pub(crate) const OWN: &str = "own";

/// The connections to each generation, by their name.
pub(crate) type Connections = BTreeMap<GenerationId, BTreeMap<String, OwnedFd>>;

/// The line that this connection comes with.
pub(super) fn line(id: GenerationId, name: &str) -> String {
    format!("{KEEP}{id} {name}\n")
}

/// The socket at which the next supervisor asks, with one end of a pair to which it is answered. Of datagrams: what is asked waits
/// there until the watchdog reads it, and it is no listener from which nobody accepts.
///
/// # Errors
/// If it cannot be bound at `path`.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(UnixDatagram::bind(path)?.into()),
    }
}

/// Whether a descriptor to keep comes with this line.
pub(super) fn is_line(line: &str) -> bool {
    line == ASKED || line.starts_with(KEEP)
}

/// The connections that the watchdog of an earlier supervisor has kept.
pub(crate) fn fetch(path: &Path) -> Connections {
    let mut connections = Connections::new();
    // Nobody has kept anything.
    let Ok(answer) = ask(path) else { return connections };
    let (mut text, mut descriptors) = (Vec::new(), Vec::new());
    let mut buffer = [0; 4096];
    // What comes behind an error has no line, or no descriptor.
    while let Ok(count @ 1..) = bindonce_fd::recv(answer.as_fd(), &mut buffer, &mut descriptors) {
        text.extend_from_slice(&buffer[..count]);
    }
    for (line, connection) in String::from_utf8_lossy(&text).lines().zip(descriptors) {
        if let Some((id, name)) = line.strip_prefix(KEEP).and_then(|line| line.split_once(' '))
            && let Ok(id) = id.parse()
        {
            let of_generation = connections.entry(GenerationId(id)).or_default();
            of_generation.insert(name.to_owned(), connection);
        }
    }
    connections
}

/// Asks for them: where they come.
fn ask(path: &Path) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(PATIENCE))?;
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    bindonce_fd::send(&socket, b"\n", &[theirs.as_fd()])?;
    Ok(ours)
}

/// What the watchdog keeps.
#[derive(Default)]
pub(super) struct Kept {
    asked: Option<UnixDatagram>,
    /// By their lines.
    connections: BTreeMap<String, OwnedFd>,
}

impl Kept {
    /// Takes what has come with one of its lines; nothing, where it was lost on the way.
    pub(super) fn take(&mut self, line: String, descriptor: Option<OwnedFd>) {
        let Some(descriptor) = descriptor else { return };
        if line == ASKED {
            self.asked = Some(descriptor.into());
        } else {
            self.wait(PollTimeout::ZERO);
            self.connections.insert(line, descriptor);
        }
    }

    /// The supervisor is gone: gives all to the next one that asks.
    pub(super) fn leave(mut self) {
        let until = Instant::now() + WAIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.connections.is_empty() || left.is_zero() {
                return;
            }
            if self.wait(PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                break;
            }
        }
        let (mut byte, mut descriptors) = ([0], Vec::new());
        let asked = self.asked.as_ref().map(|asked| asked.as_fd());
        let came = asked.map(|asked| bindonce_fd::recv(asked, &mut byte, &mut descriptors));
        let (Some(Ok(_)), Some(next)) = (came, descriptors.pop()) else { return };
        let next = UnixStream::from(next);
        let _ = next.set_write_timeout(Some(PATIENCE));
        for (line, connection) in self.connections {
            // In one piece: the socket takes so little whenever it takes anything.
            if bindonce_fd::send(&next, line.as_bytes(), &[connection.as_fd()]).is_err() {
                return;
            }
        }
    }

    /// Waits until the next supervisor asks (true), a connection ends, or the limit has passed. Connections that have ended are
    /// forgotten.
    fn wait(&mut self, limit: PollTimeout) -> bool {
        let asked = self.asked.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        // An end is shown without being asked for.
        let ends = self.connections.values().map(|fd| PollFd::new(fd.as_fd(), PollFlags::empty()));
        let mut polled: Vec<PollFd<'_>> = ends.chain(asked).collect();
        let happened = poll(&mut polled, limit).is_ok_and(|count| count > 0);
        let shown = |polled: &PollFd<'_>| happened && polled.any() != Some(false);
        let mut ended: Vec<bool> = polled.iter().map(shown).collect();
        let asked = ended.drain(self.connections.len()..).any(|asked| asked);
        let mut ended = ended.into_iter();
        self.connections.retain(|_, _| ended.next() != Some(true));
        asked
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn the_next_supervisor_gets_what_has_not_ended() {
        let path = std::env::temp_dir().join(format!("bindonce-kept-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        assert!(fetch(&path).is_empty(), "nobody has kept anything");
        let mut kept = Kept::default();
        kept.take(ASKED.to_owned(), Some(open(&path).expect("a socket")));
        let mut pairs = Vec::new();
        for (id, name) in [(3, OWN), (3, "user"), (4, OWN)] {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            let line = line(GenerationId(id), name);
            assert!(is_line(&line));
            kept.take(line, Some(ours.into()));
            pairs.push(theirs);
        }
        // That haproxy has ended.
        pairs.pop();
        let watchdog = std::thread::spawn(|| kept.leave());
        let mut fetched = fetch(&path);
        std::fs::remove_file(&path).expect("the socket");
        watchdog.join().expect("it ends");
        assert_eq!(fetched.keys().collect::<Vec<_>>(), [&GenerationId(3)]);
        let user = fetched.get_mut(&GenerationId(3)).and_then(|all| all.remove("user"));
        UnixStream::from(user.expect("it is there")).write_all(b"hi").expect("it is open");
        let mut said = [0; 2];
        pairs[1].read_exact(&mut said).expect("an answer");
        assert_eq!(&said, b"hi");
    }
}
