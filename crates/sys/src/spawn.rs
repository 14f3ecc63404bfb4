//! Starts a program with descriptors under fixed numbers, without running any code between fork and
//! exec.
//!
//! A supervisor has threads and blocked signals, and between fork and exec almost nothing is safe
//! to do. So it starts its own binary again, as the *shim* (`bindonce __shim COUNT [PID] [binds |
//! (intercept | intercept-if-possible) [unlinks]] [service] -- PROGRAM [ARG]...`), and sends the
//! descriptors over a socket that is the shim's standard input. The shim is a fresh process with
//! one thread: it receives the descriptors, resets its signals, puts the descriptors in place, and
//! becomes the program. The pid never changes.
//!
//! On the socket: the name of each descriptor's variable, each ended by a NUL, together with up to
//! 253 descriptors; then the remaining descriptors, 253 at a time, each batch with one more NUL.
//! COUNT tells the shim when it has everything. With a PID or `binds` the shim sends one descriptor
//! back with one NUL, if it can: the descriptor holds the program at its readiness signal
//! ([`crate::hold`]), and serves to answer its bind(2). With `intercept` the shim sends back the
//! descriptor for answering bind(2) and listen(2), or fails.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::Error;
use crate::patience::Patience;
use crate::process::Pidfd;
use crate::shim::Intercepted;
use crate::tether::Tether;
use crate::{shim, worker};

/// The hidden subcommand that [`Launch::start`] calls. It must carry out the [`crate::shim::Order`]
/// in the words after it.
pub const SUBCOMMAND: &str = "__shim";

/// How long the shim may take to receive its descriptors; it needs about a millisecond.
const HANDOVER: Duration = Duration::from_secs(10);

/// An empty socket takes a message of this many bytes whole, however small its buffer is
/// (socket(7), SO_SNDBUF).
const SMALL: usize = 2048;

/// A program to start.
#[derive(Debug)]
pub struct Launch {
    /// The program, looked up in `PATH` if it has no slash.
    pub program: OsString,
    /// Its arguments, without the program itself.
    pub args: Vec<OsString>,
    /// Variables added to this process's environment.
    pub env: Vec<(OsString, OsString)>,
    /// Variables of this process's environment that the program must not inherit.
    pub env_remove: Vec<OsString>,
    /// The working directory; None is the directory of this process.
    pub cwd: Option<PathBuf>,
    /// Descriptors, numbered from 3 in this order, each with the variable that tells the program
    /// its number; an empty name sets no variable. The caller can share descriptors without copying
    /// them.
    pub descriptors: Vec<(String, Arc<OwnedFd>)>,
    /// The calls that wait for an answer of this process.
    pub calls: Intercepted,
    /// Kill the program when this process ends, for whatever reason, and with it everything that it
    /// has started and left in its process group.
    pub tied: bool,
    /// Start it as a service manager does (systemd.exec(5)): as the leader of a session of its own,
    /// with SIGPIPE ignored, since the reader of its standard error may end first; and with
    /// LISTEN_PID and LISTEN_PIDFDID set to its own, if LISTEN_FDS is among the variables
    /// (sd_listen_fds(3)).
    pub service: bool,
    /// Its standard output.
    pub stdout: Stdio,
    /// Its standard error. A shim that fails reports why here, in one line.
    pub stderr: Stdio,
}

/// A started program. It is a child of this process, and stays a zombie until [`Pidfd::try_wait`]
/// has returned its exit status.
#[derive(Debug)]
pub struct Started {
    /// Its process id.
    pub pid: i32,
    /// The process itself; readable once it has ended.
    pub pidfd: Pidfd,
    /// Our end of the socket to the shim, for [`receive_hold`]; None if [`Launch::calls`] names no
    /// call.
    pub shim: Option<OwnedFd>,
    /// The tether that kills the program with this process, if [`Launch::tied`] was set. Release it
    /// when the process group has ended.
    pub tether: Option<Tether>,
    /// The reading end of its standard output, if `stdout` was [`Stdio::piped`].
    pub stdout: Option<OwnedFd>,
    /// The reading end of its standard error, if `stderr` was [`Stdio::piped`].
    pub stderr: Option<OwnedFd>,
}

impl Launch {
    /// A program without arguments and descriptors; its output goes where ours goes.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            env_remove: Vec::new(),
            cwd: None,
            descriptors: Vec::new(),
            calls: Intercepted::NONE,
            tied: false,
            service: false,
            stdout: Stdio::inherit(),
            stderr: Stdio::inherit(),
        }
    }

    /// Starts the program in a process group (or session) of its own, so that a Ctrl-C at the
    /// terminal reaches the supervisor alone; with /dev/null as standard input, and with no signal
    /// blocked or ignored. Our copies of the descriptors are closed.
    ///
    /// A program that cannot be executed is not an error here: the shim reports it on standard
    /// error and exits with 127.
    ///
    /// # Errors
    /// [`Error::Call`] if no process could be created, or if it did not take its descriptors within
    /// ten seconds. No process is left then.
    pub fn start(self) -> Result<Started, Error> {
        self.begin()?.give()?.started()
    }

    /// As [`start`](Self::start), on other threads, for a caller that must not block: executing the
    /// binary may be slow, and so may the shim. Calls `tell` with the pid before the shim gets its
    /// descriptors: if this process ends before `tell` returns, the shim ends too and never becomes
    /// the program.
    ///
    /// If the caller stops waiting, no process is left.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_aside(self, tell: impl FnOnce(i32)) -> Result<Started, Error> {
        let begun = worker::start_within(HANDOVER, move || self.begin())
            .await
            .map_err(|error| late(&error))??;
        tell(begun.pid());
        if begun.is_small() {
            return begun.give()?.started();
        }
        worker::start_within(HANDOVER, move || begun.give())
            .await
            .map_err(|error| late(&error))??
            .started()
    }

    /// Starts the shim.
    fn begin(self) -> Result<Begun, Error> {
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| Error::call("socketpair", error))?;
        ours.set_nonblocking(true).map_err(|error| Error::call("ioctl(FIONBIO)", error))?;

        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("bindonce")
            .arg(SUBCOMMAND)
            .arg(self.descriptors.len().to_string())
            .args(self.calls.words())
            .args(self.service.then_some(shim::SERVICE))
            .arg("--")
            .arg(self.program)
            .args(self.args)
            .stdin(OwnedFd::from(theirs))
            .stdout(self.stdout)
            .stderr(self.stderr);
        if !self.service {
            command.process_group(0);
        }
        for name in &self.env_remove {
            command.env_remove(name);
        }
        command.envs(self.env);
        if let Some(cwd) = self.cwd {
            command.current_dir(cwd);
        }
        let tether = |error| Error::call("start the tether", error);
        let mut tied = self.tied.then(Tether::new).transpose().map_err(tether)?;
        let child = command.spawn().map_err(|error| Error::call("start the shim", error))?;
        let child = Unfinished(Some(child));
        if let (Some(tied), Some(child)) = (&mut tied, &child.0) {
            tied.tie(child.id()).map_err(tether)?;
        }
        // Dropping the command closes our copy of the shim's end: only then can we see the shim's
        // death.
        Ok(Begun {
            child,
            tether: tied,
            ours,
            descriptors: self.descriptors,
            holds: self.calls.any(),
        })
    }
}

/// A shim that waits for its descriptors.
struct Begun {
    child: Unfinished,
    tether: Option<Tether>,
    ours: UnixStream,
    descriptors: Vec<(String, Arc<OwnedFd>)>,
    holds: bool,
}

impl Begun {
    fn pid(&self) -> i32 {
        self.child.0.as_ref().map_or(0, Child::id).cast_signed()
    }

    /// Whether the descriptors fit into one message, which an empty socket takes at once.
    fn is_small(&self) -> bool {
        let names = self.descriptors.iter().map(|(name, _)| name.len() + 1);
        self.descriptors.len() <= bindonce_fd::MAX_FDS && names.sum::<usize>() <= SMALL
    }

    /// Sends the descriptors to the shim.
    fn give(self) -> Result<Self, Error> {
        match hand_over(&self.ours, &self.descriptors, Patience::new(HANDOVER)) {
            // A shim that is gone has reported why, and its exit code tells the rest.
            Ok(()) | Err(Error::Call { errno: Errno::EPIPE | Errno::ECONNRESET, .. }) => Ok(self),
            Err(error) => Err(error),
        }
    }

    fn started(mut self) -> Result<Started, Error> {
        let pidfd = Pidfd::open(self.pid()).map_err(|error| Error::call("pidfd_open", error))?;
        let child = self.child.0.take();
        let (stdout, stderr) = child.map_or((None, None), |child| (child.stdout, child.stderr));
        Ok(Started {
            pid: pidfd.pid(),
            pidfd,
            shim: self.holds.then(|| self.ours.into()),
            tether: self.tether,
            stdout: stdout.map(OwnedFd::from),
            stderr: stderr.map(OwnedFd::from),
        })
    }
}

/// A child that is killed on drop, unless it is taken.
struct Unfinished(Option<Child>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        // A failure means that the child is gone already.
        let _ = child.kill();
        // A child stalled in exec ends when the exec returns.
        if matches!(child.try_wait(), Ok(None)) {
            let _ = worker::start("reap", move || drop(child.wait()));
        }
    }
}

fn late(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut => {
            Error::Call { operation: "start the shim", errno: Errno::ETIMEDOUT }
        }
        _ => Error::NoThread { why: error.to_string() },
    }
}

/// The descriptor for [`crate::intercept::Intercept::new`], of a program that was started with
/// [`Intercepted::hold`], [`Intercepted::binds`] or [`Intercepted::intercept`]. None if the kernel,
/// or the filter of a container, did not let the shim have it. Waits no longer than the shim lives,
/// a few milliseconds.
pub async fn receive_hold(shim: OwnedFd) -> Option<OwnedFd> {
    let watch = crate::watch::Watch::new(&shim).ok()?;
    let mut fds = Vec::new();
    loop {
        match bindonce_fd::recv(shim.as_fd(), &mut [0], &mut fds).map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                watch.readable().await.ok()?;
            }
            _ => return fds.pop(),
        }
    }
}

fn hand_over(
    socket: &UnixStream,
    descriptors: &[(String, Arc<OwnedFd>)],
    mut patience: Patience,
) -> Result<(), Error> {
    let mut text = Vec::new();
    for (name, _) in descriptors {
        text.extend_from_slice(name.as_bytes());
        text.push(0);
    }
    for batch in descriptors.chunks(bindonce_fd::MAX_FDS) {
        let fds: Vec<_> = batch.iter().map(|(_, fd)| fd.as_fd()).collect();
        let mut sent = send_some(socket, &text, &fds, &mut patience)?;
        while sent < text.len() {
            let rest = text.get(sent..).unwrap_or_default();
            sent += send_some(socket, rest, &[], &mut patience)?;
        }
        // The byte that carries the next batch.
        text = vec![0];
    }
    Ok(())
}

fn send_some(
    socket: &UnixStream,
    bytes: &[u8],
    fds: &[std::os::fd::BorrowedFd<'_>],
    patience: &mut Patience,
) -> Result<usize, Error> {
    loop {
        match bindonce_fd::send(socket, bytes, fds) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            done => return done.map_err(|error| Error::call("sendmsg to the shim", error)),
        }
        let Some(wait) = patience.next_wait(Instant::now()) else {
            return Err(Error::call("sendmsg to the shim", Errno::ETIMEDOUT));
        };
        let wait = Timespec::try_from(wait).map_err(|_| Error::call("poll", Errno::EINVAL))?;
        match poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::call("poll", error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::stopped_within;

    #[test]
    fn a_shim_has_its_time_although_this_process_was_stopped() {
        let (ours, _shim) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("non-blocking");
        while bindonce_fd::send(&ours, &[0; 4096], &[]).is_ok() {}
        let own = Arc::new(OwnedFd::from(ours.try_clone().expect("a copy")));
        let (limit, begun) = (Duration::from_millis(300), Instant::now());
        let late = hand_over(&ours, &[(String::new(), own)], stopped_within(limit));
        assert!(matches!(late, Err(Error::Call { errno: Errno::ETIMEDOUT, .. })), "{late:?}");
        assert!(begun.elapsed() >= limit * 4 / 5, "{:?}", begun.elapsed());
    }
}
