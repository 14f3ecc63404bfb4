//! A terminal with a program: its screen, and keys for it. It knows the control sequences that
//! `bindonce top` uses, and fails the test at any other.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::Instant;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{self, FlowArg, LocalFlags};
use nix::unistd::Pid;

use super::{DEADLINE, eventually};

/// Interval, in milliseconds, at which it checks whether the program has ended.
const LOOK: u16 = 20;

/// A pseudo-terminal of 100 by 30 characters and its program. Dropping it kills the program.
pub(crate) struct Terminal {
    child: Child,
    /// Keyboard and screen; none after it was closed.
    person: Option<File>,
    /// The program's side, kept so that the terminal outlives the program and can be inspected.
    line: OwnedFd,
    pub(crate) screen: Screen,
}

impl Terminal {
    /// Starts the command as the leader of a session with this terminal.
    #[track_caller]
    pub(crate) fn start(command: &Command) -> Self {
        let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a pseudo-terminal");
        for fd in [&pty.master, &pty.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("close-on-exec");
        }
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args()).env_clear();
        session.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(directory) = command.get_current_dir() {
            session.current_dir(directory);
        }
        let slave = || pty.slave.try_clone().expect("another descriptor of it");
        let child = session.stdin(slave()).stdout(slave()).stderr(slave()).spawn();
        let child = child.expect("setsid of util-linux");
        let person = Some(File::from(pty.master));
        let screen = Screen::new(100, 30);
        Self { child, person, line: pty.slave, screen }
    }

    /// Types.
    #[track_caller]
    pub(crate) fn press(&mut self, keys: &str) {
        let person = self.person.as_mut().expect("it is open");
        person.write_all(keys.as_bytes()).expect("typing");
    }

    /// Closes the window that the terminal is.
    pub(crate) fn close(&mut self) {
        self.person = None;
    }

    /// Sends the program a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("signalling it");
    }

    /// Stops the output, as after Ctrl-S: the next write(2) to the terminal blocks.
    pub(crate) fn hold(&self) {
        termios::tcflow(self.line.as_fd(), FlowArg::TCOOFF).expect("holding it");
    }

    /// Reads the program's output for a moment. True if there was any.
    fn read(&mut self) -> bool {
        let Some(person) = &mut self.person else { return false };
        let mut readable = [PollFd::new(person.as_fd(), PollFlags::POLLIN)];
        if poll(&mut readable, LOOK).expect("waiting") == 0 {
            return false;
        }
        let mut bytes = [0; 4096];
        let read = person.read(&mut bytes).expect("reading");
        self.screen.take(&bytes[..read]);
        true
    }

    /// Waits until the screen is as wanted; fails the test at the deadline.
    #[track_caller]
    pub(crate) fn wait(&mut self, what: &str, wanted: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !wanted(&self.screen.text()) {
            let ended = self.child.try_wait().expect("waiting");
            let more = self.read();
            let text = self.screen.text();
            assert!(more || ended.is_none(), "ended ({ended:?}) before: {what}\n{text}");
            assert!(Instant::now() < deadline, "waited in vain: {what}\n{text}");
        }
    }

    /// The same, for a text on the screen.
    #[track_caller]
    pub(crate) fn wait_text(&mut self, needle: &str) {
        self.wait(needle, |text| text.contains(needle));
    }

    /// Waits for the program to end while its output is not read.
    #[track_caller]
    pub(crate) fn wait_exit_unread(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the program to end", || child.try_wait().expect("waiting"))
    }

    /// Waits for the program to end, and reads its last output.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let ended = self.child.try_wait().expect("waiting");
            let more = self.read();
            if let (Some(status), false) = (ended, more) {
                return status;
            }
            assert!(Instant::now() < deadline, "does not end\n{}", self.screen.text());
        }
    }

    /// Whether keys are echoed and read in lines, as a shell expects.
    pub(crate) fn is_cooked(&self) -> bool {
        let modes = termios::tcgetattr(self.line.as_fd()).expect("its modes");
        modes.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.screen.text());
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The screen of a terminal.
pub(crate) struct Screen {
    cells: Vec<Vec<char>>,
    at: (usize, usize),
    /// The received part of a control sequence or of a character.
    partial: Vec<u8>,
    /// Whether the alternate screen is shown, on which nothing scrolls away.
    pub(crate) other: bool,
    pub(crate) cursor: bool,
}

impl Screen {
    fn new(width: usize, height: usize) -> Self {
        let cells = vec![vec![' '; width]; height];
        Self { cells, at: (0, 0), partial: Vec::new(), other: false, cursor: true }
    }

    /// Its lines.
    pub(crate) fn text(&self) -> String {
        let line = |cells: &Vec<char>| cells.iter().collect::<String>().trim_end().to_owned();
        self.cells.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.partial.push(*byte);
            let control = self.partial[0] == 0x1b;
            let whole = match self.partial.as_slice() {
                [0x1b] | [0x1b, b'['] => false,
                [0x1b, b'[', .., last] => (0x40..0x7f).contains(last),
                other => control || std::str::from_utf8(other).is_ok(),
            };
            if whole {
                let sequence = std::mem::take(&mut self.partial);
                let sequence = String::from_utf8(sequence).expect("text");
                match sequence.strip_prefix('\x1b') {
                    Some(sequence) => self.control(sequence),
                    None => sequence.chars().for_each(|character| self.put(character)),
                }
            }
        }
    }

    fn put(&mut self, character: char) {
        // On the alternate screen the program stays within the lines; printed text wraps.
        if !self.other && self.at.0 == self.cells[0].len() {
            self.at = (0, (self.at.1 + 1).min(self.cells.len() - 1));
        }
        let (x, y) = self.at;
        match character {
            '\r' => self.at.0 = 0,
            '\n' => self.at.1 = (y + 1).min(self.cells.len() - 1),
            character => {
                assert!(!character.is_control(), "{character:?} reached the terminal");
                let cell = self.cells.get_mut(y).and_then(|line| line.get_mut(x));
                *cell.unwrap_or_else(|| panic!("{character:?} beyond the screen, at {x}, {y}")) =
                    character;
                self.at.0 += 1;
            }
        }
    }

    fn control(&mut self, sequence: &str) {
        let number = |text: &str| text.parse::<usize>().map_or(0, |number| number - 1);
        match sequence {
            "[2J" => self.cells.iter_mut().for_each(|line| line.fill(' ')),
            "[?1049h" => self.other = true,
            "[?1049l" => self.other = false,
            "[?25h" => self.cursor = true,
            "[?25l" => self.cursor = false,
            "[?2004h" | "[?2004l" => {}
            _ if sequence.ends_with('m') => {}
            _ => {
                let place = sequence.strip_prefix('[').and_then(|rest| rest.strip_suffix('H'));
                let place = place.unwrap_or_else(|| panic!("unknown: {sequence:?}"));
                let (y, x) = place.split_once(';').unwrap_or_default();
                self.at = (number(x), number(y));
            }
        }
    }
}
