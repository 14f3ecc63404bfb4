//! The state of a generation, without its connection: what it sends to the broker, and what the broker has
//! sent. The blocking and the tokio generation share it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use bindonce_core::name::Name;
use bindonce_wire::message::Notification;
use bindonce_wire::params::{Joining, State};
use bindonce_wire::result::JoinResult;

use crate::claim::{Claim, Give};
use crate::error::Error;
use crate::lease::Lease;

/// How long one attempt to reach the next broker may take.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(1);

/// Between two attempts, while no broker answers: nothing tells when one listens.
const AGAIN: Duration = Duration::from_millis(20);

/// Between two attempts once a broker has answered and refused.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);

/// How long to look for the next broker, to report that this generation has stopped. The
/// next broker waits no longer for it either.
pub(crate) const FAREWELL: Duration = Duration::from_secs(3);

/// The result of a stop.
#[must_use = "a generation that was recalled serves again"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// This generation accepts nothing any more: it finishes what is connected, and ends.
    Retired,
    /// The newer one that was ready has gone before it was let in, and no other waits. This
    /// generation is the one that serves, as before: it claims its listeners again, the same
    /// sockets, and continues. (To end it anyway, drop the generation.)
    Recalled,
}

/// The state of a generation that has joined.
#[derive(Debug)]
pub(crate) struct Membership {
    service: Name,
    /// No broker keeps the order: it serves when it says so.
    alone: bool,
    number: Option<u64>,
    wanted: State,
    /// The broker has let it in, and not heard that it has stopped.
    serves: bool,
    retired: bool,
    /// It has stopped, and no longer serves in any case.
    over: bool,
    /// The newer one, if the broker has named it.
    successor: Option<u64>,
    /// What is given back to a broker that follows one that was lost.
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    listen: String,
    inode: u64,
    fd: OwnedFd,
}

impl Membership {
    pub(crate) fn new(service: &Name) -> Self {
        Self {
            service: service.clone(),
            alone: false,
            number: None,
            wanted: State::Starting,
            serves: false,
            retired: false,
            over: false,
            successor: None,
            held: Vec::new(),
        }
    }

    /// One whose order no broker keeps, with the number that a supervisor gave it.
    pub(crate) fn alone(service: &Name, number: Option<u64>) -> Self {
        Self { alone: true, number, ..Self::new(service) }
    }

    pub(crate) fn service(&self) -> &Name {
        &self.service
    }

    /// The number; 0 where nobody gave one.
    pub(crate) fn number(&self) -> u64 {
        self.number.unwrap_or(0)
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired
    }

    /// Whether it has stopped and drains.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// What it says to the broker now.
    pub(crate) fn joining(&self) -> Joining {
        Joining {
            service: self.service.clone(),
            generation: self.number,
            pid: Some(std::process::id()),
            state: self.wanted,
            ordered: true,
            // Once it drains it makes room for any successor.
            successor: self.successor.filter(|_| self.wanted == State::Draining && !self.over),
        }
    }

    /// From now on it is ready.
    pub(crate) fn ask_to_serve(&mut self) {
        if self.wanted == State::Starting {
            self.wanted = State::Serving;
            self.serves |= self.alone;
        }
    }

    /// It accepts no more.
    pub(crate) fn stop(&mut self) {
        self.wanted = State::Draining;
        self.retired = true;
    }

    /// What has come of having stopped, now that the broker has answered, or no broker has been
    /// found: then no successor waits, and one that comes need not.
    pub(crate) fn stopped(&mut self) -> Stopped {
        if self.wanted == State::Serving {
            return Stopped::Recalled;
        }
        self.over = true;
        self.held.clear();
        Stopped::Retired
    }

    /// What the broker answers to it.
    pub(crate) fn joined(&mut self, result: &JoinResult) -> Result<(), Error> {
        let JoinResult { generation: Some(number), state: Some(state), .. } = result else {
            return Err(Error::Protocol("no number of a generation in the reply".to_owned()));
        };
        self.number = Some(*number);
        match state {
            State::Starting => {}
            State::Serving => {
                self.serves = true;
                if self.wanted == State::Draining {
                    // The newer one that it stopped for has gone.
                    self.stay(State::Serving);
                }
            }
            State::Draining => {
                self.serves = false;
                self.retired = true;
            }
        }
        Ok(())
    }

    /// What the broker says unasked.
    pub(crate) fn heard(&mut self, notification: &Notification) {
        match notification {
            Notification::Serve(turn) if Some(turn.generation) == self.number => self.serves = true,
            // Once it has stopped, the answer to that tells.
            Notification::Stay(turn)
                if Some(turn.generation) == self.number && self.wanted != State::Draining =>
            {
                self.stay(self.wanted);
            }
            Notification::Retire(turn) if Some(turn.generation) == self.number => {
                self.retired = true;
                self.successor = turn.successor;
            }
            _ => {}
        }
    }

    /// It need not retire.
    fn stay(&mut self, wanted: State) {
        self.wanted = wanted;
        self.retired = false;
        self.successor = None;
    }

    /// Whether it may accept: not yet, yes, or never.
    pub(crate) fn may_serve(&self) -> Result<bool, Error> {
        // One that has been let in serves until it has said that it stopped, also if it is to
        // retire at once.
        if self.retired && !self.serves {
            return Err(Error::Superseded {
                service: self.service.to_string(),
                generation: self.number(),
                successor: self.successor,
            });
        }
        Ok(self.serves)
    }

    /// What it claims goes with it if it never serves.
    pub(crate) fn claims(claims: &[Claim]) -> Vec<Claim> {
        claims.iter().cloned().map(Claim::tentative).collect()
    }

    /// Keeps what is needed to give these back.
    pub(crate) fn keep(&mut self, leases: &[Lease]) -> Result<(), Error> {
        for lease in leases {
            if self.held.iter().any(|held| held.inode == lease.inode()) {
                continue;
            }
            let fd = lease.as_fd().try_clone_to_owned().map_err(Error::Io)?;
            self.held.push(Held { listen: lease.listen(), inode: lease.inode(), fd });
        }
        Ok(())
    }

    /// What the next broker gets back.
    pub(crate) fn give(&self) -> Vec<Give<'_>> {
        self.held.iter().map(|held| Give::new(held.listen.as_str(), held.fd.as_fd())).collect()
    }
}

/// What an error on the way to the next broker means: when to try again, and whether it is
/// worth telling.
pub(crate) fn after(error: Error) -> (Duration, Option<Error>) {
    match error {
        Error::Connect { .. } | Error::Closed { .. } | Error::Interrupted => (AGAIN, None),
        Error::TimedOut { .. } | Error::Io(_) => (ATTEMPT, None),
        error => (REFUSED_AGAIN, Some(error)),
    }
}

/// Whether the connection is lost by this error.
pub(crate) fn is_over(error: &Error) -> bool {
    !matches!(error, Error::Refused(_) | Error::Kind { .. } | Error::Descriptor { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bindonce_wire::message::Turn;

    fn result(number: u64, state: State) -> JoinResult {
        JoinResult { joined: true, generation: Some(number), state: Some(state) }
    }

    fn turn(generation: u64, successor: Option<u64>) -> Turn {
        Turn { service: "edge".to_owned(), generation, successor }
    }

    #[test]
    fn it_serves_on_if_the_newer_one_has_gone() {
        let mut membership = Membership::new(&"edge".parse().expect("name"));
        membership.joined(&result(7, State::Starting)).expect("joined");
        // Overtaken before it was ready, and not for long.
        membership.heard(&Notification::Retire(turn(7, Some(8))));
        membership.heard(&Notification::Stay(turn(7, None)));
        assert!(!membership.is_retired() && !membership.may_serve().expect("not superseded"));
        membership.ask_to_serve();
        membership.joined(&result(7, State::Serving)).expect("joined");
        membership.heard(&Notification::Retire(turn(7, Some(9))));
        // That it is ready, said again, undoes nothing.
        membership.joined(&result(7, State::Serving)).expect("joined");
        assert!(membership.is_retired());
        membership.stop();
        // The word to stay crosses what it says: the answer counts.
        membership.heard(&Notification::Stay(turn(7, None)));
        membership.joined(&result(7, State::Serving)).expect("joined");
        assert_eq!(membership.stopped(), Stopped::Recalled);
        assert!(!membership.is_retired() && membership.may_serve().expect("it serves on"));
        assert_eq!(
            (membership.joining().state, membership.joining().successor),
            (State::Serving, None)
        );
        // Who stops of its own accord does not depend on others.
        membership.stop();
        assert_eq!(
            (membership.joining().state, membership.joining().successor),
            (State::Draining, None)
        );
    }

    #[test]
    fn it_serves_when_it_is_told_and_never_once_it_is_superseded() {
        let mut membership = Membership::new(&"edge".parse().expect("name"));
        assert_eq!(membership.joining().generation, None);
        membership.joined(&result(7, State::Starting)).expect("joined");
        assert_eq!((membership.joining().generation, membership.number()), (Some(7), 7));
        membership.ask_to_serve();
        membership.joined(&result(7, State::Starting)).expect("joined");
        assert!(!membership.may_serve().expect("not superseded"));
        membership.heard(&Notification::Serve(turn(8, None)));
        assert!(!membership.may_serve().expect("it is another's"));
        membership.heard(&Notification::Serve(turn(7, None)));
        assert!(membership.may_serve().expect("served"));
        membership.heard(&Notification::Retire(turn(7, Some(9))));
        assert!(membership.is_retired() && membership.may_serve().expect("it has not stopped"));
        // It stays what it says after it has stopped, and a late readiness does not undo it.
        membership.stop();
        membership.ask_to_serve();
        assert_eq!(
            (membership.joining().state, membership.joining().successor),
            (State::Draining, Some(9))
        );
        membership.joined(&result(7, State::Draining)).expect("joined");
        assert_eq!(membership.stopped(), Stopped::Retired);
        let error = membership.may_serve().expect_err("superseded");
        assert!(matches!(error, Error::Superseded { generation: 7, successor: Some(9), .. }));
        assert_eq!(membership.joining().successor, None, "whatever becomes of that one");
        let old = JoinResult { joined: true, generation: None, state: None };
        assert!(matches!(membership.joined(&old), Err(Error::Protocol(_))));
    }
}
