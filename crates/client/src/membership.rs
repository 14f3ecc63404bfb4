//! The state of a generation, without its connection: what to report to the broker, and what the
//! broker's messages mean. The blocking and the tokio generation share it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use bindonce_core::name::Name;
use bindonce_wire::message::Notification;
use bindonce_wire::params::{Joining, State};
use bindonce_wire::result::JoinResult;

use crate::claim::{Claim, Give};
use crate::error::Error;
use crate::lease::Lease;

/// How long connecting to the next broker, and each request of the attempt, may take.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(1);

/// The wait between two attempts while no broker answers: no event says when one listens.
const AGAIN: Duration = Duration::from_millis(20);

/// The wait between two attempts after a broker has refused.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);

/// How long to look for the next broker, to report that this generation has stopped. The next
/// broker waits no longer for that report either.
pub(crate) const FAREWELL: Duration = Duration::from_secs(3);

/// The result of [`Generation::stopped`](crate::Generation::stopped).
#[must_use = "a generation that was recalled serves again"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// This generation accepts no more: it finishes its connections and ends.
    Retired,
    /// The newer generation has gone before it could accept, and no other waits. This generation
    /// serves as before: it claims its listeners again, which gives the same sockets, and
    /// continues. (To end it anyway, drop the generation.)
    Recalled,
}

/// The state of a generation that has joined.
#[derive(Debug)]
pub(crate) struct Membership {
    service: Name,
    /// Works without a broker: the generation serves as soon as it is ready.
    alone: bool,
    number: Option<u64>,
    wanted: State,
    /// The broker lets the generation accept, and has not heard that it stopped.
    serves: bool,
    retired: bool,
    /// The generation has stopped for good and drains.
    over: bool,
    /// The number of the newer generation, if the broker named it.
    successor: Option<u64>,
    /// Listeners to give back to the next broker if this one is lost.
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

    /// A generation without a broker, with the number that a supervisor gave it.
    pub(crate) fn alone(service: &Name, number: Option<u64>) -> Self {
        Self { alone: true, number, ..Self::new(service) }
    }

    pub(crate) fn service(&self) -> &Name {
        &self.service
    }

    /// The number; 0 if there is none.
    pub(crate) fn number(&self) -> u64 {
        self.number.unwrap_or(0)
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired
    }

    /// Whether the generation has stopped for good and drains.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// The report to the broker: the state of the generation now.
    pub(crate) fn joining(&self) -> Joining {
        Joining {
            service: self.service.clone(),
            generation: self.number,
            pid: Some(std::process::id()),
            state: self.wanted,
            ordered: true,
            // A generation that drains makes room for any successor.
            successor: self.successor.filter(|_| self.wanted == State::Draining && !self.over),
        }
    }

    /// The generation is ready from now on.
    pub(crate) fn ask_to_serve(&mut self) {
        if self.wanted == State::Starting {
            self.wanted = State::Serving;
            self.serves |= self.alone;
        }
    }

    /// The generation accepts no more.
    pub(crate) fn stop(&mut self) {
        self.wanted = State::Draining;
        self.retired = true;
    }

    /// The result of the stop, once the broker has answered or no broker was found. Without a
    /// broker no successor waits, and a later one need not wait.
    pub(crate) fn stopped(&mut self) -> Stopped {
        if self.wanted == State::Serving {
            return Stopped::Recalled;
        }
        self.over = true;
        self.held.clear();
        Stopped::Retired
    }

    /// Takes the broker's answer to the report.
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
                    // The newer generation for which this one stopped has gone.
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

    /// Takes a notification from the broker.
    pub(crate) fn notified(&mut self, notification: &Notification) {
        match notification {
            Notification::Serve(turn) if Some(turn.generation) == self.number => self.serves = true,
            // After a stop, the answer to the stop decides.
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

    /// The generation need not retire.
    fn stay(&mut self, wanted: State) {
        self.wanted = wanted;
        self.retired = false;
        self.successor = None;
    }

    /// Whether the generation may accept: yes, not yet, or (an error) never.
    pub(crate) fn may_serve(&self) -> Result<bool, Error> {
        // A generation that was let in serves until it reports that it stopped, even if it must
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

    /// Makes the claims tentative: if the generation never serves, its new listeners go with it.
    pub(crate) fn claims(claims: &[Claim]) -> Vec<Claim> {
        claims.iter().cloned().map(Claim::tentative).collect()
    }

    /// Keeps descriptors of these leases, to give the listeners back to the next broker.
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

    /// The listeners to give back to the next broker.
    pub(crate) fn give(&self) -> Vec<Give<'_>> {
        self.held.iter().map(|held| Give::new(held.listen.as_str(), held.fd.as_fd())).collect()
    }
}

/// After a failed attempt to reach the next broker: when to try again, and the error if it is worth
/// reporting.
pub(crate) fn after(error: Error) -> (Duration, Option<Error>) {
    match error {
        Error::Connect { .. } | Error::Closed { .. } | Error::Interrupted => (AGAIN, None),
        Error::TimedOut { .. } | Error::Io(_) => (ATTEMPT, None),
        error => (REFUSED_AGAIN, Some(error)),
    }
}

/// Whether this error breaks the connection.
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
        membership.notified(&Notification::Retire(turn(7, Some(8))));
        membership.notified(&Notification::Stay(turn(7, None)));
        assert!(!membership.is_retired() && !membership.may_serve().expect("not superseded"));
        membership.ask_to_serve();
        membership.joined(&result(7, State::Serving)).expect("joined");
        membership.notified(&Notification::Retire(turn(7, Some(9))));
        // A repeated report that it is ready undoes nothing.
        membership.joined(&result(7, State::Serving)).expect("joined");
        assert!(membership.is_retired());
        membership.stop();
        // The message to stay crosses the report of the stop: the answer counts.
        membership.notified(&Notification::Stay(turn(7, None)));
        membership.joined(&result(7, State::Serving)).expect("joined");
        assert_eq!(membership.stopped(), Stopped::Recalled);
        assert!(!membership.is_retired() && membership.may_serve().expect("it serves on"));
        assert_eq!(
            (membership.joining().state, membership.joining().successor),
            (State::Serving, None)
        );
        // A generation that stops of its own accord does not depend on others.
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
        membership.notified(&Notification::Serve(turn(8, None)));
        assert!(!membership.may_serve().expect("it is another's"));
        membership.notified(&Notification::Serve(turn(7, None)));
        assert!(membership.may_serve().expect("served"));
        membership.notified(&Notification::Retire(turn(7, Some(9))));
        assert!(membership.is_retired() && membership.may_serve().expect("it has not stopped"));
        // After a stop it reports that it drains, and late readiness does not undo that.
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
