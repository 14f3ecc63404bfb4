//! Descriptors that outlive the supervisor. The [`watchdog`](super::watchdog) has copies and gives
//! them to the next supervisor:
//!
//! - Admin connections to older generations. A haproxy that was told to stop accepts no new ones,
//!   so a killed supervisor would leave it out of reach. They keep haproxy alive, so the watchdog
//!   holds them for [`WAIT`] at most.
//! - The descriptors for intercepted calls (seccomp_unotify(2)). A filter cannot be removed, so the
//!   watchdog holds these as long as a process has the filter. A program's calls wait for the next
//!   supervisor, for [`WAIT`] at most; after that bind(2) fails until it arrives. haproxy's calls
//!   are left to the kernel at once.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use bindonce_core::generation::GenerationId;
use bindonce_core::patience::Patience;
use bindonce_sys::intercept::{Left, Unattended};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long the connections are kept for the next supervisor, and how long a program's call waits
/// for it.
const WAIT: Duration = Duration::from_secs(10);

/// How long the next supervisor waits for the watchdog, which may have a handover to finish, and
/// how long the watchdog waits for it to read.
const PATIENCE: Duration = Duration::from_secs(2);

/// Poll results that show that the other end of a descriptor is gone.
const ENDED: PollFlags = PollFlags::POLLHUP.union(PollFlags::POLLERR).union(PollFlags::POLLNVAL);

/// The line that carries the socket at which the next supervisor asks.
pub(super) const ASKED: &str = "asked\n";

/// The line after the last descriptor.
const END: &str = "end\n";

/// The next supervisor's answer when it has given all descriptors to its own watchdog.
const TAKEN: &[u8] = b"\n";

/// Prefix of a line that carries a connection.
const KEEP: &str = "keep ";

/// Prefixes of lines that carry a program's calls, and haproxy's calls.
const CALLS: [(&str, Unattended); 2] =
    [("calls ", Unattended::Fail), ("haproxy's calls ", Unattended::GoOn)];

/// Prefix of a line that says that a generation's calls need not be kept any more.
const FORGET: &str = "forget ";

/// The name of the supervisor's own connection. Other connections are named for their level.
pub(crate) const OWN: &str = "own";

/// The connections to each generation, by name.
pub(crate) type Connections = BTreeMap<GenerationId, BTreeMap<String, OwnedFd>>;

/// The descriptors kept by an earlier supervisor's watchdog.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub(crate) connections: Connections,
    /// The two parts of a [`Left`] for each generation.
    pub(crate) calls: BTreeMap<GenerationId, [OwnedFd; 2]>,
    /// The connection to that watchdog, which keeps the descriptors until [`Stored::are_taken`]
    /// answers it.
    keeper: Option<UnixStream>,
}

impl Stored {
    /// Tells the earlier watchdog that another watchdog has all descriptors.
    pub(super) fn are_taken(&self) {
        if let Some(mut keeper) = self.keeper.as_ref() {
            // A failure means that the watchdog has ended.
            let _ = keeper.write_all(TAKEN);
        }
    }
}

/// The line for a connection of this name.
pub(super) fn line(id: GenerationId, name: &str) -> String {
    format!("{KEEP}{id} {name}\n")
}

/// The line for the calls of this generation.
pub(super) fn calls_line(id: GenerationId, how: Unattended) -> String {
    let begins = CALLS.iter().find(|(_, of)| *of == how).map_or("", |(begins, _)| begins);
    format!("{begins}{id}\n")
}

/// The line that ends the keeping of a generation's calls.
pub(super) fn forget_line(id: GenerationId) -> String {
    format!("{FORGET}{id}\n")
}

/// The generation whose calls this line carries, and how to answer them.
fn calls_of(line: &str) -> Option<(GenerationId, Unattended)> {
    CALLS.iter().find_map(|(begins, how)| Some((id(line.strip_prefix(begins)?)?, *how)))
}

fn id(text: &str) -> Option<GenerationId> {
    text.trim_end().parse().ok().map(GenerationId)
}

/// The socket at which the next supervisor asks, sending one end of a pair for the answer. A
/// datagram socket: a question waits there until the watchdog reads it, and no listener exists from
/// which no process accepts.
///
/// # Errors
/// If it cannot be bound at `path`.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(UnixDatagram::bind(path)?.into()),
    }
}

/// Whether a line concerns the descriptor store.
pub(super) fn is_line(line: &str) -> bool {
    line == ASKED
        || [KEEP, FORGET].iter().any(|begins| line.starts_with(begins))
        || calls_of(line).is_some()
}

/// Fetches the descriptors that the watchdog of an earlier supervisor kept.
pub(crate) fn fetch(path: &Path) -> Stored {
    let mut found = Stored::default();
    // No watchdog kept anything.
    let Ok(answer) = ask(path) else { return found };
    let (mut text, mut descriptors) = (Vec::new(), Vec::new());
    let mut buffer = [0; 4096];
    // Lines or descriptors after an error are incomplete.
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

/// Sends the question. Returns the connection for the answer.
fn ask(path: &Path) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(PATIENCE))?;
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    bindonce_fd::send(&socket, b"\n", &[theirs.as_fd()])?;
    Ok(ours)
}

/// The descriptors that the watchdog keeps.
#[derive(Default)]
pub(super) struct DescriptorStore {
    questions: Option<UnixDatagram>,
    /// Connections by their lines.
    connections: BTreeMap<String, OwnedFd>,
    calls: BTreeMap<GenerationId, (Unattended, Left)>,
}

impl DescriptorStore {
    /// Takes the descriptors of a line; none if they were lost on the way.
    pub(super) fn take(&mut self, line: String, mut descriptor: impl FnMut() -> Option<OwnedFd>) {
        if let Some(id) = line.strip_prefix(FORGET).and_then(id) {
            self.calls.remove(&id);
            return;
        }
        let Some(first) = descriptor() else { return };
        if line == ASKED {
            self.questions = Some(first.into());
            return;
        }
        self.wait(PollTimeout::ZERO, |_| false, None);
        match calls_of(&line) {
            Some((id, how)) => {
                // Without both descriptors the waiting calls are unknown: they fail as if there
                // were no watchdog.
                let left = descriptor().and_then(|second| Left::new([first, second]).ok());
                self.calls.extend(left.map(|left| (id, (how, left))));
            }
            None => drop(self.connections.insert(line, first)),
        }
    }

    /// Lets haproxy's calls go on that a stuck supervisor has received.
    pub(super) fn go_on(&self) {
        for (how, left) in self.calls.values().filter(|(how, _)| *how == Unattended::GoOn) {
            left.answer_received(*how);
        }
    }

    /// The supervisor is gone. Gives everything to the next one that asks, and answers calls until
    /// that one has it.
    pub(super) fn leave(mut self) {
        let mut patience = Patience::new(WAIT);
        let mut next: Option<UnixStream> = None;
        loop {
            let wait = patience.next_wait(Instant::now());
            let is_late = wait.is_none();
            if is_late && next.is_none() {
                self.connections.clear();
            }
            // The next supervisor answers a program's calls as soon as it exists.
            let fails = is_late && next.is_none();
            let is_answered = |how| fails || how == Unattended::GoOn;
            // A call that cannot be answered fails.
            self.calls.retain(|_, (how, left)| !is_answered(*how) || left.answer(*how).is_ok());
            if self.connections.is_empty() && self.calls.is_empty() {
                return;
            }
            let limit = wait.map_or(PollTimeout::NONE, |wait| {
                PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
            });
            match self.wait(limit, is_answered, next.as_ref()) {
                Some(Sign::Asked) => next = self.give(),
                Some(Sign::Answered) => {
                    let mut answer = [0; TAKEN.len()];
                    let read = next.take().map(|mut next| next.read_exact(&mut answer));
                    if matches!(read, Some(Ok(()))) {
                        return;
                    }
                    // The next supervisor ended before its watchdog had everything.
                }
                None => {}
            }
        }
    }

    /// Gives the next supervisor, which has asked, copies of everything.
    fn give(&self) -> Option<UnixStream> {
        let (mut byte, mut descriptors) = ([0], Vec::new());
        let questions = self.questions.as_ref()?.as_fd();
        bindonce_fd::recv(questions, &mut byte, &mut descriptors).ok()?;
        let next = UnixStream::from(descriptors.pop()?);
        next.set_write_timeout(Some(PATIENCE)).ok()?;
        // Each line goes in one piece: a socket with any room takes a message this small.
        for (id, (how, left)) in &self.calls {
            let line = calls_line(*id, *how);
            bindonce_fd::send(&next, line.as_bytes(), &left.copies()).ok()?;
        }
        for (line, connection) in &self.connections {
            bindonce_fd::send(&next, line.as_bytes(), &[connection.as_fd()]).ok()?;
        }
        // The next supervisor may have died: write(2) would then raise SIGPIPE.
        bindonce_fd::send(&next, END.as_bytes(), &[]).ok()?;
        Some(next)
    }

    /// Waits until the next supervisor gives a sign, a connection or a program ends, a call arrives
    /// that `is_answered`, or the limit passes. Ended descriptors are forgotten.
    fn wait(
        &mut self,
        limit: PollTimeout,
        is_answered: impl Fn(Unattended) -> bool,
        next: Option<&UnixStream>,
    ) -> Option<Sign> {
        let read = |fd| PollFd::new(fd, PollFlags::POLLIN);
        // poll(2) reports the end without being asked.
        let ends = |fd| PollFd::new(fd, PollFlags::empty());
        let calls = self.calls.values().map(|(how, left)| {
            let [listener, _] = left.copies();
            if is_answered(*how) { read(listener) } else { ends(listener) }
        });
        let connections = self.connections.values().map(|fd| ends(fd.as_fd()));
        let questions = self.questions.iter().map(|socket| read(socket.as_fd()));
        let next = next.into_iter().map(|next| read(next.as_fd()));
        let mut polled: Vec<PollFd<'_>> =
            calls.chain(connections).chain(questions).chain(next).collect();
        if !poll(&mut polled, limit).is_ok_and(|count| count > 0) {
            return None;
        }
        // An unknown flag counts as an end.
        let shown = polled.iter().map(|polled| polled.revents().unwrap_or(PollFlags::POLLERR));
        let shown: Vec<PollFlags> = shown.collect();
        let mut shown = shown.into_iter();
        let mut goes_on = || !shown.next().is_some_and(|shown| shown.intersects(ENDED));
        self.calls.retain(|_, _| goes_on());
        self.connections.retain(|_, _| goes_on());
        let asked = self.questions.as_ref().and_then(|_| shown.next());
        let sign = |shown: Option<PollFlags>| shown.is_some_and(|shown| !shown.is_empty());
        if sign(asked) {
            return Some(Sign::Asked);
        }
        sign(shown.next()).then_some(Sign::Answered)
    }
}

/// A sign from the next supervisor.
enum Sign {
    /// It asks for the descriptors.
    Asked,
    /// It has all of them, or has ended.
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
