//! The error of a request to a supervisor.
//!
//! A supervisor speaks the broker's protocol, so the same client asks it. The errors of that client
//! name a broker, which is the peer of every other program that uses it.

use std::{error, fmt, io};

use bindonce::Error;
use bindonce_core::duration;

/// A client's error whose peer is a supervisor.
#[derive(Debug)]
pub(crate) struct Unanswered(pub(crate) Error);

impl Unanswered {
    /// What a person can do next, where there is advice.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match &self.0 {
            Error::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run this as root, or as the user that the supervisor runs as"
            }
            Error::Connect { .. } => return None,
            Error::TimedOut { .. } => "look at the supervisor's log and load, or allow more time",
            Error::Closed { .. } | Error::Interrupted => {
                "try again; the supervisor's log says why it closed the connection"
            }
            Error::Descriptors { .. } | Error::Protocol(_) => {
                "is it a bindonce supervisor that listens there? `bindonce status` lists them"
            }
            other => return other.hint(),
        };
        Some(hint.to_owned())
    }
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Error::Connect { path, source, .. } => {
                write!(f, "cannot connect to the supervisor at {}: {source}", path.display())
            }
            Error::TimedOut { during, after, .. } => {
                let after = duration::format(*after);
                write!(f, "the supervisor did not finish `{during}` within {after}")
            }
            Error::Closed { during, .. } => {
                write!(f, "the supervisor closed the connection during `{during}`")
            }
            Error::Io(source) => write!(f, "cannot talk to the supervisor: {source}"),
            Error::Protocol(what) => write!(f, "the supervisor's reply makes no sense: {what}"),
            // The others name no peer.
            other => match error::Error::source(other) {
                Some(source) => write!(f, "{other}: {source}"),
                None => write!(f, "{other}"),
            },
        }
    }
}

impl error::Error for Unanswered {}
