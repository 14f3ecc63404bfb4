//! The watchdog: a process of its own that ends a handover whose supervisor has died.
//!
//! While a new generation starts next to an older one, or is stopped and the older
//! ones are paused, the death of the supervisor would leave two configurations
//! accepting, or nobody. So the supervisor tells this process about every handover, over
//! a socket that ends with the supervisor, and what is to be done then:
//!
//! - a generation that was only starting is ended: the older one serves on;
//! - one that had taken over is continued and the older ones are told to stop.
//!
//! The same is done when a pause lasts longer than the supervisor said it might.
//! Processes are named by pid and start time, so that nobody else's is ever signalled.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bindonce_sys::process::{self, Pidfd};
use bindonce_sys::signals::Signal;
use bindonce_sys::tree;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Error;

/// The hidden subcommand that calls [`run`].
pub const SUBCOMMAND: &str = "__watchdog";

/// How long the supervisor waits for the watchdog to take a message.
const PATIENCE: Duration = Duration::from_secs(1);

/// A process, as the supervisor and the watchdog name it to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Named {
    pid: i32,
    start_time: u64,
}

/// What is to be done if the supervisor dies now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Duty {
    /// Nothing.
    None,
    /// End a generation that was starting.
    End(Named),
    /// Continue the new one and tell the older ones to stop; also after this time.
    Finish { within: Duration, retire: Signal, newer: Named, older: Vec<Named> },
}

impl Named {
    /// Names the process that has this pid now.
    pub(super) fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, start_time: process::start_time(pid)? })
    }

    fn signal(self, signal: Signal) {
        // The descriptor is opened first: what it names cannot change under the comparison.
        let Ok(pidfd) = Pidfd::open(self.pid) else { return };
        if process::start_time(self.pid) == Some(self.start_time) {
            // It can only have ended meanwhile.
            let _ = pidfd.send(signal);
        }
    }

    /// The same to all that has come from it.
    fn signal_tree(self, signal: Signal) {
        if process::start_time(self.pid) == Some(self.start_time) {
            tree::signal_all(self.pid, signal);
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (pid, start_time) = text.split_once(':')?;
        Some(Self { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? })
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.pid, self.start_time)
    }
}

impl Duty {
    /// One line of the socket.
    fn write(&self) -> String {
        match self {
            Self::None => "none\n".to_owned(),
            Self::End(newer) => format!("end {newer}\n"),
            Self::Finish { within, retire, newer, older } => {
                let older: String = older.iter().map(|older| format!(" {older}")).collect();
                format!("finish {} {retire} {newer}{older}\n", within.as_millis())
            }
        }
    }

    fn read(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        match words.next()? {
            "none" => Some(Self::None),
            "end" => Some(Self::End(Named::read(words.next()?)?)),
            "finish" => Some(Self::Finish {
                within: Duration::from_millis(words.next()?.parse().ok()?),
                retire: words.next()?.parse().ok()?,
                newer: Named::read(words.next()?)?,
                older: words.map(Named::read).collect::<Option<_>>()?,
            }),
            _ => None,
        }
    }

    fn perform(self) {
        match self {
            Self::None => {}
            Self::End(newer) => {
                eprintln!("bindonce: the supervisor is gone: ending {newer}, which was starting");
                newer.signal_tree(Signal::SIGKILL);
            }
            Self::Finish { retire, newer, older, .. } => {
                eprintln!("bindonce: the supervisor is gone or stuck: finishing its handover");
                newer.signal_tree(Signal::SIGCONT);
                older.iter().for_each(|older| older.signal(retire));
            }
        }
    }
}

/// The supervisor's side.
#[derive(Debug)]
pub(super) struct Watchdog {
    socket: UnixStream,
    child: Child,
}

impl Watchdog {
    /// Starts the process, in a group of its own so that a Ctrl-C does not reach it.
    pub(super) fn start() -> Result<Self, Error> {
        let failed = || Error::system("start the watchdog");
        let (socket, theirs) = UnixStream::pair().map_err(failed())?;
        socket.set_write_timeout(Some(PATIENCE)).map_err(failed())?;
        let child = Command::new("/proc/self/exe")
            .arg0("bindonce")
            .arg(SUBCOMMAND)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(failed())?;
        Ok(Self { socket, child })
    }

    /// Tells what is to be done if we die now. A watchdog that has died itself is replaced.
    pub(super) fn tell(&mut self, duty: &Duty) {
        let line = duty.write();
        if self.socket.write_all(line.as_bytes()).is_ok() {
            return;
        }
        tracing::warn!(pid = self.child.id(), "the watchdog is gone; starting another");
        match Self::start() {
            Ok(new) => {
                drop(std::mem::replace(self, new));
                // A second failure at once is no accident; the log has said enough.
                let _ = self.socket.write_all(line.as_bytes());
            }
            Err(error) => tracing::error!(%error, "handovers go on without a watchdog"),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // It ends with the socket; here it is only reaped.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

/// The watchdog's side: reads duties from standard input until it ends.
pub fn run() {
    // A supervisor's own log must not end us.
    let _ = bindonce_sys::signals::reset();
    let stdin = std::io::stdin();
    let Ok(socket) = stdin.as_fd().try_clone_to_owned() else { return };
    let mut lines = BufReader::new(UnixStream::from(socket));
    let mut duty = Duty::None;
    let mut until: Option<Instant> = None;
    let mut line = String::new();
    loop {
        if let Some(at) = until {
            let left = at.saturating_duration_since(Instant::now());
            // Rounded up: at least until then.
            let left = left.as_millis().saturating_add(1);
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut socket = [PollFd::new(lines.get_ref().as_fd(), PollFlags::POLLIN)];
            if lines.buffer().is_empty() && matches!(poll(&mut socket, left), Ok(0)) {
                std::mem::replace(&mut duty, Duty::None).perform();
                until = None;
                continue;
            }
        }
        line.clear();
        match lines.read_line(&mut line) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return duty.perform(),
        }
        // What it does not understand comes from no supervisor of this version.
        duty = Duty::read(&line).unwrap_or(Duty::None);
        until = match &duty {
            Duty::Finish { within, .. } => Some(Instant::now() + *within),
            Duty::None | Duty::End(_) => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duty_reads_back_as_it_was_written() {
        let one = Named { pid: 7, start_time: 99 };
        let two = Named { pid: 8, start_time: 100 };
        let within = Duration::from_millis(15_000);
        for duty in [
            Duty::None,
            Duty::End(one),
            Duty::Finish { within, retire: Signal::SIGUSR1, newer: two, older: vec![one] },
            Duty::Finish { within, retire: Signal::SIGQUIT, newer: two, older: vec![one, two] },
        ] {
            assert_eq!(Duty::read(&duty.write()), Some(duty));
        }
        for bad in
            ["", "finish", "finish 1", "end 7", "finish 1 SIGUSR1 7:9 x", "finish 1 7 7:9", "other"]
        {
            assert_eq!(Duty::read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_process_that_is_not_the_same_is_left_alone() {
        let me = Named::of(std::process::id().cast_signed()).expect("this process");
        // Were it not for the start time, this would end the test.
        Named { start_time: me.start_time + 1, ..me }.signal(Signal::SIGKILL);
    }
}
