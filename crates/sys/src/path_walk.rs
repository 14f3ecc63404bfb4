//! Walks to a directory by descriptors.
//!
//! Each component is opened from the one before it, and a symbolic link is read through the link's
//! own descriptor. So the checked object is the one that is used: exchanging a directory meanwhile
//! leads nowhere else. The caller decides at each step whether to continue: [`crate::trusted`]
//! checks whether others could replace files there, [`crate::directory`] whether the path of a file
//! can be redirected.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fchmod, fstat, mkdirat, openat, readlinkat};
use rustix::process::geteuid;

/// As many symbolic links as the kernel follows (path_resolution(7)).
const LINKS: usize = 40;

const ENTRY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A step of the walk: a directory, or a symbolic link that leads to it.
pub(crate) struct Step<'a> {
    /// The directory that contains the entry. The root contains itself.
    pub(crate) directory: &'a Stat,
    /// The directory or the link.
    pub(crate) entry: &'a Stat,
    /// The path of the entry, with every link before it resolved.
    pub(crate) path: &'a Path,
    /// Whether the directory was missing and was created.
    pub(crate) created: bool,
}

impl Step<'_> {
    pub(crate) fn is_link(&self) -> bool {
        FileType::from_raw_mode(self.entry.st_mode) == FileType::Symlink
    }

    /// Whether nobody but root and this user can put another file in the entry's place. Only the
    /// owner of a directory and users who may write in it can; with the sticky bit set only the
    /// owner of the entry can (unlink(2)).
    pub(crate) fn keeps(&self, uid: u32) -> bool {
        is_of(self.directory, uid)
            && (!others_write(self.directory)
                || (is_sticky(self.directory) && is_of(self.entry, uid)))
    }
}

/// Whether the object belongs to root or to this user.
pub(crate) fn is_of(stat: &Stat, uid: u32) -> bool {
    stat.st_uid == 0 || stat.st_uid == uid
}

/// Whether users other than its owner may write in a directory. The group root is taken to have no
/// members but root; an access list shows in the group's bits (acl(5)).
pub(crate) fn others_write(stat: &Stat) -> bool {
    stat.st_mode & 0o002 != 0 || (stat.st_mode & 0o020 != 0 && stat.st_gid != 0)
}

pub(crate) fn is_sticky(stat: &Stat) -> bool {
    stat.st_mode & 0o1000 != 0
}

/// Opens the directory at `path`, and calls `step` for everything on the way to it, from the root
/// on; `Break` ends the walk.
///
/// # Errors
/// Errors from the system calls: every component must exist. ELOOP for too many links.
pub(crate) fn walk<B>(
    path: &Path,
    step: impl FnMut(&Step<'_>) -> ControlFlow<B>,
) -> io::Result<ControlFlow<B, OwnedFd>> {
    walk_or_make(path, None, step)
}

/// As [`walk`], but creates missing directories with this mode, whatever the umask is. A directory
/// is created only in one that `step` has approved, and `step` is called for it in turn.
pub(crate) fn walk_or_make<B>(
    path: &Path,
    missing: Option<Mode>,
    mut step: impl FnMut(&Step<'_>) -> ControlFlow<B>,
) -> io::Result<ControlFlow<B, OwnedFd>> {
    let mut rest = names(&std::path::absolute(path)?);
    let (mut fd, mut at) = (root()?, PathBuf::from("/"));
    let mut here = fstat(&fd)?;
    if let ControlFlow::Break(end) =
        step(&Step { directory: &here, entry: &here, path: &at, created: false })
    {
        return Ok(ControlFlow::Break(end));
    }
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        // With O_DIRECTORY first: that mounts an automount point.
        let opened = openat(&fd, &name, ENTRY | OFlags::DIRECTORY, Mode::empty());
        let (opened, created) = match (opened, missing) {
            (Err(rustix::io::Errno::NOENT), Some(mode)) => match make(&fd, &name, mode) {
                Ok((directory, created)) => (Ok(directory), created),
                Err(error) => (Err(error), false),
            },
            (opened, _) => (opened, false),
        };
        let (entry, is_link) = match opened {
            Ok(directory) => (directory, false),
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                (openat(&fd, &name, ENTRY, Mode::empty())?, true)
            }
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&entry)?;
        let path = match name.as_encoded_bytes() {
            b".." => at.parent().unwrap_or(Path::new("/")).to_owned(),
            _ => at.join(&name),
        };
        let taken = Step { directory: &here, entry: &stat, path: &path, created };
        if is_link && !taken.is_link() {
            return Err(rustix::io::Errno::NOTDIR.into());
        }
        if let ControlFlow::Break(end) = step(&taken) {
            return Ok(ControlFlow::Break(end));
        }
        if !is_link {
            (fd, at, here) = (entry, path, stat);
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let target = OsString::from_vec(readlinkat(&entry, "", Vec::new())?.into_bytes());
        if Path::new(&target).is_absolute() {
            (fd, at) = (root()?, PathBuf::from("/"));
            here = fstat(&fd)?;
        }
        for name in names(Path::new(&target)).into_iter().rev() {
            rest.push_front(name);
        }
    }
    Ok(ControlFlow::Continue(fd))
}

/// Creates a directory in an open one; false if it exists already.
fn make(parent: &OwnedFd, name: &OsStr, mode: Mode) -> rustix::io::Result<(OwnedFd, bool)> {
    let made = match mkdirat(parent, name, mode) {
        Err(rustix::io::Errno::EXIST) => false,
        done => done.map(|()| true)?,
    };
    let directory = openat(parent, name, ENTRY | OFlags::DIRECTORY, Mode::empty())?;
    let own = |stat: Stat| stat.st_uid == geteuid().as_raw();
    // The umask may have cleared bits. A directory of another user was put in place of the created
    // one.
    let made = made && own(fstat(&directory)?);
    if made {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fchmod(openat(&directory, ".", flags, Mode::empty())?, mode)?;
    }
    Ok((directory, made))
}

fn root() -> io::Result<OwnedFd> {
    Ok(openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
        })
        .collect()
}
