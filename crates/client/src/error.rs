//! The errors of this crate.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bindonce_wire::RpcError;

/// Why a call failed. After [`Error::Refused`], and after an error about a single lease, the
/// connection can still be used. After any other error, connect again: the next call on a broken
/// connection returns [`Error::Interrupted`]. (A [`Generation`](crate::Generation) reconnects by
/// itself.) The text does not repeat the [`source`](std::error::Error::source): print the whole
/// chain.
///
/// ```
/// use std::error::Error as _;
///
/// let path = std::path::Path::new("/nonexistent/bindonce.sock");
/// let error = bindonce::Client::connect(path).expect_err("no broker there");
/// eprintln!("error: {error}: {}", error.source().expect("the system's word"));
/// if let Some(hint) = error.hint() {
///     eprintln!("hint: {hint}");
/// }
/// assert!(error.is_absence());
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No broker answers at the path.
    #[error("cannot connect to the broker at {}", path.display())]
    #[non_exhaustive]
    Connect {
        /// The path of the broker's socket.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The broker did not finish by the deadline.
    #[error("the broker did not finish `{during}` within {after:?}")]
    #[non_exhaustive]
    TimedOut {
        /// `connect`, or the method that was called.
        during: &'static str,
        /// How long the call waited.
        after: Duration,
    },
    /// The broker closed the connection before its reply was complete.
    #[error("the broker closed the connection during `{during}`")]
    #[non_exhaustive]
    Closed {
        /// The method that was called.
        during: &'static str,
    },
    /// A system call failed, such as one to send or to receive.
    #[error("cannot talk to the broker")]
    Io(#[source] io::Error),
    /// The broker answered with an error.
    #[error(transparent)]
    Refused(RpcError),
    /// Descriptors were lost on the way; those that arrived have been closed.
    #[error("descriptors were lost on the way: the kernel truncated the message")]
    Truncated,
    /// The reply came with more or fewer descriptors than it lists; all have been closed.
    #[error("the reply lists {expected} listeners, but {received} descriptors came")]
    #[non_exhaustive]
    Descriptors {
        /// How many listeners the reply lists.
        expected: usize,
        /// How many descriptors had arrived when the mismatch was noticed.
        received: usize,
    },
    /// The reply does not follow the protocol.
    #[error("the broker's reply makes no sense: {0}")]
    Protocol(String),
    /// The parameters cannot be written as JSON.
    #[error("the parameters cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// An earlier call on this connection failed or was dropped half-way.
    #[error("an earlier call on this connection was left half-way")]
    Interrupted,
    /// The socket is not of the kind that the caller wants.
    #[error("listener {name:?} ({address}) is {found}, not {wanted}")]
    #[non_exhaustive]
    Kind {
        /// The listener's name.
        name: String,
        /// Its address.
        address: String,
        /// The kind that the caller wants.
        wanted: &'static str,
        /// The kind of the socket.
        found: &'static str,
    },
    /// The caller wants one listener, and the claim gives several: a range of ports.
    #[error("the claim gives {count} listeners, not one")]
    #[non_exhaustive]
    NotOne {
        /// How many listeners the claim gives.
        count: usize,
    },
    /// A newer generation of the service is ready or serves, so this one must not accept (any
    /// more).
    #[error("generation {generation} of service {service} has been superseded{}",
        .successor.map(|newer| format!(" by generation {newer}")).unwrap_or_default())]
    #[non_exhaustive]
    Superseded {
        /// The name of the service.
        service: String,
        /// The number of this generation.
        generation: u64,
        /// The number of the newer generation, if the broker named it.
        successor: Option<u64>,
    },
    /// Without a broker ([`Generation::join_or_bind`](crate::Generation::join_or_bind)): the
    /// claimed socket was not passed to this process, and the process cannot bind it.
    #[error("cannot bind {listen}")]
    #[non_exhaustive]
    Bind {
        /// The claim; `LISTEN_FDS` if the passed sockets cannot be taken.
        listen: String,
        /// The error of the system call.
        source: io::Error,
    },
    /// The system does not say what the socket is, or cannot use it.
    #[error("cannot use listener {name:?} ({address})")]
    #[non_exhaustive]
    Descriptor {
        /// The listener's name.
        name: String,
        /// Its address.
        address: String,
        /// The error of the system call.
        source: io::Error,
    },
}

impl Error {
    /// What a person can do next, where there is advice.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Connect { path, source } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
                    "start one with `bindonce serve --socket {}`, or set BINDONCE_SOCKET to the \
                     path of a running one",
                    path.display()
                ),
                io::ErrorKind::PermissionDenied => {
                    "the socket is open to its owner and group: run as one of them".to_owned()
                }
                io::ErrorKind::InvalidInput => {
                    "the path of a UNIX socket has at most 107 bytes: choose a shorter one"
                        .to_owned()
                }
                _ => return None,
            },
            Self::TimedOut { .. } => {
                "look at the broker's log and load, or allow more time".to_owned()
            }
            Self::Closed { .. } | Self::Interrupted => {
                "connect again; the broker's log says why it closed".to_owned()
            }
            Self::Refused(error) => return error.hint().map(str::to_owned),
            Self::Truncated => "this process has reached its soft limit of open files (RLIMIT_NOFILE): start it \
                 with a higher one (LimitNOFILE= in the unit, ulimit -n, --ulimit nofile= of a container)"
                .to_owned(),
            Self::Descriptors { .. } | Self::Protocol(_) => {
                "is it a bindonce broker that listens there? `bindonce status` tells its version"
                    .to_owned()
            }
            Self::Kind { found, .. } => format!("it was claimed as {found}: check its address"),
            Self::NotOne { .. } => "claim a range of ports with `claim`".to_owned(),
            Self::Superseded { .. } => {
                "end this process; to run its version again, start it again".to_owned()
            }
            Self::Bind { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => "another process has it, perhaps this one's older start: have the process that \
                     starts it pass the socket (`bindonce run --listen`, a socket unit), or start a broker (`bindonce serve`)"
                    .to_owned(),
                io::ErrorKind::NotFound => "name it where the sockets are passed (`--listen NAME=ADDR` of `bindonce run`, \
                     FileDescriptorName= of a socket unit), or claim an address"
                    .to_owned(),
                _ => return None,
            },
            Self::Io(_) | Self::Encode(_) | Self::Descriptor { .. } => return None,
        };
        Some(hint)
    }

    /// Whether no broker answered, or the broker closed the connection: another broker may follow.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Connect { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            Self::Closed { .. } => true,
            _ => false,
        }
    }

    /// The broker's refusal, if that is the error.
    pub fn refusal(&self) -> Option<&RpcError> {
        match self {
            Self::Refused(error) => Some(error),
            _ => None,
        }
    }
}
