//! The errors of a supervisor.

use std::io;
use std::path::{Path, PathBuf};

use bindonce_core::generation::GenerationId;
use bindonce_core::name::Name;
use bindonce_core::text::count;
use bindonce_haproxy::config;
use bindonce_sys::limits::Reached;

use crate::disk::fallback;

/// Why a supervisor or a generation could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The service's directory cannot be used.
    #[error("the service's directory {path} cannot be used: {why}", path = .path.display())]
    Directory {
        /// The directory, or the file in it.
        path: PathBuf,
        /// The system's answer.
        why: io::Error,
    },
    /// The state that the last supervisor saved cannot be read.
    #[error("the state of the service's generations cannot be read from {path}: {why}", path = .path.display())]
    State {
        /// The file, which stays as it is.
        path: PathBuf,
        /// The system's answer.
        why: io::Error,
    },
    /// Another supervisor has this service.
    #[error(
        "service \"{service}\" already has a supervisor{pid}: reload it with \
         `bindonce reload --name {service}`, or choose another name with --name",
        pid = .pid.map(|pid| format!(", pid {pid}")).unwrap_or_default()
    )]
    AlreadySupervised {
        /// The service.
        service: Name,
        /// The pid of its supervisor, if it could be read.
        pid: Option<i32>,
    },
    /// The broker cannot be reached.
    #[error("no broker answers at {}{}", socket.display(), why_not(.why))]
    NoBroker {
        /// The broker's control socket.
        socket: PathBuf,
        /// The reason. Not a `source`, because the message already contains it.
        why: Box<bindonce::Error>,
    },
    /// A broker was started and did not come up.
    #[error("a broker was started for {socket} and did not come up: {reason}", socket = .socket.display())]
    BrokerNotUp {
        /// The broker's control socket.
        socket: PathBuf,
        /// Why the broker is not up.
        reason: String,
    },
    /// A running haproxy cannot be replaced.
    #[error(transparent)]
    Replaced(#[from] crate::adopt::Error),
    /// The broker refused a claim.
    #[error("{0}")]
    Claim(Box<bindonce::Error>),
    /// The broker refused the claim of one configuration line.
    #[error("{place}: {section}: {source}")]
    ClaimAt {
        /// The line.
        place: config::Place,
        /// Its section.
        section: String,
        /// What the broker said.
        source: Box<bindonce::Error>,
    },
    /// haproxy itself has bound an address that a line now names.
    #[error(
        "{place}: {section}: generation {generation} of this service has bound {address} by itself, as a stats socket or a \
         local peer, and {why}"
    )]
    OwnAddress {
        /// The line that names the address, or one that overlaps it.
        place: config::Place,
        /// Its section.
        section: String,
        /// The address that haproxy has bound.
        address: String,
        /// The generation that bound it.
        generation: GenerationId,
        /// Why the broker cannot take the socket from that generation.
        why: String,
    },
    /// The configuration cannot be used.
    #[error(transparent)]
    Configuration(#[from] config::Error),
    /// A reload would leave no listener.
    #[error(
        "the configuration has nothing for clients to connect to, and {} serve{} now: {}",
        count(.served.len(), "listener"), if .served.len() == 1 { "s" } else { "" }, few(.served)
    )]
    NothingLeft {
        /// The listeners that serve.
        served: Vec<String>,
    },
    /// A variable of a program cannot be filled in.
    #[error(transparent)]
    Variable(#[from] crate::program::TemplateError),
    /// The prepared start is for another kind of program.
    #[error("the rendered copy is of another kind of program")]
    NotPrepared,
    /// A system call failed.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// This process may open no more descriptors.
    #[error("{failed}")]
    LimitReached {
        /// What failed.
        failed: Box<Error>,
        /// The process whose limit it is, and the limit.
        reached: Reached,
    },
    /// A system call failed, with an error that names the objects concerned.
    #[error(transparent)]
    Sys(#[from] bindonce_sys::Error),
}

impl Error {
    /// For `map_err`: a system call that failed while `doing`.
    pub(crate) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let full = source.raw_os_error() == Some(nix::libc::EMFILE);
            Self::System { doing, source }.with_limit(full)
        }
    }

    /// The saved state at `path` cannot be read.
    pub(crate) fn state(path: &Path, why: io::Error) -> Self {
        let full = why.raw_os_error() == Some(nix::libc::EMFILE);
        Self::State { path: path.to_owned(), why }.with_limit(full)
    }

    /// The broker refused a claim, or did not answer.
    pub(crate) fn claim(source: bindonce::Error) -> Self {
        // Descriptors are lost at this process's own limit, which the library does not name.
        let full = matches!(source, bindonce::Error::Truncated);
        Self::Claim(Box::new(source)).with_limit(full)
    }

    fn with_limit(self, full: bool) -> Self {
        match full {
            true => Self::LimitReached { failed: Box::new(self), reached: Reached::now() },
            false => self,
        }
    }

    /// The remedy, where the message does not contain it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoBroker { socket, .. } => {
                Some(format!("start one with `bindonce serve --socket {}`", socket.display()))
            }
            Self::Directory { why, .. } => full_or_read_only(why).or_else(|| no_access(why)),
            Self::State { why, .. } => no_access(why).or_else(|| {
                Some(
                    "start the service again when the file can be read; or move it away, and the generations are found \
                     by what /proc and the broker report. Running generations keep serving"
                        .to_owned(),
                )
            }),
            Self::Sys(error) => {
                let system = error.errno().map(io::Error::from_raw_os_error);
                error.hint().or_else(|| full_or_read_only(&system?))
            }
            Self::Claim(source) | Self::ClaimAt { source, .. } => source.hint(),
            Self::OwnAddress { .. } => Some(
                "reload once without that line and without the one that had the address before, so that haproxy closes it; \
                 then reload with this line"
                    .to_owned(),
            ),
            Self::LimitReached { reached, .. } => Some(reached.to_string()),
            Self::NothingLeft { .. } => Some(
                "the file may have been half-written: reload again; if it is meant, \
                 with --allow-empty it closes them all"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// The message with its hint, for a reader who sees only text.
    pub fn with_hint(&self) -> String {
        match self.hint() {
            Some(hint) => format!("{self}\nhint: {hint}"),
            None => self.to_string(),
        }
    }
}

/// The remedy for a directory that takes no files when a supervisor starts.
fn full_or_read_only(error: &io::Error) -> Option<String> {
    fallback::is_refusal(error).then(|| {
        "make room there, or mount it writable, and start the service again; or choose another directory for \
         broker and services with --socket. Running generations keep serving"
            .to_owned()
    })
}

/// The remedy for a directory that belongs to another user or that others may write to.
fn no_access(error: &io::Error) -> Option<String> {
    (error.kind() == io::ErrorKind::PermissionDenied).then(|| {
        "run this as root or as that directory's user; or choose with --socket, for broker and services, a directory \
         to which no other user may write"
            .to_owned()
    })
}

/// Why no broker answers, without the socket's path, which the message has.
fn why_not(error: &bindonce::Error) -> String {
    match error {
        bindonce::Error::Connect { source, .. } => format!(": {source}"),
        other => format!(": {other}"),
    }
}

fn few(listeners: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<_> = listeners.iter().take(SHOWN).map(String::as_str).collect();
    match listeners.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
