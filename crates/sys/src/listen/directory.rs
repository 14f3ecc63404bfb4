//! The directory of a UNIX path, opened once, and who can lead the path elsewhere.
//!
//! A broker binds for others, so a path must not lead it where its caller could not go. Every
//! component is opened from the one before. A symbolic link is followed only where nobody but
//! root and this process's user can change it; any other is an error (ELOOP). What is done
//! afterwards is done from this descriptor, so that a directory that is exchanged meanwhile
//! changes nothing.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags, Stat};

/// As many links as the kernel follows (path_resolution(7)).
const LINKS: usize = 40;

/// A directory that holds a UNIX path.
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    /// Nobody but root and this process's user can make the path lead to another directory.
    pub(super) pinned: bool,
}

impl Directory {
    /// The directory that `path` is in, and the path's last name.
    pub(super) fn of(path: &Path) -> io::Result<(Self, &OsStr)> {
        let name = path.file_name().ok_or(Errno::EISDIR)?;
        let mut rest: VecDeque<OsString> = names(path.parent().unwrap_or(path));
        let (mut fd, mut pinned) = (open(if path.is_absolute() { "/" } else { "." })?, true);
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            let here = rustix::fs::fstat(&fd)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&fd, &name, flags, Mode::empty()) {
                Ok(next) => {
                    pinned &= keeps(&here, &rustix::fs::fstat(&next)?);
                    fd = next;
                }
                Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let link = rustix::fs::openat(&fd, &name, flags, Mode::empty())?;
                    // Of anything but a link this fails (ENOENT, readlink(2)).
                    let target = rustix::fs::readlinkat(&link, "", Vec::new());
                    let target = target.map_err(|_| Errno::ENOTDIR)?;
                    links += 1;
                    if links > LINKS || !keeps(&here, &rustix::fs::fstat(&link)?) {
                        return Err(Errno::ELOOP.into());
                    }
                    let target = OsString::from_vec(target.into_bytes());
                    let target = Path::new(&target);
                    if target.is_absolute() {
                        fd = open("/")?;
                    }
                    for name in names(target).into_iter().rev() {
                        rest.push_front(name);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((Self { fd, pinned }, name))
    }
}

fn open(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
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

/// Whether nobody but root and this user can put another file in the place of `entry`: only the
/// owner of a directory and those who may write in it can, and where the sticky bit is set only
/// the owner of the entry (unlink(2)).
fn keeps(directory: &Stat, entry: &Stat) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    let trusted = |uid| uid == 0 || uid == own;
    // The group root has no members but root; an access list shows in the group's bits.
    let mode = directory.st_mode;
    let shared = mode & 0o002 != 0 || (mode & 0o020 != 0 && directory.st_gid != 0);
    let sticky = directory.st_mode & 0o1000 != 0;
    trusted(directory.st_uid) && (!shared || (sticky && trusted(entry.st_uid)))
}
