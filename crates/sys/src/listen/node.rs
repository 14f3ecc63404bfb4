//! The file of a UNIX socket, held by a descriptor. Every operation applies to this file, even if
//! its name leads elsewhere by then.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{ffi::OsStr, process};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::directory::Directory;
use crate::error::errno_of;

/// How many names to try when a file is moved aside.
const ATTEMPTS: usize = 16;

/// The file of a UNIX listener, identified by its inode, so that only the file that this process
/// created is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixPath {
    /// The path where the file was created.
    pub path: PathBuf,
    /// Device of the file.
    pub dev: u64,
    /// Inode of the file (not of the socket).
    pub ino: u64,
    /// Its owner, as far as the listener names one.
    pub owner: FileOwner,
}

/// The user and the group of a file, each where its listener names one (`user=`, `group=`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileOwner {
    /// The user.
    pub user: Option<u32>,
    /// The group.
    pub group: Option<u32>,
}

impl FileOwner {
    /// The same of a file that has this user and this group.
    pub(super) fn as_of(self, user: u32, group: u32) -> Self {
        Self { user: self.user.map(|_| user), group: self.group.map(|_| group) }
    }
}

impl fmt::Display for FileOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.user, self.group) {
            (Some(user), Some(group)) => write!(f, "user {user} and group {group}"),
            (Some(user), None) => write!(f, "user {user}"),
            (None, Some(group)) => write!(f, "group {group}"),
            (None, None) => f.write_str("anybody"),
        }
    }
}

/// Removes the file if it is still ours; returns whether it was removed. No client can connect
/// afterwards, so call this when the last descriptor of the listener is closed.
///
/// # Errors
/// Errors from the system calls; a missing file is not an error.
pub fn unlink_if_ours(ours: &UnixPath) -> io::Result<bool> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let removed = Directory::of(&ours.path).and_then(|(directory, name)| {
        let node = Node::open(&directory, name)?;
        let ours = node.is(ours);
        if ours {
            rustix::fs::unlinkat(&directory.fd, name, AtFlags::empty())?;
        }
        Ok(ours)
    });
    match removed {
        Err(error) if gone(&error) => Ok(false),
        removed => removed,
    }
}

/// Gives the file its owner and its mode again, if it is still ours.
///
/// # Errors
/// `ENOENT` if it is not; errors from open(2), chown(2) and chmod(2).
pub fn restore(ours: &UnixPath, owner: FileOwner, mode: Option<u32>) -> io::Result<()> {
    let node = Node::ours(ours)?;
    if owner.as_of(node.uid, node.gid) != owner {
        node.set_owner(owner.user.map(Uid::from_raw), owner.group.map(Gid::from_raw))?;
    }
    // chown(2) may clear mode bits, so the mode is set last.
    mode.map_or(Ok(()), |mode| node.set_mode(mode))
}

/// Whether a socket uses a socket file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// No socket is bound to the file.
    Dead,
    /// A stream socket is bound to the file, but does not listen (yet, or any more).
    Bound,
    /// A socket listens on the file, or receives datagrams there.
    Alive,
}

/// A file, by a descriptor that cannot read or write it (O_PATH).
pub(super) struct Node {
    fd: OwnedFd,
    pub(super) dev: u64,
    pub(super) ino: u64,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) is_socket: bool,
}

impl Node {
    /// Opens the file with this name, or the symbolic link itself.
    pub(super) fn open(directory: &Directory, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&directory.fd, name, flags, Mode::empty())?;
        let found = rustix::fs::fstat(&fd)?;
        Ok(Self {
            dev: found.st_dev,
            ino: found.st_ino,
            mode: found.st_mode & 0o7777,
            uid: found.st_uid,
            gid: found.st_gid,
            is_socket: FileType::from_raw_mode(found.st_mode) == FileType::Socket,
            fd,
        })
    }

    /// Opens the file at a path if it is still the one that this process created.
    pub(super) fn ours(ours: &UnixPath) -> io::Result<Self> {
        let (directory, name) = Directory::of(&ours.path)?;
        let node = Self::open(&directory, name)?;
        if node.is(ours) { Ok(node) } else { Err(Errno::ENOENT.into()) }
    }

    pub(super) fn is(&self, ours: &UnixPath) -> bool {
        (self.dev, self.ino) == (ours.dev, ours.ino)
    }

    fn same(&self, other: &Self) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }

    /// Whether `name` leads to this file.
    pub(super) fn is_at(&self, directory: &Directory, name: &OsStr) -> bool {
        Self::open(directory, name).is_ok_and(|there| there.same(self))
    }

    /// A path to the file of an O_PATH descriptor (open(2), proc_pid_fd(5)).
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        fs::set_permissions(self.path(), fs::Permissions::from_mode(mode))
    }

    pub(super) fn set_owner(&self, user: Option<Uid>, group: Option<Gid>) -> io::Result<()> {
        let user = user.map(|user| rustix::fs::Uid::from_raw(user.as_raw()));
        let group = group.map(|group| rustix::fs::Gid::from_raw(group.as_raw()));
        Ok(rustix::fs::chownat(self.fd.as_fd(), "", user, group, AtFlags::EMPTY_PATH)?)
    }

    /// The state of the file's socket: a stream and a datagram socket connect to this very file.
    /// The kernel answers EPROTOTYPE for a socket of the other type, and ECONNREFUSED only if no
    /// socket listens there (unix(7)).
    pub(super) fn life(&self) -> io::Result<Life> {
        match connect(Type::STREAM, &self.path()) {
            Err(Errno::ECONNREFUSED) => {}
            // A full queue (EAGAIN), or a socket of another type.
            Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => return Ok(Life::Alive),
            Err(errno) => return Err(errno.into()),
        }
        match connect(Type::DGRAM, &self.path()) {
            Err(Errno::EPROTOTYPE) => Ok(Life::Bound),
            Err(Errno::ECONNREFUSED) => Ok(Life::Dead),
            Ok(()) => Ok(Life::Alive),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes this dead socket, unless another file took its name or a socket came to life
    /// meanwhile: the file is moved aside, checked again, and put back if it has changed.
    pub(super) fn remove_dead(&self, directory: &Directory, name: &OsStr) -> io::Result<()> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let at = &directory.fd;
        for _ in 0..ATTEMPTS {
            let count = COUNTER.fetch_add(1, Ordering::Relaxed);
            let aside = format!(".bindonce-{:x}-{count:x}", process::id());
            let moved = rustix::fs::renameat_with(at, name, at, &aside, RenameFlags::NOREPLACE);
            match moved {
                Ok(()) => {}
                Err(rustix::io::Errno::EXIST) => continue,
                Err(rustix::io::Errno::NOENT) => return Ok(()),
                // The file system does not support the flags of renameat2(2).
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                    return Ok(rustix::fs::unlinkat(at, name, AtFlags::empty())?);
                }
                Err(error) => return Err(error.into()),
            }
            let found = Self::open(directory, OsStr::new(&aside))?;
            if found.same(self) && matches!(self.life(), Ok(Life::Dead | Life::Bound)) {
                return Ok(rustix::fs::unlinkat(at, &aside, AtFlags::empty())?);
            }
            rustix::fs::renameat_with(at, &aside, at, name, RenameFlags::NOREPLACE)?;
            return Ok(());
        }
        Err(Errno::EEXIST.into())
    }
}

fn connect(kind: Type, path: &Path) -> Result<(), Errno> {
    let attempt = || {
        Socket::new_raw(Domain::UNIX, kind.nonblocking().cloexec(), None)?
            .connect(&SockAddr::unix(path)?)
    };
    attempt().map_err(|error| errno_of(&error))
}
