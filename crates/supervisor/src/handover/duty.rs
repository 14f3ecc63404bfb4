//! What the [`watchdog`](super::watchdog) does if the supervisor dies, and how it names the
//! processes that this is about.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use bindonce_core::patience::Patience;
use bindonce_sys::process::{self, Pidfd};
use bindonce_sys::signals::Signal;
use bindonce_sys::{holders, log, tree};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

/// How long a new generation waits for the older ones, which were told to stop, to close their
/// listeners. A generation that does not must not keep the service down for longer.
const CLOSING: Duration = Duration::from_millis(500);

/// Interval between two checks for closed listeners.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A process, as the supervisor names it to its watchdog and to the next supervisor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ProcessRef {
    pub(crate) pid: i32,
    /// In clock ticks since boot. A pid alone may name another process later.
    pub(crate) start_time: u64,
}

/// The watchdog's duty if the supervisor dies now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Duty {
    /// Nothing.
    None,
    /// End a starting generation, then resume those paused for it. While any are paused, also when
    /// that takes too long.
    End { newer: ProcessRef, paused: Vec<ProcessRef> },
    /// Tell the older generations to stop, and continue the new one; also after `within`. If the
    /// new one has ended, the older ones serve on.
    Finish {
        within: Duration,
        /// Number of the signal that tells the older ones to stop.
        retire: i32,
        /// Whether the older ones are haproxies, which are paused and can resume. Any other program
        /// would be stopped by that signal.
        resume: bool,
        newer: ProcessRef,
        older: Vec<ProcessRef>,
        /// Inode numbers of the older generations' listeners.
        listeners: Vec<u64>,
    },
}

impl ProcessRef {
    /// Names the process that currently has this pid.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, start_time: process::start_time(pid)? })
    }

    /// Waits until the process has ended, for [`CLOSING`] at most.
    fn wait_end(self) {
        let Ok(pidfd) = Pidfd::open(self.pid) else { return };
        let mut patience = Patience::new(CLOSING);
        while self.is_there()
            && let Some(wait) = patience.next_wait(Instant::now())
        {
            let limit = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
            match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], limit) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    fn signal(self, signal: Signal) {
        // The pidfd is opened first, so that the process it names cannot change under the
        // comparison.
        let Ok(pidfd) = Pidfd::open(self.pid) else { return };
        if self.is_there() {
            // The process may have ended meanwhile.
            let _ = pidfd.send(signal);
        }
    }

    /// Whether the process has a descriptor of one of these listeners, as far as /proc shows.
    fn listens(self, listeners: &[u64]) -> bool {
        self.is_there()
            && process::family(self.pid)
                .into_iter()
                .any(|pid| holders::holds(pid, listeners).unwrap_or(false))
    }

    /// Whether the process still exists. One that has ended does until it is reaped.
    pub(crate) fn is_there(self) -> bool {
        process::start_time(self.pid) == Some(self.start_time)
    }

    /// Whether the process has not ended.
    fn runs(self) -> bool {
        process::Stat::of(self.pid)
            .is_some_and(|stat| stat.start_time == self.start_time && !stat.has_ended())
    }
}

impl Duty {
    /// The new generation that it is about.
    pub(super) fn newer(&self) -> Option<ProcessRef> {
        match self {
            Self::None => None,
            Self::End { newer, .. } | Self::Finish { newer, .. } => Some(*newer),
        }
    }

    /// Whether this generation is about to take over.
    pub(super) fn lets_in(&self, newer: ProcessRef) -> bool {
        matches!(self, Self::Finish { .. }) && self.newer() == Some(newer)
    }

    /// The duty as one line.
    pub(super) fn write(&self) -> String {
        // This type always serializes.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// Carries out the duty. A held generation continues afterwards at the earliest.
    pub(super) fn perform(self) {
        match self {
            Self::None => {}
            Self::End { newer, paused } => {
                if newer.is_there() {
                    tree::kill(newer.pid);
                }
                if !paused.is_empty() {
                    // The new generation may have an address that the older ones take back.
                    newer.wait_end();
                    paused.iter().for_each(|paused| paused.signal(Signal::SIGTTIN));
                }
                say(&format!(
                    "the supervisor is gone or stuck: ended pid {}, which was starting",
                    newer.pid
                ));
            }
            Self::Finish { resume, newer, older, .. } if !newer.runs() => {
                // Of several processes the others may accept. None may, beside the older ones.
                tree::kill_orphans(newer.pid, newer.start_time);
                if resume {
                    older.iter().for_each(|older| older.signal(Signal::SIGTTIN));
                }
                say(&format!(
                    "the supervisor is gone or stuck, and pid {}, which was to take over, has ended: \
                     the older generations are left as they are",
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
                // This process may be stopped during a look: the last one begins after the limit.
                let mut is_last = false;
                while older.iter().any(open) && !is_last {
                    is_last = Instant::now() >= until;
                    // The kernel sends no event when another process closes a descriptor.
                    std::thread::sleep(LOOK_AGAIN);
                }
                if newer.is_there() {
                    tree::signal(newer.pid, Signal::SIGCONT);
                }
            }
        }
    }
}

/// Writes to standard error, which may have no reader; later steps do not wait for it.
fn say(text: &str) {
    log::keep(|dropped| format!("bindonce: {dropped} lines were dropped\n"));
    // Without a thread only the last words are lost.
    log::start();
    log::write(format!("bindonce: {text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Child, Command, Stdio};

    use super::*;

    #[test]
    fn a_duty_reads_back_as_it_was_written() {
        let one = ProcessRef { pid: 7, start_time: 99 };
        let two = ProcessRef { pid: 8, start_time: 100 };
        let within = Duration::from_millis(15_000);
        let finish = |retire, older, listeners| Duty::Finish {
            within,
            retire,
            resume: true,
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
    fn one_that_was_only_starting_does_not_take_over() {
        let one = ProcessRef { pid: 7, start_time: 99 };
        let two = ProcessRef { pid: 8, start_time: 100 };
        let finish = finish(true, two, one);
        assert!(finish.lets_in(two));
        assert!(!finish.lets_in(one));
        assert!(!Duty::End { newer: two, paused: vec![one] }.lets_in(two));
        assert!(!Duty::None.lets_in(two));
    }

    fn finish(resume: bool, newer: ProcessRef, older: ProcessRef) -> Duty {
        let (within, retire) = (Duration::from_millis(15_000), Signal::SIGUSR1 as i32);
        Duty::Finish { within, retire, resume, newer, older: vec![older], listeners: vec![] }
    }

    /// A shell that ends with 7 when it is told to resume, and with 8 when it is told to stop.
    fn older() -> (Child, ProcessRef) {
        let text = "trap 'exit 7' TTIN; trap 'exit 8' USR1; echo; while :; do sleep 0.01; done";
        let mut shell = Command::new("sh");
        let mut shell = shell.args(["-c", text]).stdout(Stdio::piped()).spawn().expect("a shell");
        let output = shell.stdout.as_mut().expect("its output");
        output.read_exact(&mut [0]).expect("its line");
        let named = ProcessRef::of(shell.id().cast_signed()).expect("it runs");
        (shell, named)
    }

    #[test]
    fn the_older_generation_serves_on_if_the_new_one_has_ended() {
        let mut ended = Command::new("true").spawn().expect("a process");
        // It is not reaped, as if its supervisor had just died.
        let newer = ProcessRef::of(ended.id().cast_signed()).expect("it is not reaped");
        while newer.runs() {
            newer.wait_end();
        }
        for resume in [true, false] {
            let (mut shell, older) = older();
            finish(resume, newer, older).perform();
            if !resume {
                older.signal(Signal::SIGTTIN);
            }
            assert_eq!(shell.wait().expect("its end").code(), Some(7), "resume: {resume}");
        }
        assert!(ended.wait().is_ok_and(|exit| exit.success()));
    }

    #[test]
    fn a_process_that_is_not_the_same_is_left_alone() {
        let me = ProcessRef::of(std::process::id().cast_signed()).expect("this process");
        // Were it not for the start time, this would end the test.
        ProcessRef { start_time: me.start_time + 1, ..me }.signal(Signal::SIGKILL);
    }
}
