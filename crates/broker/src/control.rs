//! The control socket: who may serve it, how it is created, and how it is removed.
//!
//! A broker holds a lock file beside it (PATH.lock) for its whole life. So two brokers never serve
//! one path, and exactly one broker replaces the socket of a dead one. The socket listens only once
//! it has its mode (`bindonce_sys::listen`).

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use bindonce_daemon::{exclusive, state};
use bindonce_sys::identity;
use bindonce_sys::listen::{self, UnixPath};
use bindonce_sys::lock::LockFile;
use bindonce_sys::trusted;

use crate::error::Error;

/// Access is decided for each request; the mode keeps out users who never have any.
const SOCKET_MODE: u32 = 0o660;
const DIRECTORY_MODE: u32 = 0o755;

/// The right to serve one path, and the files that show it.
#[derive(Debug)]
pub(crate) struct Control {
    /// The control socket's path, absolute.
    pub(crate) socket: PathBuf,
    lock: LockFile,
    path: Option<UnixPath>,
}

impl Control {
    /// Takes the lock of a path, creating its directory where it is missing.
    pub(crate) fn acquire(socket: &Path) -> Result<Self, Error> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { doing, path, source }
        };
        let socket =
            std::path::absolute(socket).map_err(failed("find the absolute path of", socket))?;
        if let Some(directory) = socket.parent() {
            open_directory(directory)?;
        }
        let lock_path = lock_path(&socket);
        let lock = exclusive::lock(&lock_path, &socket).map_err(failed("lock", &lock_path))?;
        let Some(lock) = lock else {
            let pid = fs::read_to_string(&lock_path).ok();
            let pid = pid.and_then(|text| text.trim().parse().ok());
            return Err(Error::AlreadyRunning { socket, pid });
        };
        write_pid(&lock).map_err(failed("write", &lock_path))?;
        Ok(Self { socket, lock, path: None })
    }

    /// Resumes with the lock that an earlier image of this process took.
    pub(crate) fn resume(socket: &Path, lock: OwnedFd) -> Result<Self, Error> {
        let failed = |source| Error::File {
            doing: "find the absolute path of",
            path: socket.to_owned(),
            source,
        };
        let socket = std::path::absolute(socket).map_err(failed)?;
        let lock = LockFile::resume(lock, &lock_path(&socket));
        Ok(Self { socket, lock, path: None })
    }

    /// Resumes with the control socket of an earlier image of this process. `file` is the socket's
    /// file; without it, the process that created the socket removes it.
    pub(crate) fn keep(&mut self, file: Option<UnixPath>) {
        self.path = file;
    }

    /// The lock's descriptor.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// The socket's file, if this process must remove it.
    pub(crate) fn path(&self) -> Option<&UnixPath> {
        self.path.as_ref()
    }

    /// Creates the control socket, in place of a dead one, unless it was passed.
    pub(crate) fn listen(&mut self, passed: Option<UnixListener>) -> Result<UnixListener, Error> {
        if let Some(passed) = passed {
            tracing::info!(socket = %self.socket.display(), "control socket taken over");
            return Ok(passed);
        }
        let opened = listen::open_control(&self.socket, SOCKET_MODE)
            .map_err(|source| Error::ControlSocket { socket: self.socket.clone(), source })?;
        self.path = opened.path;
        Ok(OwnedFd::into(opened.fd))
    }

    /// Leaves the socket in place at the end, for the next broker, which is passed it. Returns the
    /// identity of its file.
    pub(crate) fn leave(&mut self) -> Option<UnixPath> {
        self.path = None;
        identity::file(self.socket.to_str()?)
    }

    /// Removes the socket, then the lock, at an orderly end.
    pub(crate) fn remove(self) -> io::Result<()> {
        if let Some(path) = &self.path {
            listen::unlink_if_ours(path)?;
        }
        self.lock.remove()
    }
}

fn lock_path(socket: &Path) -> PathBuf {
    state::with_suffix(socket, ".lock")
}

/// Opens the directory, and creates it if it is missing. The next start trusts the state file in
/// it, and paths in it are replaced. So root neither creates nor keeps anything where another user
/// could swap it.
fn open_directory(directory: &Path) -> Result<(), Error> {
    let failed = |source| Error::File {
        doing: "open or create the directory",
        path: directory.to_owned(),
        source,
    };
    let owner = nix::unistd::geteuid();
    let made = trusted::make(directory, owner.as_raw(), DIRECTORY_MODE, owner.is_root());
    let made = made
        .map_err(failed)?
        .map_err(|untrusted| Error::Directory { path: directory.to_owned(), untrusted })?;
    if let Some(untrusted) = made.untrusted {
        tracing::warn!(
            directory = %directory.display(),
            "{untrusted}: other users of this host could take the control socket's place; choose --socket in a directory of \
             your own"
        );
    }
    Ok(())
}

fn write_pid(lock: &LockFile) -> io::Result<()> {
    let mut file = File::from(lock.as_fd().try_clone_to_owned()?);
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}
