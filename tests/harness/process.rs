//! A child process whose output is read line by line while it runs.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use bindonce_sys::process::Pidfd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{DEADLINE, allow};

/// The longest pause in the output of a process that has ended, while its children live on.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// A running child. Dropping it kills it by its pid and waits for it.
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    /// How many lines of `seen` a wait for a line has looked at.
    passed: usize,
}

impl Process {
    /// Starts the command with its standard output and error read as one stream of lines.
    #[track_caller]
    pub(crate) fn start(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let (sender, lines) = channel();
        forward(child.stdout.take().expect("piped"), sender.clone());
        forward(child.stderr.take().expect("piped"), sender);
        Self { name, child, lines, seen: Vec::new(), passed: 0 }
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends the process a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("signalling a child");
    }

    /// Waits for a line that contains `needle` and returns it. Fails the test at the deadline or if
    /// the output ends first.
    #[track_caller]
    pub(crate) fn wait_line(&mut self, needle: &str) -> String {
        self.wait_one_of(&[needle])
    }

    /// Waits for a line with each of these, in any order: the log and a program that writes to the
    /// same output do not wait for each other.
    #[track_caller]
    pub(crate) fn wait_lines(&mut self, needles: &[&str]) -> Vec<String> {
        let (mut left, mut lines) = (needles.to_vec(), Vec::new());
        while !left.is_empty() {
            let line = self.wait_one_of(&left);
            left.retain(|needle| !line.contains(needle));
            lines.push(line);
        }
        lines
    }

    #[track_caller]
    fn wait_one_of(&mut self, needles: &[&str]) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            // Also the lines that were read for another purpose.
            while let Some(line) = self.seen.get(self.passed) {
                self.passed += 1;
                if needles.iter().any(|needle| line.contains(needle)) {
                    return line.clone();
                }
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no line with {needles:?}\n{}", self.story())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("ended without a line with {needles:?}\n{}", self.story())
                }
            }
        }
    }

    /// Waits for the process to end; fails the test at the deadline.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        if let Some(status) = self.child.try_wait().expect("waiting for a child") {
            return status;
        }
        assert!(ends(&self.child), "does not end\n{}", self.story());
        self.child.wait().expect("waiting for a child")
    }

    /// Waits for the end of the output, which comes when no process has it open; fails the test at
    /// the deadline.
    #[track_caller]
    pub(crate) fn wait_silence(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("its output does not end\n{}", self.story())
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Fails the test if the process ends within this time.
    #[track_caller]
    pub(crate) fn lasts(&mut self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) if self.is_running() => return,
                Err(_) => panic!("ended\n{}", self.story()),
            }
        }
    }

    /// Reads the remaining output, which may still be in flight after the process has ended: to the
    /// end, or to a pause if a child lives on and keeps the output open.
    fn hear_out(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        let pause = || allow(LAST_WORDS).min(deadline.saturating_duration_since(Instant::now()));
        while let Ok(line) = self.lines.recv_timeout(pause()) {
            self.seen.push(line);
        }
    }

    /// Ends the process with SIGTERM, as a service manager does, and waits for it.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit()
    }

    /// Kills it and waits for it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Whether the process is still running.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The command and all its output so far, for messages of failed tests.
    pub(crate) fn story(&mut self) -> String {
        if !self.is_running() {
            self.hear_out();
        }
        self.seen.extend(self.lines.try_iter());
        format!("{}\n  | {}", self.name, self.seen.join("\n  | "))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.story());
        }
        self.kill();
    }
}

/// Reads lines until the end of the stream, which comes when the last process that has it open has
/// ended.
fn forward(stream: impl Read + Send + 'static, lines: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
}

/// Waits for the end of a child that is not reaped yet; false at the deadline.
fn ends(child: &Child) -> bool {
    let pidfd = Pidfd::open(child.id().cast_signed()).expect("a child");
    let limit = PollTimeout::try_from(DEADLINE).expect("a time for poll(2)");
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], limit) == Ok(1)
}

/// The result and output of a finished command.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Exit code; none when a signal ended it.
    pub(crate) code: Option<i32>,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Finished {
    /// Fails the test unless the command succeeded; gives its standard output.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// Fails the test unless the command ended with `code`; gives what it said.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        let said = format!("{}{}", self.out, self.err);
        assert_eq!(self.code, Some(code), "{said}");
        said
    }
}

/// Runs a command to its end; fails the test when it takes longer than the deadline.
#[track_caller]
pub(crate) fn finish(command: &mut Command) -> Finished {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let name = format!("{command:?}");
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
    let read = |mut stream: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).ok();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = read(Box::new(child.stdout.take().expect("piped")));
    let err = read(Box::new(child.stderr.take().expect("piped")));
    assert!(ends(&child), "waited {DEADLINE:?} in vain: {name} to end");
    let status = child.wait().expect("waiting");
    Finished {
        code: status.code(),
        out: out.join().expect("reading stdout"),
        err: err.join().expect("reading stderr"),
    }
}
