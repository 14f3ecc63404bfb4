//! Why a broker cannot start.

use std::io;
use std::path::{Path, PathBuf};

use bindonce_sys::trusted::Untrusted;

/// Why a broker cannot start, or had to stop. [`Error::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another broker serves this control socket.
    #[error("a broker already serves {}{}", .socket.display(), pid_text(*.pid))]
    AlreadyRunning {
        /// The control socket.
        socket: PathBuf,
        /// The process of that broker, if the lock file names it.
        pid: Option<u32>,
    },
    /// The control socket could not be opened.
    #[error("cannot open the control socket {}", .socket.display())]
    ControlSocket {
        /// The path.
        socket: PathBuf,
        /// The error.
        source: bindonce_sys::Error,
    },
    /// A file or directory of the broker could not be set up.
    #[error("cannot {doing} {}", .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another user could replace what the broker keeps beside its control socket.
    #[error("root's broker cannot keep its files in {}: {untrusted}", .path.display())]
    Directory {
        /// The directory of the control socket.
        path: PathBuf,
        /// Who could replace it, and where.
        untrusted: Untrusted,
    },
    /// The configuration is invalid.
    #[error("the configuration{} is not understood: {reason}", path_text(.path.as_deref()))]
    Configuration {
        /// The file, where the text came from one.
        path: Option<PathBuf>,
        /// The reason, and where it is.
        reason: String,
    },
    /// A listener could not be bound at the start. Nothing is bound then.
    #[error("{message}")]
    Listen {
        /// What happened, and to which listener.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The state left by an earlier image of this process cannot be read.
    #[error("the state of the broker cannot be read: {reason}")]
    State {
        /// The reason.
        reason: String,
    },
    /// The listeners of the previous broker could not be read from its state file.
    #[error("cannot read the listeners of the previous broker from {}", .path.display())]
    StateFile {
        /// The file, which stays as it is.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The runtime could not watch the control socket.
    #[error("cannot wait for connections on {}", .socket.display())]
    Runtime {
        /// The path.
        socket: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl Error {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::AlreadyRunning { .. } => Some(
                "use that one (`bindonce status` shows what it holds), stop it, or give this one \
                 another path with --socket"
                    .to_owned(),
            ),
            Self::ControlSocket { source, .. } => source.hint(),
            Self::Listen { hint, .. } => hint.clone(),
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Some(
                "run the broker as a user that may write there, or choose another path with --socket"
                    .to_owned(),
            ),
            Self::Directory { untrusted, .. } => Some(format!(
                "start the broker of that user instead, or give this one a path with --socket that only \
                 root can change (`namei -l {}` shows what is on the way)",
                untrusted.path.display()
            )),
            Self::StateFile { .. } => Some(
                "start the broker again when the file can be read; or move it away, and the broker takes \
                 no listener over from the previous one"
                    .to_owned(),
            ),
            Self::Configuration { .. }
            | Self::File { .. }
            | Self::State { .. }
            | Self::Runtime { .. } => None,
        }
    }
}

fn path_text(path: Option<&Path>) -> String {
    path.map(|path| format!(" {}", path.display())).unwrap_or_default()
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}
