//! Signals as events on a descriptor, each with its sender (signalfd(2)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd as Inner};

pub use nix::sys::signal::Signal;

/// Signals that stop a process by default: Ctrl-Z, and a background process that reads from or
/// writes to its terminal (signal(7)). haproxy sends SIGTTOU and SIGTTIN to the pids of its `-sf`
/// too. A daemon stopped by such a signal would stay stopped until SIGCONT, and answer nobody.
pub const JOB_CONTROL: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// A received signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Which signal.
    pub signo: Signal,
    /// The pid of the sender; 0 if the kernel sent it.
    pub pid: i32,
    /// The real user id of the sender.
    pub uid: u32,
    /// How the signal was sent: `SI_USER` (0) for kill(2), positive for the kernel's own.
    pub code: i32,
}

/// Signals that are blocked for this process and read here instead. Pending signals of the same
/// kind are merged into one (signal(7)).
#[derive(Debug)]
pub struct SignalFd(Inner);

impl SignalFd {
    /// Blocks the signals and opens a descriptor for them, non-blocking and close-on-exec. Call it
    /// before other threads start: they inherit the mask. Children inherit it too; [`crate::spawn`]
    /// resets theirs.
    ///
    /// # Errors
    /// Errors from sigprocmask(2) and signalfd(2).
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
        Ok(Self(Inner::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next signal, or None if none is pending.
    ///
    /// # Errors
    /// Errors from read(2).
    pub fn read(&self) -> io::Result<Option<Received>> {
        let Some(info) = self.0.read_signal()? else {
            return Ok(None);
        };
        Ok(Some(Received {
            signo: Signal::try_from(info.ssi_signo.cast_signed())?,
            pid: info.ssi_pid.cast_signed(),
            uid: info.ssi_uid,
            code: info.ssi_code,
        }))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Ignores a signal, in this process and in programs that it executes.
///
/// # Errors
/// Errors from sigaction(2); `EINVAL` for SIGKILL and SIGSTOP.
pub fn ignore(signal: Signal) -> io::Result<()> {
    // SAFETY: SIG_IGN is no handler, so no code can run in a signal's context.
    unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) }?;
    Ok(())
}

/// Resets SIGSEGV and SIGBUS to their defaults: they end the process, even if sent with kill(2).
pub fn die_of_faults() {
    for signal in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: SIG_DFL is no handler, so no code can run in a signal's context.
        let set = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) };
        // sigaction(2) fails for none of these signals; if it did, the handler would stay.
        let _ = set;
    }
}

/// Resets every standard signal to its default disposition and unblocks all, as a program expects
/// at its start. Both are inherited through exec, and a supervisor blocks signals that its children
/// must receive.
///
/// # Errors
/// Errors from sigaction(2) and sigprocmask(2).
pub fn reset() -> io::Result<()> {
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: SIG_DFL is no handler, so no code can run in a signal's context.
        unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}
