//! The watchdog: a process of its own that ends a handover whose supervisor has died.
//!
//! While a new generation starts next to an older one, or is stopped and the older
//! ones are paused, the death of the supervisor would leave two configurations
//! accepting, or none. So the supervisor tells this process about every handover, over
//! a socket that ends with the supervisor, and what is to be done then:
//!
//! - a generation that was only starting is ended: the older one serves on, and resumes if it was
//!   paused so that the new one can bind an address;
//! - one that was taking over goes on, as soon as the older ones, which are told to stop, have
//!   closed their listeners.
//!
//! The same is done when a pause lasts longer than the supervisor said it might. A new generation
//! that is held at its readiness stays so meanwhile: this process has a copy of the hold,
//! which the death of the supervisor does not release.
//! Processes are named by pid and start time, so that no other process is ever signalled.
//! Behind all that it gives the next supervisor what it has [`kept`](super::kept) for it.

use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bindonce_core::generation::GenerationId;
use bindonce_sys::intercept::{Intercept, Unattended};
use bindonce_sys::process::{self, Pidfd};
use bindonce_sys::signals::Signal;
use bindonce_sys::{holders, log, queue, tree};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::descriptor_store::{self, DescriptorStore};
use super::watchdog_inbox::{Inbox, Next};
use crate::error::Error;

/// The hidden subcommand that calls [`run`].
pub const SUBCOMMAND: &str = "__watchdog";

/// How long the supervisor waits for the watchdog to take a message.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the supervisor waits for the end of a watchdog that it needs no more.
const ENDING: Duration = Duration::from_millis(100);

/// How long a new generation waits for older ones that were told to stop to close their listeners:
/// one that does not must not keep the service away for longer.
const CLOSING: Duration = Duration::from_millis(500);

/// How long older generations may be paused so that a new one binds an address: the supervisor ends it
/// long before, unless it is stuck.
const PAUSE: Duration = Duration::from_secs(10);

/// How often is looked whether they have.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The line that a hold comes with.
const HOLD: &str = "hold\n";

/// A process, as a supervisor names it to its watchdog and to the next supervisor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ProcessRef {
    pub(crate) pid: i32,
    /// In clock ticks since boot: a pid alone may name another process by then.
    pub(crate) start_time: u64,
}

/// What is to be done if the supervisor dies now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Duty {
    /// Nothing.
    None,
    /// End a generation that was starting, then let those resume that were paused for it; while any are,
    /// also after [`PAUSE`].
    End { newer: ProcessRef, paused: Vec<ProcessRef> },
    /// Tell the older ones to stop, and continue the new one; also after this time.
    Finish {
        within: Duration,
        /// The number of the signal.
        retire: i32,
        newer: ProcessRef,
        older: Vec<ProcessRef>,
        /// Inode numbers of what the older ones listen on.
        listeners: Vec<u64>,
    },
}

impl ProcessRef {
    /// Names the process that has this pid now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, start_time: process::start_time(pid)? })
    }

    /// Waits until it has ended, but for no longer than [`CLOSING`].
    fn wait_end(self) {
        let limit = PollTimeout::try_from(CLOSING).unwrap_or(PollTimeout::ZERO);
        if let Ok(pidfd) = Pidfd::open(self.pid)
            && process::start_time(self.pid) == Some(self.start_time)
        {
            let _ = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], limit);
        }
    }

    fn signal(self, signal: Signal) {
        // The descriptor is opened first: what it names cannot change under the comparison.
        let Ok(pidfd) = Pidfd::open(self.pid) else { return };
        if self.is_there() {
            // It can only have ended meanwhile.
            let _ = pidfd.send(signal);
        }
    }

    /// Whether it has a descriptor of one of these listeners, as far as can be seen.
    fn listens(self, listeners: &[u64]) -> bool {
        self.is_there()
            && process::family(self.pid)
                .into_iter()
                .any(|pid| holders::holds(pid, listeners).unwrap_or(false))
    }

    /// Whether it has not ended.
    pub(crate) fn is_there(self) -> bool {
        process::start_time(self.pid) == Some(self.start_time)
    }
}

impl Duty {
    /// One line of the socket.
    fn write(&self) -> String {
        // Nothing in it can fail to be written.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// Does it. What is held goes on behind this, at the earliest.
    fn perform(self) {
        match self {
            Self::None => {}
            Self::End { newer, paused } => {
                if newer.is_there() {
                    tree::kill(newer.pid);
                }
                if !paused.is_empty() {
                    // It may have an address that the older ones take back.
                    newer.wait_end();
                    paused.iter().for_each(|paused| paused.signal(Signal::SIGTTIN));
                }
                say(&format!(
                    "the supervisor is gone or stuck: ended pid {}, which was starting",
                    newer.pid
                ));
            }
            Self::Finish { retire, newer, older, listeners, .. } => {
                say("the supervisor is gone or stuck: finishing its handover");
                if let Ok(retire) = Signal::try_from(retire) {
                    older.iter().for_each(|older| older.signal(retire));
                }
                let until = Instant::now() + CLOSING;
                let open = |older: &ProcessRef| older.listens(&listeners);
                while older.iter().any(open) && Instant::now() < until {
                    // There is no event for a descriptor that another process closes.
                    std::thread::sleep(LOOK_AGAIN);
                }
                if newer.is_there() {
                    tree::signal(newer.pid, Signal::SIGCONT);
                }
            }
        }
    }
}

/// The supervisor's side. It never waits for a watchdog that does not read: that one is replaced.
#[derive(Debug)]
pub(crate) struct Watchdog {
    socket: UnixStream,
    child: Child,
    /// Where the next supervisor asks for what it keeps.
    kept: Option<OwnedFd>,
    /// The calls that it keeps, for the one that takes its place.
    calls: Vec<(GenerationId, Unattended, Weak<Intercept>)>,
    /// Since when it has not read what it was told.
    unread: Option<Instant>,
}

impl Watchdog {
    /// Starts the process, in a group of its own so that a Ctrl-C does not reach it. The next supervisor asks at the
    /// socket `kept`.
    pub(crate) fn start(kept: Option<OwnedFd>) -> Result<Self, Error> {
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
        let watchdog = Self { socket, child, kept, calls: Vec::new(), unread: None };
        if let Some(asked) = &watchdog.kept {
            watchdog.share(descriptor_store::ASKED, asked.as_fd());
        }
        Ok(watchdog)
    }

    /// Tells what is to be done if we die now. A watchdog that has died itself, that is stopped or
    /// does not read, is replaced.
    pub(crate) fn tell(&mut self, duty: &Duty) {
        let line = duty.write();
        if !self.is_stuck() && self.socket.write_all(line.as_bytes()).is_ok() {
            return;
        }
        tracing::warn!(
            pid = self.child.id(),
            "the watchdog is gone, stopped or does not read; starting another"
        );
        let kept = self.kept.as_ref().and_then(|kept| kept.try_clone().ok());
        match Self::start(kept) {
            Ok(mut new) => {
                for (id, how, calls) in std::mem::take(&mut self.calls) {
                    calls.upgrade().iter().for_each(|calls| new.keep_calls(id, how, calls));
                }
                drop(std::mem::replace(self, new));
                // A second failure at once is no accident; the log has said enough.
                let _ = self.socket.write_all(line.as_bytes());
            }
            Err(error) => tracing::error!(%error, "handovers go on without a watchdog"),
        }
    }

    /// Whether it is stopped (SIGSTOP), or has left something unread for longer than [`PATIENCE`].
    fn is_stuck(&mut self) -> bool {
        let unread = self.has_unread();
        let since = *self.unread.get_or_insert_with(Instant::now);
        if !unread {
            self.unread = None;
        }
        (unread && since.elapsed() > PATIENCE) || self.is_stopped()
    }

    fn does_not_read(&self) -> bool {
        self.has_unread() || self.is_stopped()
    }

    fn has_unread(&self) -> bool {
        queue::unread(self.socket.as_fd()).is_ok_and(|bytes| bytes > 0)
    }

    fn is_stopped(&self) -> bool {
        process::is_stopped(i32::try_from(self.child.id()).unwrap_or_default())
    }

    /// Waits for it to have ended, but for no longer than [`ENDING`].
    fn has_ended(&mut self) -> bool {
        let pid = i32::try_from(self.child.id()).unwrap_or_default();
        let limit = PollTimeout::try_from(ENDING).unwrap_or(PollTimeout::ZERO);
        if let Ok(pidfd) = Pidfd::open(pid) {
            let _ = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], limit);
        }
        self.child.try_wait().is_ok_and(|ended| ended.is_some())
    }

    /// Gives it a copy of the hold of the generation that starts. It has it until it is
    /// told to do nothing.
    pub(crate) fn hold(&self, hold: BorrowedFd<'_>) {
        self.share(HOLD, hold);
    }

    /// Gives it a copy of an admin connection of a generation, for the next supervisor.
    pub(crate) fn keep(&self, id: GenerationId, name: &str, connection: BorrowedFd<'_>) {
        self.share(&descriptor_store::line(id, name), connection);
    }

    /// Gives it a copy of what the calls of a generation come from: without a supervisor it answers them.
    pub(crate) fn keep_calls(&mut self, id: GenerationId, how: Unattended, calls: &Arc<Intercept>) {
        let Some(copies) = calls.copies() else { return };
        self.keep_copies(id, how, copies);
        self.calls.retain(|(_, _, calls)| calls.strong_count() > 0);
        self.calls.push((id, how, Arc::downgrade(calls)));
    }

    /// The same of copies.
    pub(super) fn keep_copies(
        &self,
        id: GenerationId,
        how: Unattended,
        copies: [BorrowedFd<'_>; 2],
    ) {
        self.send(&descriptor_store::calls_line(id, how), &copies);
    }

    /// The calls of a generation are to fail, also while we live.
    pub(crate) fn forget_calls(&mut self, id: GenerationId) {
        self.calls.retain(|(of, ..)| *of != id);
        self.send(&descriptor_store::forget_line(id), &[]);
    }

    /// Gives it a descriptor, with a line that says what it is.
    fn share(&self, line: &str, descriptor: BorrowedFd<'_>) {
        self.send(line, &[descriptor]);
    }

    fn send(&self, line: &str, descriptors: &[BorrowedFd<'_>]) {
        // In one piece: the socket takes so little whenever it takes anything.
        if let Err(error) = bindonce_fd::send(&self.socket, line.as_bytes(), descriptors) {
            let what = line.trim_end();
            tracing::warn!(%error, what, "the watchdog has no copy of this descriptor: if this supervisor dies, the next one lacks it");
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // It ends with the socket; one that is stopped or does not read does not, and one that keeps calls of a process that has outlived
        // its generation stays for as long as that. A process that does not even end when it is killed stays a zombie until we end.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if !self.has_ended() && self.does_not_read() {
            let _ = self.child.kill();
            self.has_ended();
        }
    }
}

/// Writes to standard error, which may have no reader: what is to be done next does not
/// wait for that.
fn say(text: &str) {
    log::keep(|dropped| format!("bindonce: {dropped} lines were dropped\n"));
    // Without a thread the last words are lost, and nothing else.
    log::start();
    log::write(format!("bindonce: {text}\n").as_bytes());
}

/// The watchdog's side: reads duties from standard input until it ends.
pub fn run() {
    work();
    log::finish(log::LAST_WORDS);
}

fn work() {
    // A supervisor's own log must not end us.
    let _ = bindonce_sys::signals::reset();
    let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned() else { return };
    let mut inbox = Inbox::new(socket);
    let mut duty = Duty::None;
    let mut until: Option<Instant> = None;
    let mut held: Option<OwnedFd> = None;
    let mut kept = DescriptorStore::default();
    loop {
        match inbox.next(until) {
            Next::Line(line) if line == HOLD => held = inbox.descriptor(),
            Next::Line(line) if descriptor_store::is_line(&line) => {
                kept.take(line, || inbox.descriptor());
            }
            Next::Line(line) => {
                // What it does not understand comes from no supervisor of this version.
                duty = serde_json::from_str(&line).unwrap_or(Duty::None);
                until = match &duty {
                    Duty::Finish { within, .. } => Some(Instant::now() + *within),
                    Duty::End { paused, .. } if !paused.is_empty() => Some(Instant::now() + PAUSE),
                    Duty::None | Duty::End { .. } => None,
                };
                if duty == Duty::None {
                    held = None;
                }
            }
            Next::Late => {
                std::mem::replace(&mut duty, Duty::None).perform();
                (until, held) = (None, None);
            }
            Next::End => {
                duty.perform();
                drop(held);
                return kept.leave();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duty_reads_back_as_it_was_written() {
        let one = ProcessRef { pid: 7, start_time: 99 };
        let two = ProcessRef { pid: 8, start_time: 100 };
        let within = Duration::from_millis(15_000);
        let finish = |retire, older, listeners| Duty::Finish {
            within,
            retire,
            newer: two,
            older,
            listeners,
        };
        for duty in [
            Duty::None,
            Duty::End { newer: one, paused: vec![] },
            Duty::End { newer: one, paused: vec![two, one] },
            finish(Signal::SIGUSR1 as i32, vec![one], vec![]),
            finish(Signal::SIGQUIT as i32, vec![one, two], vec![4711, 4712]),
            finish(Signal::SIGQUIT as i32, vec![], vec![1]),
        ] {
            let line = duty.write();
            assert_eq!(line.find('\n'), Some(line.len() - 1));
            assert_eq!(serde_json::from_str::<Duty>(&line).ok(), Some(duty));
        }
        for bad in
            ["", "{}", "7", "\"Finish\"", "{\"End\":{\"newer\":7}}", "{\"None\":null", "\"Other\""]
        {
            assert!(serde_json::from_str::<Duty>(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_process_that_is_not_the_same_is_left_alone() {
        let me = ProcessRef::of(std::process::id().cast_signed()).expect("this process");
        // Were it not for the start time, this would end the test.
        ProcessRef { start_time: me.start_time + 1, ..me }.signal(Signal::SIGKILL);
    }
}
