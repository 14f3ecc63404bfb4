//! The path of the broker's socket, and connecting to it.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, io};

use bindonce_core::patience::Patience;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_to, socket_with,
};

use crate::error::Error;

/// The default path of the broker's socket: `$BINDONCE_SOCKET`, else `$MULTIBINDER_SOCK`, else
/// `/run/bindonce/bindonce.sock` for root and `$XDG_RUNTIME_DIR/bindonce.sock` for other users
/// (`/run/user/UID` if that variable is not set). If that socket neither exists nor can be created,
/// as in a container with a read-only root, the path is `/dev/shm/bindonce-UID/bindonce.sock`. An
/// empty variable counts as not set.
pub fn default_socket() -> PathBuf {
    if let Some(path) = named() {
        return path;
    }
    let uid = rustix::process::geteuid().as_raw();
    let run = match uid {
        0 => PathBuf::from("/run/bindonce"),
        _ => variable("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{uid}").into()),
    };
    let in_memory = PathBuf::from(format!("{MEMORY}/bindonce-{uid}"));
    let usual = run.join(NAME).exists() || can_be_made(&run);
    if usual || !belongs_to(&in_memory, uid) { run.join(NAME) } else { in_memory.join(NAME) }
}

/// The path in a variable, if one is set.
pub(crate) fn named() -> Option<PathBuf> {
    variable("BINDONCE_SOCKET").or_else(|| variable("MULTIBINDER_SOCK"))
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

const NAME: &str = "bindonce.sock";

/// A directory in which every user may write (with the sticky bit), even if the rest is read-only.
const MEMORY: &str = "/dev/shm";

/// Whether a file can be created in this directory, which may have to be created first.
fn can_be_made(directory: &Path) -> bool {
    let there = directory.ancestors().find(|path| path.exists());
    there.is_some_and(|path| accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok())
}

/// Whether a directory belongs to this user, or does not exist.
fn belongs_to(directory: &Path, uid: u32) -> bool {
    match directory.symlink_metadata() {
        Ok(found) => found.is_dir() && found.uid() == uid,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Connects within `timeout`. connect(2) on a UNIX socket waits while the server's accept queue is
/// full, for as long as the send timeout allows.
pub(crate) fn connect(path: &Path, timeout: Duration) -> Result<OwnedFd, Error> {
    let attempt = || {
        let address = SocketAddrUnix::new(path).map_err(|_| io::ErrorKind::InvalidInput)?;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let mut patience = Patience::new(timeout);
        // A signal, and a stop of this process, interrupt the wait.
        while let Some(wait) = patience.next_wait(Instant::now()) {
            set_socket_timeout(&socket, Timeout::Send, Some(wait))?;
            match connect_to(&socket, &address) {
                Ok(()) => return Ok(socket),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    };
    attempt().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::WouldBlock => Error::TimedOut { during: "connect", after: timeout },
        _ => Error::Connect { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_directory_may_have_to_be_made_and_be_of_the_user() {
        let here = env::temp_dir().join(format!("bindonce-socket-{}", std::process::id()));
        fs::create_dir(&here).expect("a directory");
        symlink(&here, here.join("link")).expect("a link");
        let uid = fs::metadata(&here).expect("it is there").uid();
        assert!(can_be_made(&here) && can_be_made(&here.join("a/b")));
        assert!(!can_be_made(Path::new("")));
        assert!(belongs_to(&here, uid) && belongs_to(&here.join("none"), uid));
        assert!(!belongs_to(&here, uid + 1) && !belongs_to(&here.join("link"), uid));
        fs::remove_dir_all(&here).expect("it is ours");
    }
}
