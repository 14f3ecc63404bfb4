//! What can go wrong between a client and a broker.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bindonce_wire::RpcError;

/// Why a call failed. After [`Error::Refused`] and those about a single lease
/// the connection can still be used; after any other it cannot, and the
/// next call says [`Error::Interrupted`]: connect again. (A [`Generation`](crate::Generation) does that
/// by itself.) The text does not repeat the [`source`](std::error::Error::source): print the whole chain.
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
        /// Where the broker should be.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The broker was not done by the deadline.
    #[error("the broker did not finish `{during}` within {after:?}")]
    #[non_exhaustive]
    TimedOut {
        /// `connect`, or the method that was called.
        during: &'static str,
        /// The timeout that was set.
        after: Duration,
    },
    /// The broker closed the connection before its reply was complete.
    #[error("the broker closed the connection during `{during}`")]
    #[non_exhaustive]
    Closed {
        /// The method that was called.
        during: &'static str,
    },
    /// The system refused to send or receive.
    #[error("cannot talk to the broker")]
    Io(#[source] io::Error),
    /// The broker answered with an error.
    #[error(transparent)]
    Refused(RpcError),
    /// Descriptors were lost on the way; those that came have been closed.
    #[error("descriptors were lost on the way: the kernel truncated the message")]
    Truncated,
    /// More or fewer descriptors came than the reply lists; all have been closed.
    #[error("the reply lists {expected} listeners, but {received} descriptors came")]
    #[non_exhaustive]
    Descriptors {
        /// How many listeners the reply lists.
        expected: usize,
        /// How many descriptors had come when that was noticed.
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
    /// The socket is not what the caller wants to use it as.
    #[error("listener {name:?} ({address}) is {found}, not {wanted}")]
    #[non_exhaustive]
    Kind {
        /// The listener's name.
        name: String,
        /// Its address.
        address: String,
        /// What the caller wants.
        wanted: &'static str,
        /// What the socket is.
        found: &'static str,
    },
    /// One listener was wanted, and the claim is of several: a range of ports.
    #[error("the claim gives {count} listeners, not one")]
    #[non_exhaustive]
    NotOne {
        /// How many it gives.
        count: usize,
    },
    /// A newer generation of the service is ready or serves: this one must not accept (any more).
    #[error("generation {generation} of service {service} has been superseded{}",
        .successor.map(|newer| format!(" by generation {newer}")).unwrap_or_default())]
    #[non_exhaustive]
    Superseded {
        /// The service.
        service: String,
        /// This generation.
        generation: u64,
        /// The newer one, where the broker has named it.
        successor: Option<u64>,
    },
    /// Without a broker: a claim is of no socket that was passed to this process, and this process cannot bind it itself
    /// ([`Generation::join_or_bind`](crate::Generation::join_or_bind)).
    #[error("cannot bind {listen}")]
    #[non_exhaustive]
    Bind {
        /// What was claimed; `LISTEN_FDS` where what was passed cannot be taken.
        listen: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The system does not tell what a socket is, or cannot use it.
    #[error("cannot use listener {name:?} ({address})")]
    #[non_exhaustive]
    Descriptor {
        /// The listener's name.
        name: String,
        /// Its address.
        address: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// What a person can do next.
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
                io::ErrorKind::AddrInUse => "another process has it, perhaps this one's older start: have whoever starts it \
                     pass the socket (`bindonce run --listen`, a socket unit), or start a broker (`bindonce serve`)"
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

    /// Whether there was no broker, or it went away meanwhile: another may come.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Connect { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            }
            Self::Closed { .. } => true,
            _ => false,
        }
    }

    /// The broker's answer, if that is what went wrong.
    pub fn refusal(&self) -> Option<&RpcError> {
        match self {
            Self::Refused(error) => Some(error),
            _ => None,
        }
    }
}
