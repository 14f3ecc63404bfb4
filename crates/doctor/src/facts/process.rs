//! A process, and whether it accepts from a socket that it holds, decided without touching
//! either.
//!
//! A process accepts from a listening socket if it asks the kernel for its events: an epoll
//! registration of a descriptor that it still has, with EPOLLIN, or a thread blocked in accept,
//! poll or select for it. A process that is stopped, or that holds the socket and asks for
//! nothing, does not.
//!
//! Limits: a thread that is running shows no wait, and io_uring never does. The answer is then
//! [`Accepting::Unknown`], and no finding is built on it. A process that asks and takes nothing
//! (hung in a lock) counts as accepting; its queue shows it.

use std::fmt::Display;
use std::time::Duration;

use bindonce_core::text::printable;
use bindonce_core::time::Timestamp;
use serde::{Serialize, Serializer};

/// A process that holds or watches one of the sockets, or is a haproxy.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its parent.
    #[serde(skip)]
    pub parent: i32,
    /// The topmost ancestor that runs the same program; itself if there is none.
    #[serde(skip)]
    pub root: i32,
    /// The name of its program, without a loader in front.
    pub program: String,
    /// Its command line.
    #[serde(serialize_with = "on_one_line")]
    pub command: Vec<String>,
    /// Its network namespace ([`super::Network::id`]); none where it may not be read.
    #[serde(skip)]
    pub network: Option<u64>,
    /// When it started.
    #[serde(serialize_with = "as_text")]
    pub started: Timestamp,
    /// Its state as in ps(1).
    pub state: char,
    /// A signal that makes haproxy stop (SIGUSR1, SIGTERM) is pending.
    #[serde(skip)]
    pub stop_pending: bool,
    /// What it uses.
    #[serde(flatten)]
    pub usage: Usage,
    /// What it does with the sockets.
    #[serde(skip)]
    pub activity: Activity,
}

/// What a process uses.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Processor time.
    #[serde(skip)]
    pub processor: Duration,
    /// Resident memory in bytes.
    pub memory: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// The soft limit on descriptors; 0 if there is none or it is unknown.
    pub descriptor_limit: u64,
    /// How many of the descriptors are sockets.
    #[serde(skip)]
    pub sockets: u64,
}

/// What a process does with the sockets that the look is about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Activity {
    /// Inode and number of each descriptor of one of the sockets, sorted.
    pub holds: Vec<(u64, i32)>,
    /// Registrations of the sockets in its epoll instances.
    pub registrations: Vec<Registration>,
    /// Inodes of the sockets that a thread is blocked in accept, poll or select for.
    pub waits: Vec<u64>,
    /// Every thread was blocked in a call that is known: a socket in neither list is not waited for.
    pub all_known: bool,
    /// It has an epoll instance.
    pub epoll: bool,
}

/// A registration of a socket in an epoll instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// The socket's inode.
    pub inode: u64,
    /// The number of the descriptor that was registered.
    pub number: i32,
    /// It is for new connections (EPOLLIN).
    pub input: bool,
    /// The process still has the socket under that number. If not, the registration is a ghost.
    pub live: bool,
}

/// Whether a process accepts from a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepting {
    /// It asks the kernel for new connections.
    Yes,
    /// It is stopped, by SIGSTOP or a debugger.
    Stopped,
    /// It holds the socket and does not ask for its events.
    No,
    /// That could not be seen.
    Unknown,
}

impl Process {
    /// Whether it holds the socket with this inode.
    pub fn holds(&self, inode: u64) -> bool {
        let at = self.activity.holds.partition_point(|(held, _)| *held < inode);
        self.activity.holds.get(at).is_some_and(|(held, _)| *held == inode)
    }

    /// Whether it accepts from the socket with this inode, which it holds.
    pub fn accepting(&self, inode: u64) -> Accepting {
        if self.is_stopped() {
            Accepting::Stopped
        } else if self.asks_for(inode) {
            Accepting::Yes
        } else if self.activity.all_known || (self.is_haproxy() && self.activity.epoll) {
            // haproxy accepts only what its poller told it of, and that is epoll unless -de.
            Accepting::No
        } else {
            Accepting::Unknown
        }
    }

    /// Whether it would accept from the socket if it ran, or may do so unseen.
    pub fn may_accept(&self, inode: u64) -> bool {
        match self.accepting(inode) {
            Accepting::Yes | Accepting::Unknown => true,
            Accepting::Stopped => self.asks_for(inode),
            Accepting::No => false,
        }
    }

    /// Whether it is certain not to accept from the socket now.
    pub fn is_idle_on(&self, inode: u64) -> bool {
        matches!(self.accepting(inode), Accepting::Stopped | Accepting::No)
    }

    fn asks_for(&self, inode: u64) -> bool {
        let asks = |one: &Registration| one.inode == inode && one.live && one.input;
        self.activity.registrations.iter().any(asks) || self.activity.waits.contains(&inode)
    }

    /// Whether it is stopped, by a signal or by a tracer.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    /// Whether it is a haproxy.
    pub fn is_haproxy(&self) -> bool {
        self.program == "haproxy"
    }

    /// What makes processes one running instance of a program: each haproxy is one; workers of
    /// other programs count with their master.
    pub fn instance(&self) -> i32 {
        if self.is_haproxy() { self.pid } else { self.root }
    }

    /// The command line, or the program's name where it has none, fit for a terminal.
    pub fn command_line(&self) -> String {
        let words = self.command.join(" ");
        printable(if words.is_empty() { &self.program } else { &words }).into_owned()
    }
}

/// Serialises what it prints as.
pub(super) fn as_text<S: Serializer>(it: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(it)
}

fn on_one_line<S: Serializer>(command: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&printable(&command.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_accepts() {
        let watch = |input, live| Registration { inode: 7, number: 3, input, live };
        let with = |registrations: Vec<Registration>| Process {
            state: 'S',
            activity: Activity {
                holds: vec![(7, 3)],
                registrations,
                all_known: true,
                ..Activity::default()
            },
            ..Process::default()
        };
        assert!(with(Vec::new()).holds(7) && !with(Vec::new()).holds(8));
        assert_eq!(with(Vec::new()).accepting(7), Accepting::No);
        assert_eq!(with(vec![watch(true, true)]).accepting(7), Accepting::Yes);
        assert_eq!(with(vec![watch(false, true)]).accepting(7), Accepting::No);
        assert_eq!(with(vec![watch(true, false)]).accepting(7), Accepting::No);
        let mut blocked = with(Vec::new());
        blocked.activity.waits = vec![7];
        assert_eq!(blocked.accepting(7), Accepting::Yes);
        let mut unknown = with(Vec::new());
        unknown.activity.all_known = false;
        assert_eq!(unknown.accepting(7), Accepting::Unknown);
        (unknown.program, unknown.activity.epoll) = ("haproxy".to_owned(), true);
        assert_eq!(unknown.accepting(7), Accepting::No);
        let stopped = Process { state: 'T', ..with(vec![watch(true, true)]) };
        assert_eq!(stopped.accepting(7), Accepting::Stopped);
        assert!(stopped.may_accept(7));
    }
}
