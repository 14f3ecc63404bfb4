//! Runs code in another network namespace, on a thread of its own.
//!
//! setns(2) moves the calling thread. A server thread that failed to move back would silently bind
//! every later socket in the wrong namespace, so the caller's thread never moves.

use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, errno_of};
use crate::identity;
use nix::errno::Errno;

/// Where `ip netns add` puts namespaces (ip-netns(8)).
const DIRECTORY: &str = "/run/netns";

/// The name of the network namespace with this cookie (SO_NETNS_COOKIE); None if it has no name.
/// Enters every named namespace to compare.
///
/// # Errors
/// [`Error::Netns`] if a namespace may not be entered and none of the others has the cookie.
pub fn name_of(cookie: u64) -> Result<Option<String>, Error> {
    let mut refused = None;
    for entry in std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        match within(&name, identity::network) {
            Ok(found) if found == Some(cookie) => return Ok(Some(name)),
            // A file that is no namespace (any more) cannot match.
            Ok(_) | Err(Error::Netns { errno: Errno::EINVAL | Errno::ENOENT, .. }) => {}
            Err(error) => refused = Some(error),
        }
    }
    refused.map_or(Ok(None), Err)
}

/// Runs `work` in the network namespace called `name`. The sockets that it opens belong to that
/// namespace for their whole life, wherever they are used.
///
/// # Errors
/// [`Error::Netns`] if there is no such namespace or it may not be entered.
pub fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    // A name is a single path component: anything else could leave the directory.
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Error::Netns {
            name: name.to_owned(),
            operation: "open",
            errno: Errno::EINVAL,
        });
    }
    within_path(&Path::new(DIRECTORY).join(name), name, work)
}

/// As [`within`], in the namespace whose file is at `path`, called `name` in errors.
///
/// # Errors
/// As [`within`].
pub fn within_path<T: Send>(
    path: &Path,
    name: &str,
    work: impl FnOnce() -> T + Send,
) -> Result<T, Error> {
    let fail = |operation, errno| Error::Netns { name: name.to_owned(), operation, errno };
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| fail("open", Errno::from_raw(error.raw_os_error())))?;
    let namespace = &namespace;
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| fail("setns", errno))?;
                Ok(work())
            })
            .map_err(|error| fail("clone", errno_of(&error)))?;
        match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
