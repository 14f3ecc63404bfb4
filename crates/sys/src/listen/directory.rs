//! The directory of a UNIX path, opened once, and who can lead the path elsewhere.
//!
//! A broker binds for others, so a path must not lead it where its caller could not go. A symbolic link is followed only where
//! nobody but root and this process's user can change it; any other is an error (ELOOP). What is done
//! afterwards is done from this descriptor, so that a directory that is exchanged meanwhile
//! changes nothing.

use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;

use crate::path_walk;

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
        let parent = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => path,
        };
        let own = nix::unistd::geteuid().as_raw();
        let mut pinned = true;
        let walked = path_walk::walk(parent, |step| {
            let kept = step.keeps(own);
            if step.is_link() && !kept {
                return ControlFlow::Break(());
            }
            pinned &= kept;
            ControlFlow::Continue(())
        })?;
        match walked {
            ControlFlow::Continue(fd) => Ok((Self { fd, pinned }, name)),
            ControlFlow::Break(()) => Err(Errno::ELOOP.into()),
        }
    }
}
