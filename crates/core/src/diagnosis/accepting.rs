//! Who accepts from a socket, decided without touching it.
//!
//! A process that holds a listening socket accepts from it if it is asking the
//! kernel for its events: an epoll registration of a descriptor that it still has,
//! with EPOLLIN, or a thread blocked in accept, poll or select for it. A process that
//! is stopped, or that holds the socket and asks for nothing, does not.
//!
//! Limits: a thread that runs just when it is looked at does not show what it waits
//! for, and io_uring never does: then the answer is that nobody knows, and no finding
//! is built on it. A process that asks and then does not take what it is told of (hung in a
//! lock) counts as accepting; its queue shows it.

use super::facts::{Look, Process};

/// Whether a process accepts from a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepting {
    /// It asks the kernel for new connections.
    Yes,
    /// It is stopped, by SIGSTOP or a debugger.
    Stopped,
    /// It holds the socket and does not ask for its events.
    NotAsking,
    /// That could not be seen.
    Unknown,
}

impl Process {
    /// Whether it accepts from the socket with this inode, which it holds.
    pub fn accepting(&self, inode: u64) -> Accepting {
        if matches!(self.state, 'T' | 't') {
            return Accepting::Stopped;
        }
        let mut watches = self.watches.iter().filter(|watch| watch.inode == inode && watch.live);
        if watches.any(|watch| watch.input) || self.waits.contains(&inode) {
            return Accepting::Yes;
        }
        // haproxy accepts only what its poller told it of, and that is epoll unless -de.
        if self.all_known || (self.is_haproxy() && self.epoll) {
            return Accepting::NotAsking;
        }
        Accepting::Unknown
    }

    /// Whether it is a haproxy.
    pub fn is_haproxy(&self) -> bool {
        self.program == "haproxy"
    }

    /// What makes processes one running instance of a program: a haproxy is one by itself,
    /// others count with the processes that they come from (workers with their master).
    pub(super) fn instance(&self) -> i32 {
        if self.is_haproxy() { self.pid } else { self.root }
    }

    /// Whether it would accept from the socket if it was let: it accepts, or it is stopped
    /// with the socket in its poller, or nobody knows.
    pub(super) fn may_accept(&self, inode: u64) -> bool {
        match self.accepting(inode) {
            Accepting::Yes | Accepting::Unknown => true,
            Accepting::Stopped => {
                self.watches.iter().any(|watch| watch.inode == inode && watch.live && watch.input)
                    || self.waits.contains(&inode)
            }
            Accepting::NotAsking => false,
        }
    }
}

impl Look {
    /// The processes that hold a socket.
    pub fn holders(&self, inode: u64) -> impl Iterator<Item = &Process> {
        self.processes.values().filter(move |process| process.holds.contains(&inode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::facts::Watch;

    #[test]
    fn who_asks_accepts() {
        let watch = |input, live| Watch { inode: 7, input, live };
        let base = Process { holds: vec![7], all_known: true, state: 'S', ..Process::default() };
        let with = |watches: Vec<Watch>| Process { watches, ..base.clone() };
        assert_eq!(base.accepting(7), Accepting::NotAsking);
        assert_eq!(with(vec![watch(true, true)]).accepting(7), Accepting::Yes);
        assert_eq!(with(vec![watch(false, true)]).accepting(7), Accepting::NotAsking);
        assert_eq!(with(vec![watch(true, false)]).accepting(7), Accepting::NotAsking);
        assert_eq!(Process { waits: vec![7], ..base.clone() }.accepting(7), Accepting::Yes);
        let unknown = Process { all_known: false, ..base.clone() };
        assert_eq!(unknown.accepting(7), Accepting::Unknown);
        let haproxy = Process { program: "haproxy".to_owned(), epoll: true, ..unknown };
        assert_eq!(haproxy.accepting(7), Accepting::NotAsking);
        let stopped = Process { state: 'T', ..with(vec![watch(true, true)]) };
        assert_eq!(stopped.accepting(7), Accepting::Stopped);
        assert!(stopped.may_accept(7));
    }
}
