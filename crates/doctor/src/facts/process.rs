//! A process, and whether it accepts from a socket that it holds, decided without disturbing
//! either.
//!
//! A process accepts from a listening socket if it asks the kernel for the socket's events: by an
//! epoll registration, with EPOLLIN, of a descriptor that it still has, or by a thread blocked in
//! accept, poll or select for the socket. A stopped process does not accept, nor does one that
//! holds the socket and asks for nothing.
//!
//! Limits: a running thread shows no wait, and io_uring never does. The answer is then
//! [`Accepting::Unknown`], on which no finding is built. A process that asks but takes nothing
//! (hung in a lock) counts as accepting; its queue shows the problem.

use std::fmt::Display;
use std::time::Duration;

use bindonce_core::text::printable;
use bindonce_core::time::Timestamp;
use serde::{Serialize, Serializer};

/// A process that holds or watches one of the sockets, or is a haproxy.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    #[serde(skip)]
    pub(crate) parent: i32,
    /// The topmost ancestor that runs the same program; the process itself if there is none.
    #[serde(skip)]
    pub(crate) root: i32,
    /// The name of the program, without a loader in front.
    pub(crate) program: String,
    #[serde(serialize_with = "on_one_line")]
    pub(crate) command: Vec<String>,
    /// The network namespace ([`super::Network::id`]); None where it may not be read.
    #[serde(skip)]
    pub(crate) network: Option<u64>,
    #[serde(serialize_with = "as_text")]
    pub(crate) started: Timestamp,
    /// The process state as in ps(1).
    pub(crate) state: char,
    /// Whether a signal that stops haproxy (SIGUSR1, SIGTERM) is pending.
    #[serde(skip)]
    pub(crate) stop_pending: bool,
    /// Whether it may bind every port (CAP_NET_BIND_SERVICE).
    #[serde(skip)]
    pub(crate) binds_any_port: bool,
    #[serde(flatten)]
    pub(crate) usage: Usage,
    /// Its relation to the sockets.
    #[serde(skip)]
    pub(crate) activity: Activity,
}

/// The resource usage of a process.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Usage {
    #[serde(skip)]
    pub(crate) processor: Duration,
    pub(crate) memory: u64,
    pub(crate) descriptors: u64,
    /// The soft limit on descriptors; 0 if it is unlimited or unknown.
    pub(crate) descriptor_limit: u64,
    /// Number of descriptors that are sockets.
    #[serde(skip)]
    pub(crate) sockets: u64,
}

/// The relation of a process to the sockets of the look.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Activity {
    /// Inode and number of each descriptor of these sockets, sorted.
    pub(crate) holds: Vec<(u64, i32)>,
    /// Registrations of these sockets in the process's epoll instances.
    pub(crate) registrations: Vec<Registration>,
    /// Inodes of these sockets that a thread is blocked on in accept, poll or select.
    pub(crate) waits: Vec<u64>,
    /// Whether every thread was blocked in a known call, so that no thread waits for a socket that
    /// is in neither list.
    pub(crate) all_known: bool,
    /// Whether it has an epoll instance.
    pub(crate) epoll: bool,
}

/// A registration of a socket in an epoll instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) inode: u64,
    /// The number of the descriptor that was registered.
    pub(crate) number: i32,
    /// Whether it is for new connections (EPOLLIN).
    pub(crate) input: bool,
    /// Whether the process still has the socket under that number. If not, the registration is a
    /// ghost.
    pub(crate) live: bool,
}

/// Whether a process accepts from a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accepting {
    /// The process asks the kernel for new connections.
    Yes,
    /// The process is stopped, by SIGSTOP or a debugger.
    Stopped,
    /// The process holds the socket and does not ask for its events.
    No,
    /// Not visible.
    Unknown,
}

impl Process {
    /// Whether the process holds the socket with this inode.
    pub(crate) fn holds(&self, inode: u64) -> bool {
        let at = self.activity.holds.partition_point(|(held, _)| *held < inode);
        self.activity.holds.get(at).is_some_and(|(held, _)| *held == inode)
    }

    /// Whether the process accepts from the socket with this inode, which it holds.
    pub(crate) fn accepting(&self, inode: u64) -> Accepting {
        if self.is_stopped() {
            Accepting::Stopped
        } else if self.asks_for(inode) {
            Accepting::Yes
        } else if self.activity.all_known || (self.is_haproxy() && self.activity.epoll) {
            // haproxy accepts only on events of its poller, which is epoll unless -de was given.
            Accepting::No
        } else {
            Accepting::Unknown
        }
    }

    /// Whether the process would accept from the socket if it ran, or may accept unseen.
    pub(crate) fn may_accept(&self, inode: u64) -> bool {
        match self.accepting(inode) {
            Accepting::Yes | Accepting::Unknown => true,
            Accepting::Stopped => self.asks_for(inode),
            Accepting::No => false,
        }
    }

    /// Whether the process certainly does not accept from the socket now.
    pub(crate) fn is_idle_on(&self, inode: u64) -> bool {
        matches!(self.accepting(inode), Accepting::Stopped | Accepting::No)
    }

    fn asks_for(&self, inode: u64) -> bool {
        let asks = |one: &Registration| one.inode == inode && one.live && one.input;
        self.activity.registrations.iter().any(asks) || self.activity.waits.contains(&inode)
    }

    /// Whether the process is stopped, by a signal or a tracer.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    /// Whether the process is a haproxy.
    pub(crate) fn is_haproxy(&self) -> bool {
        self.program == "haproxy"
    }

    /// The identity of a running instance of a program: each haproxy process is one; workers of
    /// other programs count with their master.
    pub(crate) fn instance(&self) -> i32 {
        if self.is_haproxy() { self.pid } else { self.root }
    }

    /// The command line, or the program's name if it is empty, fit for a terminal.
    pub(crate) fn command_line(&self) -> String {
        let words = self.command.join(" ");
        printable(if words.is_empty() { &self.program } else { &words }).into_owned()
    }
}

/// Serialises a value as its printed text.
fn as_text<S: Serializer>(it: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
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
