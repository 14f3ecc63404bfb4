//! Where the broker is.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::Error;

/// The path of the broker's socket if nobody says otherwise: `$BINDONCE_SOCKET`,
/// else `$MULTIBINDER_SOCK`, else `/run/bindonce/bindonce.sock` for root and
/// `$XDG_RUNTIME_DIR/bindonce.sock` for others (`/run/user/UID` where that
/// variable is not set). A variable that is empty counts as not set.
pub fn default_socket() -> PathBuf {
    choose(|name| env::var_os(name), rustix::process::geteuid().as_raw())
}

fn choose(variable: impl Fn(&str) -> Option<OsString>, uid: u32) -> PathBuf {
    let variable = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = variable("BINDONCE_SOCKET").or_else(|| variable("MULTIBINDER_SOCK")) {
        return path;
    }
    if uid == 0 {
        return PathBuf::from("/run/bindonce/bindonce.sock");
    }
    variable("XDG_RUNTIME_DIR")
        .unwrap_or_else(|| PathBuf::from(format!("/run/user/{uid}")))
        .join("bindonce.sock")
}

/// Connects within `timeout`. connect(2) on a UNIX socket waits while the
/// server's queue is full, for as long as the send timeout allows.
pub(crate) fn connect(path: &Path, timeout: Duration) -> Result<Socket, Error> {
    let attempt = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_write_timeout(Some(timeout))?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(socket)
    };
    attempt().map_err(|source: std::io::Error| match source.kind() {
        std::io::ErrorKind::WouldBlock => Error::TimedOut { during: "connect", after: timeout },
        _ => Error::Connect { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[(&str, &str)], uid: u32) -> PathBuf {
        choose(|name| set.iter().find(|(key, _)| *key == name).map(|(_, v)| v.into()), uid)
    }

    #[test]
    fn the_first_that_is_set_wins() {
        let both = [("BINDONCE_SOCKET", "/a"), ("MULTIBINDER_SOCK", "/b")];
        assert_eq!(with(&both, 0), Path::new("/a"));
        assert_eq!(with(&both[1..], 1000), Path::new("/b"));
        assert_eq!(with(&[("BINDONCE_SOCKET", "")], 0), Path::new("/run/bindonce/bindonce.sock"));
        assert_eq!(with(&[("XDG_RUNTIME_DIR", "/x")], 7), Path::new("/x/bindonce.sock"));
        assert_eq!(with(&[("XDG_RUNTIME_DIR", "/x")], 0), Path::new("/run/bindonce/bindonce.sock"));
        assert_eq!(with(&[], 7), Path::new("/run/user/7/bindonce.sock"));
    }
}
