//! Descriptors that outlive the supervisor. The [`watchdog`](super::watchdog) has copies, and gives them to the supervisor that comes next:
//!
//! - Admin connections to older generations: a haproxy that was told to stop accepts no other, and a supervisor that is killed would leave it
//!   out of reach. They keep haproxy alive, so it has them for [`WAIT`] at most.
//! - Where the calls of generations come from that are asked about (seccomp_unotify(2)): a filter cannot be taken off, so this has them for
//!   as long as a process has the filter. A program's calls wait for the next supervisor, for [`WAIT`] at most; from then on a bind(2) fails,
//!   until that comes. haproxy's are left to the kernel at once.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use bindonce_core::generation::GenerationId;
use bindonce_sys::intercept::{Left, Unattended};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long the connections are kept for the next supervisor, and a call of a program waits for it.
const WAIT: Duration = Duration::from_secs(10);

/// How long the next supervisor waits for the watchdog, which may have a handover to finish, and how long that waits for it to read.
const PATIENCE: Duration = Duration::from_secs(2);

/// By what the kernel shows that the other end of a descriptor is gone.
const ENDED: PollFlags = PollFlags::POLLHUP.union(PollFlags::POLLERR).union(PollFlags::POLLNVAL);

/// The line that the socket comes with at which the next supervisor asks.
pub(super) const ASKED: &str = "asked\n";

/// The line behind all that is given.
const END: &str = "end\n";

/// What the next supervisor answers when it has given all of it to a watchdog of its own.
const TAKEN: &[u8] = b"\n";

/// What the line of a connection begins with.
const KEEP: &str = "keep ";

/// What the line of the calls of a program begins with, and of those of a haproxy.
const CALLS: [(&str, Unattended); 2] =
    [("calls ", Unattended::Fail), ("haproxy's calls ", Unattended::GoOn)];

/// What the line begins with that says that these are no more to be kept.
const FORGET: &str = "forget ";

/// The name of the supervisor's own connection, beside those that are named for their level.
pub(crate) const OWN: &str = "own";

/// The connections to each generation, by their name.
pub(crate) type Connections = BTreeMap<GenerationId, BTreeMap<String, OwnedFd>>;

/// What the watchdog of an earlier supervisor has kept.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub(crate) connections: Connections,
    /// What [`Left`] is made of, of each generation.
    pub(crate) calls: BTreeMap<GenerationId, [OwnedFd; 2]>,
    /// Who has kept it, and does so until it learns that it need not.
    keeper: Option<UnixStream>,
}

impl Stored {
    /// All of it is in the hands of another watchdog: its keeper is not needed any more.
    pub(super) fn are_taken(&self) {
        if let Some(mut keeper) = self.keeper.as_ref() {
            // It can only have ended.
            let _ = keeper.write_all(TAKEN);
        }
    }
}

/// The line that this connection comes with.
pub(super) fn line(id: GenerationId, name: &str) -> String {
    format!("{KEEP}{id} {name}\n")
}

/// The line that what the calls of this generation come from comes with.
pub(super) fn calls_line(id: GenerationId, how: Unattended) -> String {
    let begins = CALLS.iter().find(|(_, of)| *of == how).map_or("", |(begins, _)| begins);
    format!("{begins}{id}\n")
}

/// The line that ends that.
pub(super) fn forget_line(id: GenerationId) -> String {
    format!("{FORGET}{id}\n")
}

/// Whose calls come with this line, and what becomes of them.
fn calls_of(line: &str) -> Option<(GenerationId, Unattended)> {
    CALLS.iter().find_map(|(begins, how)| Some((id(line.strip_prefix(begins)?)?, *how)))
}

fn id(text: &str) -> Option<GenerationId> {
    text.trim_end().parse().ok().map(GenerationId)
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

/// Whether this line is about what is kept.
pub(super) fn is_line(line: &str) -> bool {
    line == ASKED
        || [KEEP, FORGET].iter().any(|begins| line.starts_with(begins))
        || calls_of(line).is_some()
}

/// What the watchdog of an earlier supervisor has kept.
pub(crate) fn fetch(path: &Path) -> Stored {
    let mut found = Stored::default();
    // Nobody has kept anything.
    let Ok(answer) = ask(path) else { return found };
    let (mut text, mut descriptors) = (Vec::new(), Vec::new());
    let mut buffer = [0; 4096];
    // What comes behind an error has no line, or no descriptor.
    while !text.ends_with(END.as_bytes())
        && let Ok(count @ 1..) = bindonce_fd::recv(answer.as_fd(), &mut buffer, &mut descriptors)
    {
        text.extend_from_slice(&buffer[..count]);
    }
    found.keeper = Some(answer);
    let mut descriptors = descriptors.into_iter();
    for line in String::from_utf8_lossy(&text).lines() {
        let Some(first) = descriptors.next() else { break };
        if let Some((id, _)) = calls_of(line) {
            let Some(second) = descriptors.next() else { break };
            found.calls.insert(id, [first, second]);
        } else if let Some((id, name)) =
            line.strip_prefix(KEEP).and_then(|line| line.split_once(' '))
            && let Ok(id) = id.parse()
        {
            let of_generation = found.connections.entry(GenerationId(id)).or_default();
            of_generation.insert(name.to_owned(), first);
        }
    }
    found
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
pub(super) struct DescriptorStore {
    asked: Option<UnixDatagram>,
    /// By their lines.
    connections: BTreeMap<String, OwnedFd>,
    calls: BTreeMap<GenerationId, (Unattended, Left)>,
}

impl DescriptorStore {
    /// Takes what has come with one of its lines; nothing, where it was lost on the way.
    pub(super) fn take(&mut self, line: String, mut descriptor: impl FnMut() -> Option<OwnedFd>) {
        if let Some(id) = line.strip_prefix(FORGET).and_then(id) {
            self.calls.remove(&id);
            return;
        }
        let Some(first) = descriptor() else { return };
        if line == ASKED {
            self.asked = Some(first.into());
            return;
        }
        self.wait(PollTimeout::ZERO, |_| false, None);
        match calls_of(&line) {
            Some((id, how)) => {
                // Without them it cannot be known what waits: that fails as if there were no watchdog.
                let left = descriptor().and_then(|second| Left::new([first, second]).ok());
                self.calls.extend(left.map(|left| (id, (how, left))));
            }
            None => drop(self.connections.insert(line, first)),
        }
    }

    /// The supervisor is gone: gives all to the next one that asks, and answers calls until that has taken it.
    pub(super) fn leave(mut self) {
        let until = Instant::now() + WAIT;
        let mut next: Option<UnixStream> = None;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let is_late = left.is_zero();
            if is_late && next.is_none() {
                self.connections.clear();
            }
            // What a program asks is the next one's as soon as there is one.
            let fails = is_late && next.is_none();
            let is_answered = |how| fails || how == Unattended::GoOn;
            // What cannot be answered fails.
            self.calls.retain(|_, (how, left)| !is_answered(*how) || left.answer(*how).is_ok());
            if self.connections.is_empty() && self.calls.is_empty() {
                return;
            }
            let limit = match is_late {
                true => PollTimeout::NONE,
                // Rounded up: at least until then.
                false => PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX),
            };
            match self.wait(limit, is_answered, next.as_ref()) {
                Some(Sign::Asked) => next = self.give(),
                Some(Sign::Answered) => {
                    let mut answer = [0; TAKEN.len()];
                    let read = next.take().map(|mut next| next.read_exact(&mut answer));
                    if matches!(read, Some(Ok(()))) {
                        return;
                    }
                    // It has ended before it had all in other hands.
                }
                None => {}
            }
        }
    }

    /// Gives copies of all to the next supervisor, which has asked.
    fn give(&self) -> Option<UnixStream> {
        let (mut byte, mut descriptors) = ([0], Vec::new());
        let asked = self.asked.as_ref()?.as_fd();
        bindonce_fd::recv(asked, &mut byte, &mut descriptors).ok()?;
        let next = UnixStream::from(descriptors.pop()?);
        next.set_write_timeout(Some(PATIENCE)).ok()?;
        // In one piece each: the socket takes so little whenever it takes anything.
        for (id, (how, left)) in &self.calls {
            let line = calls_line(*id, *how);
            bindonce_fd::send(&next, line.as_bytes(), &left.copies()).ok()?;
        }
        for (line, connection) in &self.connections {
            bindonce_fd::send(&next, line.as_bytes(), &[connection.as_fd()]).ok()?;
        }
        (&next).write_all(END.as_bytes()).ok()?;
        Some(next)
    }

    /// Waits until the next supervisor gives a sign, a connection or a program ends, a call comes that `is_answered`, or the limit has
    /// passed. What has ended is forgotten.
    fn wait(
        &mut self,
        limit: PollTimeout,
        is_answered: impl Fn(Unattended) -> bool,
        next: Option<&UnixStream>,
    ) -> Option<Sign> {
        let read = |fd| PollFd::new(fd, PollFlags::POLLIN);
        // An end is shown without being asked for.
        let ends = |fd| PollFd::new(fd, PollFlags::empty());
        let calls = self.calls.values().map(|(how, left)| {
            let [listener, _] = left.copies();
            if is_answered(*how) { read(listener) } else { ends(listener) }
        });
        let connections = self.connections.values().map(|fd| ends(fd.as_fd()));
        let asked = self.asked.iter().map(|socket| read(socket.as_fd()));
        let next = next.into_iter().map(|next| read(next.as_fd()));
        let mut polled: Vec<PollFd<'_>> =
            calls.chain(connections).chain(asked).chain(next).collect();
        if !poll(&mut polled, limit).is_ok_and(|count| count > 0) {
            return None;
        }
        // What the kernel shows and we do not know is an end too.
        let shown = polled.iter().map(|polled| polled.revents().unwrap_or(PollFlags::POLLERR));
        let shown: Vec<PollFlags> = shown.collect();
        let mut shown = shown.into_iter();
        let mut goes_on = || !shown.next().is_some_and(|shown| shown.intersects(ENDED));
        self.calls.retain(|_, _| goes_on());
        self.connections.retain(|_, _| goes_on());
        let asked = self.asked.as_ref().and_then(|_| shown.next());
        let sign = |shown: Option<PollFlags>| shown.is_some_and(|shown| !shown.is_empty());
        if sign(asked) {
            return Some(Sign::Asked);
        }
        sign(shown.next()).then_some(Sign::Answered)
    }
}

/// What comes from the next supervisor.
enum Sign {
    /// It asks for what is kept.
    Asked,
    /// It has all, or has ended.
    Answered,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_supervisor_gets_what_has_not_ended() {
        let path = std::env::temp_dir().join(format!("bindonce-kept-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        assert!(fetch(&path).connections.is_empty(), "nobody has kept anything");
        let mut kept = DescriptorStore::default();
        kept.take(ASKED.to_owned(), || Some(open(&path).expect("a socket")));
        let mut pairs = Vec::new();
        for (id, name) in [(3, OWN), (3, "user"), (4, OWN)] {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            let line = line(GenerationId(id), name);
            assert!(is_line(&line));
            let mut ours = Some(OwnedFd::from(ours));
            kept.take(line, || ours.take());
            pairs.push(theirs);
        }
        // That haproxy has ended.
        pairs.pop();
        let watchdog = std::thread::spawn(|| kept.leave());
        let found = fetch(&path);
        found.are_taken();
        let mut fetched = found.connections;
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
