//! The small process between a supervisor and its program: the other side of [`crate::spawn`].
//!
//! The shim has one thread and runs for about a millisecond: it takes its descriptors from standard
//! input, resets its signals, sets up a hold if the order asks for one ([`crate::hold`]), and
//! becomes the program.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};

use crate::error::Error;
use crate::filter::{self, Watched};
use crate::{executable, inherit, intercept, limits, signals};

/// The word for [`crate::spawn::Launch::service`].
pub(crate) const SERVICE: &str = "service";

/// The word for [`Intercepted::unlinks`].
pub(crate) const UNLINKS: &str = "unlinks";

/// The word for [`Intercepted::binds`].
pub(crate) const BINDS: &str = "binds";

/// Whether a supervisor answers bind(2) and listen(2) of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interception {
    /// Never.
    Not,
    /// If the kernel allows it; otherwise the shim reports that it does not, and starts the
    /// program.
    IfPossible,
    /// Always; if that is not possible, the shim reports it and fails.
    Always,
}

impl Interception {
    /// The word for it in an [`Order`].
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Not => "",
            Self::IfPossible => "intercept-if-possible",
            Self::Always => "intercept",
        }
    }
}

/// The calls of a program that wait for an answer from the process that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intercepted {
    /// Hold the program when it sends SIGUSR1 to this pid, the supervisor's own; see
    /// [`crate::hold`] for the consequences for the program.
    pub hold: Option<i32>,
    /// Ask this process about the program's bind(2) (`crate::intercept`), if the kernel allows it.
    pub binds: bool,
    /// Whether to ask this process about the program's bind(2) and listen(2) (`crate::intercept`);
    /// this replaces the hold.
    pub intercept: Interception,
    /// With `intercept`: ask about the program's unlink(2) too.
    pub unlinks: bool,
}

impl Intercepted {
    /// No calls.
    pub(crate) const NONE: Self =
        Self { hold: None, binds: false, intercept: Interception::Not, unlinks: false };

    pub(crate) fn any(self) -> bool {
        self.hold.is_some() || self.binds || self.intercept != Interception::Not
    }

    /// The words for them in an [`Order`].
    pub(crate) fn words(self) -> impl Iterator<Item = String> {
        let hold = self.hold.filter(|_| self.intercept == Interception::Not);
        let asked = match self.intercept {
            Interception::Not => self.binds.then_some(BINDS),
            asked => Some(asked.word()),
        };
        let unlinks = (self.unlinks && self.intercept != Interception::Not).then_some(UNLINKS);
        let words = asked.into_iter().chain(unlinks).map(str::to_owned);
        hold.map(|pid| pid.to_string()).into_iter().chain(words)
    }
}

/// The order for a shim.
#[derive(Debug, PartialEq, Eq)]
pub struct Order {
    /// Number of descriptors that come over standard input.
    count: usize,
    /// The calls that the supervisor answers.
    calls: Intercepted,
    /// Whether to start the program as a service ([`crate::spawn::Launch::service`]).
    service: bool,
    program: OsString,
    args: Vec<OsString>,
}

impl Order {
    /// Parses the words after [`crate::spawn::SUBCOMMAND`]: `COUNT [PID] [binds | (intercept |
    /// intercept-if-possible) [unlinks]] [service] -- PROGRAM [ARG]...`. None if they are not in
    /// the form that [`crate::spawn::Launch::start`] writes.
    pub fn parse(mut words: impl Iterator<Item = OsString>) -> Option<Self> {
        let count = words.next()?.to_str()?.parse().ok()?;
        let mut next = words.next()?;
        let mut hold = None;
        if next.to_str()?.starts_with(|first: char| first.is_ascii_digit()) {
            hold = Some(next.to_str()?.parse().ok()?);
            next = words.next()?;
        }
        let asked = [Interception::Always, Interception::IfPossible].into_iter();
        let mut asked = asked.filter(|asked| hold.is_none() && next == asked.word());
        let intercept = asked.next().unwrap_or(Interception::Not);
        if intercept != Interception::Not {
            next = words.next()?;
        }
        let unlinks = intercept != Interception::Not && next == UNLINKS;
        if unlinks {
            next = words.next()?;
        }
        let binds = intercept == Interception::Not && next == BINDS;
        if binds {
            next = words.next()?;
        }
        let service = next == SERVICE;
        if service {
            next = words.next()?;
        }
        let program = words.next().filter(|_| next == "--")?;
        let args = words.collect();
        let calls = Intercepted { hold, binds, intercept, unlinks };
        Some(Self { count, calls, service, program, args })
    }

    /// Becomes the program. Returns only on failure, with the error to print on standard error
    /// before exiting with 127. The process must have a single thread.
    pub fn carry_out(self) -> Error {
        let (names, fds) = match self.prepare() {
            Ok(received) => received,
            Err(error) => return error,
        };
        let mut command = Command::new(self.program);
        command.args(self.args);
        let named = (inherit::FIRST..).zip(names).filter(|(_, name)| !name.is_empty());
        for (number, name) in named {
            command.env(name, number.to_string());
        }
        if self.service {
            // The pid is known only here.
            if std::env::var_os("LISTEN_FDS").is_some() {
                inherit::meant(&mut command);
            }
            // SAFETY: the closure runs in this process, which has a single thread, right before
            // exec, and only calls sigaction(2). Before it the standard library resets SIGPIPE to
            // its default.
            unsafe { command.pre_exec(|| signals::ignore(signals::Signal::SIGPIPE)) };
        }
        inherit::exec(fds, inherit::FIRST, &mut command)
    }

    fn prepare(&self) -> Result<(Vec<OsString>, Vec<OwnedFd>), Error> {
        let received = receive(self.count)?;
        signals::reset().map_err(|error| Error::call("sigaction", error))?;
        if self.service {
            nix::unistd::setsid().map_err(|error| Error::call("setsid", error))?;
        }
        let no_new_privs = || !gains_privileges(&self.program);
        if self.calls.hold.is_some() || self.calls.binds {
            let (readiness, binds) = (self.calls.hold, self.calls.binds);
            let watched = Watched { readiness, binds, listens: false, unlinks: false };
            // If the kernel refuses, the supervisor sees that no descriptor came, and has another
            // way.
            if let Ok(listener) = filter::install(watched, no_new_privs()) {
                // The supervisor may be gone; then nobody answers, and nothing is held.
                let _ = send_back(&listener);
            }
        }
        if self.calls.intercept != Interception::Not {
            let unlinks = self.calls.unlinks;
            let watched = Watched { readiness: None, binds: true, listens: true, unlinks };
            let installed =
                intercept::on_a_child().and_then(|()| filter::install(watched, no_new_privs()));
            match installed {
                Ok(listener) => send_back(&listener)?,
                Err(error) => {
                    let error = Error::Intercept { refused: Box::new(error) };
                    if self.calls.intercept == Interception::Always {
                        return Err(error);
                    }
                    eprintln!("bindonce: {error}: started with the sockets of --listen alone");
                }
            }
        }
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::call("open /dev/null", error))?;
        // This closes our end of the socket: the supervisor sees that nothing more comes.
        nix::unistd::dup2_stdin(&null).map_err(|error| Error::call("dup2", error))?;
        Ok(received)
    }
}

fn send_back(listener: &OwnedFd) -> Result<(), Error> {
    let sent = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|socket| bindonce_fd::send(UnixStream::from(socket), &[0], &[listener.as_fd()]));
    sent.map(drop).map_err(|error| Error::call("sendmsg to the supervisor", error))
}

/// Whether executing the program grants rights that this process does not have.
fn gains_privileges(program: &OsStr) -> bool {
    const SETUID_OR_SETGID: u32 = 0o6000;
    executable::find(program).is_ok_and(|path| {
        path.metadata().is_ok_and(|file| file.mode() & SETUID_OR_SETGID != 0)
            || rustix::fs::getxattr(&path, "security.capability", &mut [0_u8; 0]).is_ok()
    })
}

fn receive(count: usize) -> Result<(Vec<OsString>, Vec<OwnedFd>), Error> {
    limits::make_room(count).map_err(|error| Error::call("setrlimit", error))?;
    let (mut names, mut fds) = (Vec::new(), Vec::new());
    let mut name = Vec::new();
    let mut buffer = [0; 16 * 1024];
    let stdin = io::stdin();
    while names.len() < count || fds.len() < count {
        let received = match bindonce_fd::recv(stdin.as_fd(), &mut buffer, &mut fds) {
            Ok(0) => {
                return Err(Error::call("recvmsg", Errno::ECONNRESET));
            }
            Ok(received) => received,
            Err(bindonce_fd::Error::Truncated) => return Err(Error::too_many(count)),
            Err(error) => return Err(error.into()),
        };
        for byte in buffer.get(..received).unwrap_or_default() {
            match byte {
                // After the names, a NUL only carries descriptors.
                0 if names.len() < count => {
                    names.push(OsString::from_vec(std::mem::take(&mut name)));
                }
                0 => {}
                byte => name.push(*byte),
            }
        }
    }
    Ok((names, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Option<Order> {
        Order::parse(words.split(' ').map(OsString::from))
    }

    #[test]
    fn an_order_is_read_as_it_is_given() {
        let order = parse("2 -- haproxy -f x").expect("an order");
        assert_eq!((order.count, order.calls.hold), (2, None));
        assert_eq!((order.program, order.args), ("haproxy".into(), vec!["-f".into(), "x".into()]));
        let order = parse("0 77 -- -- --").expect("an order");
        assert_eq!((order.count, order.calls.hold), (0, Some(77)));
        assert_eq!((order.program, order.args), ("--".into(), vec!["--".into()]));
        let order = parse("1 service -- sh").expect("an order");
        assert_eq!((order.count, order.calls.hold, order.service), (1, None, true));
        let order = parse("1 7 service -- service").expect("an order");
        assert_eq!(
            (order.calls.hold, order.service, order.program),
            (Some(7), true, "service".into())
        );
        let order = parse("1 7 binds -- sh").expect("an order");
        assert_eq!(
            (order.calls.hold, order.calls.binds, order.calls.intercept),
            (Some(7), true, Interception::Not)
        );
        let order = parse("1 binds service -- sh").expect("an order");
        assert_eq!((order.calls.hold, order.calls.binds, order.service), (None, true, true));
        let order = parse("1 intercept service -- sh").expect("an order");
        assert_eq!(
            (order.calls.hold, order.calls.intercept, order.service),
            (None, Interception::Always, true)
        );
        let order = parse("1 intercept-if-possible -- intercept").expect("an order");
        assert_eq!((order.calls.intercept, order.calls.unlinks), (Interception::IfPossible, false));
        let order = parse("0 intercept unlinks service -- unlinks").expect("an order");
        assert_eq!(
            (order.calls.intercept, order.calls.unlinks, order.service),
            (Interception::Always, true, true)
        );
        for bad in [
            "service -- sh",
            "1 service 7 -- sh",
            "1 7 intercept -- sh",
            "1 intercept intercept -- sh",
            "1 binds 7 -- sh",
            "1 intercept binds -- sh",
            "1 unlinks -- sh",
            "1 service sh",
            "",
            "x",
            "1",
            "1 --",
            "1 x -- sh",
            "1 2 sh",
            "1 2 3 -- sh",
            "-1 -- sh",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn programs_that_gain_rights_are_known() {
        assert!(!gains_privileges(OsStr::new("sh")));
        assert!(!gains_privileges(OsStr::new("bindonce-none")));
        if executable::find(OsStr::new("su")).is_ok() {
            assert!(gains_privileges(OsStr::new("su")));
        }
    }
}
