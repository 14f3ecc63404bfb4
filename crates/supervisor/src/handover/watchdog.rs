//! The watchdog: a separate process that finishes a handover whose supervisor has died.
//!
//! While a new generation starts next to an older one, or is stopped and the older ones are paused,
//! the death of the supervisor would leave two configurations accepting, or none. So the supervisor
//! tells the watchdog about every handover, over a socket that ends with the supervisor, and what
//! to do then:
//!
//! - A generation that was only starting is ended. The older generation keeps serving, and resumes
//!   if it was paused so that the new one could bind an address.
//! - A generation that was taking over continues as soon as the older ones, which are told to stop,
//!   have closed their listeners. If it has ended meanwhile, the older ones are not told to stop,
//!   and those that were paused resume.
//!
//! The watchdog does the same when a pause lasts longer than the supervisor announced. Time in
//! which the watchdog is stopped, and perhaps the supervisor with it, does not count. A new
//! generation that is held at its readiness stays held meanwhile: the watchdog has a copy of the
//! hold, which the supervisor's death does not release. Processes are named by pid and start time,
//! so that no other process is ever signalled. In the end the watchdog gives the next supervisor
//! the descriptors of the `descriptor_store`.

use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bindonce_core::generation::GenerationId;
use bindonce_core::patience::Patience;
use bindonce_sys::intercept::{Intercept, Unattended};
use bindonce_sys::process::{self, Pidfd};
use bindonce_sys::{log, queue};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::descriptor_store::{self, DescriptorStore};
use super::duty::{Duty, ProcessRef};
use super::watchdog_inbox::{Inbox, Next};
use crate::error::Error;

/// The hidden subcommand that calls [`run`].
pub const SUBCOMMAND: &str = "__watchdog";

/// How long the supervisor waits for the watchdog to take a message.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the supervisor waits for an unneeded watchdog to end.
const ENDING: Duration = Duration::from_millis(100);

/// How long older generations may be paused so that a new one can bind an address. The supervisor
/// ends the pause long before, unless it is stuck.
const PAUSE: Duration = Duration::from_secs(10);

/// The line that carries a hold.
const HOLD: &str = "hold\n";

/// The supervisor's side. It never waits for a watchdog that does not read; such a watchdog is
/// replaced.
#[derive(Debug)]
pub(crate) struct Watchdog {
    socket: UnixStream,
    child: Child,
    /// The socket at which the next supervisor asks for the kept descriptors.
    kept: Option<OwnedFd>,
    /// The kept calls, for a replacement watchdog.
    calls: Vec<(GenerationId, Unattended, Weak<Intercept>)>,
    /// What it was told last.
    duty: Duty,
    /// Since when the watchdog has left a message unread.
    unread: Option<Instant>,
}

impl Watchdog {
    /// Starts the process in its own process group, so that Ctrl-C does not reach it. The next
    /// supervisor asks at the socket `kept`.
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
        let (calls, duty) = (Vec::new(), Duty::None);
        let watchdog = Self { socket, child, kept, calls, duty, unread: None };
        if let Some(asked) = &watchdog.kept {
            watchdog.share(descriptor_store::ASKED, asked.as_fd());
        }
        Ok(watchdog)
    }

    /// Replaces the socket at which the next supervisor asks.
    pub(crate) fn keep_at(&mut self, kept: OwnedFd) {
        self.share(descriptor_store::ASKED, kept.as_fd());
        self.kept = Some(kept);
    }

    /// Tells the watchdog its duty if this process dies now. A watchdog that has died, is stopped,
    /// or does not read is replaced.
    pub(crate) fn tell(&mut self, duty: Duty) {
        let line = duty.write();
        self.duty = duty;
        if !self.is_stuck() && self.socket.write_all(line.as_bytes()).is_ok() {
            return;
        }
        tracing::warn!(
            pid = self.child.id(),
            "the watchdog has ended, is stopped or does not read; starting another"
        );
        let kept = self.kept.as_ref().and_then(|kept| kept.try_clone().ok());
        match Self::start(kept) {
            Ok(mut new) => {
                for (id, how, calls) in std::mem::take(&mut self.calls) {
                    calls.upgrade().iter().for_each(|calls| new.keep_calls(id, how, calls));
                }
                new.duty = std::mem::replace(&mut self.duty, Duty::None);
                drop(std::mem::replace(self, new));
                // A second failure in a row is no accident; the log has said enough.
                let _ = self.socket.write_all(line.as_bytes());
            }
            Err(error) => tracing::error!(%error, "handovers continue without a watchdog"),
        }
    }

    /// What it was told last.
    pub(super) fn duty(&self) -> &Duty {
        &self.duty
    }

    /// Ends the duty that is about this new generation, which is gone.
    pub(super) fn forget(&mut self, newer: ProcessRef) {
        if self.duty.newer() == Some(newer) {
            self.tell(Duty::None);
        }
    }

    /// Whether the watchdog is stopped (SIGSTOP) or has left a message unread for longer than
    /// [`PATIENCE`].
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

    /// Waits for the watchdog to end, for [`ENDING`] at most.
    fn has_ended(&mut self) -> bool {
        let pid = i32::try_from(self.child.id()).unwrap_or_default();
        let limit = PollTimeout::try_from(ENDING).unwrap_or(PollTimeout::ZERO);
        if let Ok(pidfd) = Pidfd::open(pid) {
            let _ = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], limit);
        }
        self.child.try_wait().is_ok_and(|ended| ended.is_some())
    }

    /// Gives the watchdog a copy of the starting generation's hold. The watchdog keeps it until its
    /// duty is [`Duty::None`].
    pub(crate) fn hold(&self, hold: BorrowedFd<'_>) {
        self.share(HOLD, hold);
    }

    /// Gives the watchdog a copy of a generation's admin connection, for the next supervisor.
    pub(crate) fn keep(&self, id: GenerationId, name: &str, connection: BorrowedFd<'_>) {
        self.share(&descriptor_store::line(id, name), connection);
    }

    /// Gives the watchdog a copy of the descriptors for a generation's calls, which it answers
    /// without a supervisor.
    pub(crate) fn keep_calls(&mut self, id: GenerationId, how: Unattended, calls: &Arc<Intercept>) {
        let Some(copies) = calls.copies() else { return };
        self.keep_copies(id, how, copies);
        self.calls.retain(|(_, _, calls)| calls.strong_count() > 0);
        self.calls.push((id, how, Arc::downgrade(calls)));
    }

    /// The same, for descriptors that are already copies.
    pub(super) fn keep_copies(
        &self,
        id: GenerationId,
        how: Unattended,
        copies: [BorrowedFd<'_>; 2],
    ) {
        self.send(&descriptor_store::calls_line(id, how), &copies);
    }

    /// Makes a generation's calls fail from now on, also while the supervisor lives.
    pub(crate) fn forget_calls(&mut self, id: GenerationId) {
        self.calls.retain(|(of, ..)| *of != id);
        self.send(&descriptor_store::forget_line(id), &[]);
    }

    /// Sends a descriptor with a line that names it.
    fn share(&self, line: &str, descriptor: BorrowedFd<'_>) {
        self.send(line, &[descriptor]);
    }

    fn send(&self, line: &str, descriptors: &[BorrowedFd<'_>]) {
        // In one piece: a socket with any room takes a message this small.
        if let Err(error) = bindonce_fd::send(&self.socket, line.as_bytes(), descriptors) {
            let what = line.trim_end();
            tracing::warn!(%error, what, "the watchdog has no copy of this descriptor: if this supervisor dies, the next one lacks it");
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // The watchdog ends with the socket. A stopped or non-reading watchdog does not, and one
        // that keeps calls stays as long as a process that outlived its generation. A watchdog that
        // does not end even when killed stays a zombie until this process ends.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if !self.has_ended() && self.does_not_read() {
            let _ = self.child.kill();
            self.has_ended();
        }
    }
}

/// The watchdog's side: reads duties from standard input until it ends.
pub fn run() {
    work();
    log::finish(log::LAST_WORDS);
}

fn work() {
    // The supervisor's blocked signals are inherited through exec.
    let _ = bindonce_sys::signals::reset();
    let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned() else { return };
    let mut inbox = Inbox::new(socket);
    let mut duty = Duty::None;
    let mut until: Option<Patience> = None;
    let mut held: Option<OwnedFd> = None;
    let mut kept = DescriptorStore::default();
    loop {
        match inbox.next(until.as_mut()) {
            Next::Line(line) if line == HOLD => held = inbox.descriptor(),
            Next::Line(line) if descriptor_store::is_line(&line) => {
                kept.take(line, || inbox.descriptor());
            }
            Next::Line(line) => {
                // An unknown line comes from no supervisor of this version.
                duty = serde_json::from_str(&line).unwrap_or(Duty::None);
                until = match &duty {
                    Duty::Finish { within, .. } => Some(Patience::new(*within)),
                    Duty::End { paused, .. } if !paused.is_empty() => Some(Patience::new(PAUSE)),
                    Duty::None | Duty::End { .. } => None,
                };
                if duty == Duty::None {
                    held = None;
                }
            }
            Next::Late => {
                let lets_in = matches!(duty, Duty::Finish { .. });
                std::mem::replace(&mut duty, Duty::None).perform();
                if lets_in {
                    // The new haproxy waits in a call that the supervisor has received.
                    kept.go_on();
                }
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
