//! UNIX listeners: paths that appear ready or not at all, and abstract names.
//!
//! A path is bound under a temporary name in the same directory, given its
//! mode and owner, made to listen, and only then renamed into place: whoever
//! finds the path can connect. A path that a live socket answers on is never taken;
//! one whose socket is dead is replaced without an instant at which it is missing.
//! Without `mode=` the umask of the process decides who may connect.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use bindonce_core::listener::Listener;
use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};
use rustix::fs::{AtFlags, CWD, RenameFlags};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::{Error, errno_of};

/// `sun_path` holds this many bytes (unix(7)); haproxy pads abstract names to it.
const SUN_PATH: usize = 108;

/// How often to try again when the path changes while we look at it.
const ATTEMPTS: usize = 16;

/// The file of a UNIX listener, known by its inode, so that it is removed only
/// while it is still the one that we put there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixPath {
    /// Where it was put.
    pub path: PathBuf,
    /// Device of the file.
    pub dev: u64,
    /// Inode of the file (not of the socket).
    pub ino: u64,
}

/// Removes the file if it is still ours; true if it did. Nobody can connect
/// afterwards, so call it when the listener is closed for good.
///
/// # Errors
/// Those of lstat(2) and unlink(2); a file that is gone is no error.
pub fn unlink_if_ours(ours: &UnixPath) -> io::Result<bool> {
    match identity(&ours.path) {
        Ok(found) if found == (ours.dev, ours.ino) => fs::remove_file(&ours.path).map(|()| true),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A listening socket in the abstract name space. As in haproxy, the name is
/// padded with NULs to the whole of `sun_path` (haproxy manual, `abns@`), so
/// that its clients find it.
pub(super) fn abstract_name(
    listener: &Listener,
    name: &str,
    backlog: i32,
) -> Result<Socket, Error> {
    let fail = |operation| failure(listener, operation);
    let socket = stream(listener)?;
    padded(name).and_then(|address| socket.bind(&address)).map_err(fail("bind"))?;
    socket.listen(backlog).map_err(fail("listen"))?;
    Ok(socket)
}

/// The address of an abstract name as haproxy has it: a NUL, the name, and NULs
/// to the end.
pub(crate) fn padded(name: &str) -> io::Result<SockAddr> {
    let mut bytes = [0; SUN_PATH];
    bytes.get_mut(1..=name.len()).ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(name.as_bytes());
    SockAddr::unix(OsStr::from_bytes(&bytes))
}

/// A listening socket on a path.
pub(super) fn path(
    listener: &Listener,
    path: &str,
    backlog: i32,
) -> Result<(Socket, UnixPath), Error> {
    let fail = |operation| failure(listener, operation);
    let options = &listener.options;
    let owner = Owner::find(listener)?;
    let path = Path::new(path);
    let socket = stream(listener)?;

    let temporary = bind_temporary(&socket, path).map_err(fail("bind"))?;
    // Not listening yet: until the mode and owner are right a connection is refused.
    if let Some(mode) = options.mode {
        fs::set_permissions(&temporary.0, fs::Permissions::from_mode(mode))
            .map_err(fail("chmod"))?;
    }
    if owner.is_said() {
        std::os::unix::fs::lchown(
            &temporary.0,
            owner.user.map(Uid::as_raw),
            owner.group.map(Gid::as_raw),
        )
        .map_err(fail("chown"))?;
    }
    socket.listen(backlog).map_err(fail("listen"))?;
    let (dev, ino) = identity(&temporary.0).map_err(fail("lstat"))?;
    put_in_place(listener, &temporary.0, path)?;
    Ok((socket, UnixPath { path: path.to_owned(), dev, ino }))
}

/// A name that is removed again unless it was renamed into place. (Then it is
/// gone, or names the dead socket that was replaced.)
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nothing to do about a failure, and the usual one is that it is gone.
        let _ = fs::remove_file(&self.0);
    }
}

fn bind_temporary(socket: &Socket, path: &Path) -> io::Result<Temporary> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let directory = path.parent().ok_or(Errno::EISDIR)?;
    if path.file_name().is_none() {
        return Err(Errno::EISDIR.into());
    }
    // The short way to a directory whose own path leaves no room in sun_path.
    let handle = rustix::fs::open(
        directory,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    for _ in 0..ATTEMPTS {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let suffix = format!("{:x}-{count:x}", process::id());
        // The name stays in the kernel's books (`ss -lx`), so it says what it is for.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{suffix}"));
        let mut temporary = PathBuf::from(temporary);
        let address = if fits(&temporary) {
            SockAddr::unix(&temporary)?
        } else {
            let name = format!(".{suffix}");
            temporary = directory.join(&name);
            SockAddr::unix(format!("/proc/self/fd/{}/{name}", handle.as_raw_fd()))?
        };
        match socket.bind(&address) {
            Ok(()) => return Ok(Temporary(temporary)),
            // Left by a process that died with our pid: leave it, take the next name.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EADDRINUSE.into())
}

/// Whether a path and the NUL behind it fit into `sun_path`.
fn fits(path: &Path) -> bool {
    path.as_os_str().len() < SUN_PATH
}

/// Renames `temporary` to `path`, over nothing or over a dead socket.
fn put_in_place(listener: &Listener, temporary: &Path, path: &Path) -> Result<(), Error> {
    let fail = |operation| failure(listener, operation);
    for _ in 0..ATTEMPTS {
        match rename(temporary, path, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EEXIST) => {}
            // A file system without renameat2's flags: the check below and a plain rename.
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                if dead_socket(listener, path)?.is_none() && path.symlink_metadata().is_ok() {
                    continue;
                }
                return fs::rename(temporary, path).map_err(fail("rename"));
            }
            Err(errno) => return Err(fail("rename")(errno.into())),
        }
        let Some(dead) = dead_socket(listener, path)? else {
            continue;
        };
        // Swap, then look at what came out: if another process put a live socket
        // there in between, it gets its place back.
        match rename(temporary, path, RenameFlags::EXCHANGE) {
            Ok(()) if identity(temporary).is_ok_and(|out| out == dead) => return Ok(()),
            Ok(()) => rename(temporary, path, RenameFlags::EXCHANGE)
                .map_err(|errno| fail("rename")(errno.into()))?,
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(fail("rename")(errno.into())),
        }
    }
    Err(Error::PathInUse { path: path.to_owned() })
}

/// Which file stands at `path`, if it is a socket that nobody listens on; None
/// if nothing stands there any more.
fn dead_socket(listener: &Listener, path: &Path) -> Result<Option<(u64, u64)>, Error> {
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failure(listener, "lstat")(error)),
    };
    if !found.file_type().is_socket() {
        return Err(Error::NotASocket { path: path.to_owned() });
    }
    let probe = stream(listener)?;
    let address = SockAddr::unix(path).map_err(failure(listener, "connect"))?;
    match probe.connect(&address).map_err(|error| errno_of(&error)) {
        Err(Errno::ECONNREFUSED) => Ok(Some((found.dev(), found.ino()))),
        Err(Errno::ENOENT) => Ok(None),
        // EAGAIN is a full queue and EPROTOTYPE a socket of another type: both alive.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => {
            Err(Error::PathInUse { path: path.to_owned() })
        }
        Err(errno) => Err(failure(listener, "connect")(errno.into())),
    }
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
        .map_err(|error| Errno::from_raw(error.raw_os_error()))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((found.st_dev, found.st_ino))
}

fn stream(listener: &Listener) -> Result<Socket, Error> {
    Socket::new_raw(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
        .map_err(failure(listener, "socket"))
}

fn failure(listener: &Listener, operation: &'static str) -> impl Fn(io::Error) -> Error {
    let address = listener.address.clone();
    move |error| Error::Listen { operation, address: address.clone(), errno: errno_of(&error) }
}

/// `user=` and `group=`, resolved before anything is created.
pub(super) struct Owner {
    pub(super) user: Option<Uid>,
    pub(super) group: Option<Gid>,
}

impl Owner {
    pub(super) fn find(listener: &Listener) -> Result<Self, Error> {
        let unknown = |kind, name: &str| Error::UnknownOwner {
            kind,
            name: name.to_owned(),
            address: listener.address.clone(),
        };
        let user = listener.options.user.as_deref().map(|name| match name.parse() {
            Ok(number) => Ok(Uid::from_raw(number)),
            Err(_) => match User::from_name(name) {
                Ok(Some(user)) => Ok(user.uid),
                Ok(None) => Err(unknown("user", name)),
                Err(errno) => Err(failure(listener, "getpwnam")(errno.into())),
            },
        });
        let group = listener.options.group.as_deref().map(|name| match name.parse() {
            Ok(number) => Ok(Gid::from_raw(number)),
            Err(_) => match Group::from_name(name) {
                Ok(Some(group)) => Ok(group.gid),
                Ok(None) => Err(unknown("group", name)),
                Err(errno) => Err(failure(listener, "getgrnam")(errno.into())),
            },
        });
        Ok(Self { user: user.transpose()?, group: group.transpose()? })
    }

    fn is_said(&self) -> bool {
        self.user.is_some() || self.group.is_some()
    }
}
