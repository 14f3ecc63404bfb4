//! Waiting for files to change (inotify(7)).
//!
//! Directories are watched, not files: an editor renames a new file into place, and a Kubernetes
//! volume swaps a symbolic link, so that the file that was there yesterday never changes. What
//! changed is told by name, for the caller to pass over what does not matter to it.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::watch::Watch;

/// A directory that is watched, as [`Changes::watch`] named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Directory(WatchDescriptor);

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An entry of this name was made, written, renamed or removed, or its rights were changed.
    Entry(Directory, OsString),
    /// The directory itself is gone, or was renamed; it is not watched any more.
    Gone(Directory),
    /// There were too many to tell.
    Lost,
}

/// Directories, watched for changes of their entries.
#[derive(Debug)]
pub struct Changes {
    inotify: Inotify,
    watch: Watch,
}

impl Changes {
    /// Watches nothing so far. Call it within a tokio runtime.
    ///
    /// # Errors
    /// Those of inotify_init1(2); `EMFILE` means that fs.inotify.max_user_instances is reached.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let watch = Watch::new(&inotify.as_fd())?;
        Ok(Self { inotify, watch })
    }

    /// Watches a directory, also one behind a symbolic link. Watching one again gives the same.
    ///
    /// # Errors
    /// Those of inotify_add_watch(2): `ENOENT`, `ENOTDIR`, `EACCES`; `ENOSPC` means that
    /// fs.inotify.max_user_watches is reached.
    pub fn watch(&self, directory: &Path) -> io::Result<Directory> {
        // A file that is being written is no change before it is closed.
        let what = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        Ok(Directory(self.inotify.add_watch(directory, what)?))
    }

    /// Watches a directory no more. One that is gone is no error.
    pub fn forget(&self, directory: Directory) {
        let _ = self.inotify.rm_watch(directory.0);
    }

    /// Waits for changes, and gives all that there are.
    ///
    /// # Errors
    /// Those of read(2), which are none in practice.
    pub async fn next(&self) -> io::Result<Vec<Change>> {
        loop {
            self.watch.readable().await?;
            let mut changes = Vec::new();
            loop {
                match self.inotify.read_events() {
                    Ok(events) => changes.extend(events.into_iter().filter_map(|event| {
                        let directory = Directory(event.wd);
                        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                            return Some(Change::Lost);
                        }
                        match event.name {
                            Some(name) => Some(Change::Entry(directory, name)),
                            // Its own rights or times changed: nothing in it.
                            None if event.mask.contains(AddWatchFlags::IN_ATTRIB) => None,
                            None => Some(Change::Gone(directory)),
                        }
                    })),
                    Err(nix::errno::Errno::EAGAIN) => break,
                    Err(nix::errno::Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Directory as Temporary;

    #[tokio::test]
    async fn a_swap_of_a_symbolic_link_is_a_change() {
        let directory = Temporary::new("changes");
        let path = directory.path();
        let changes = Changes::new().expect("inotify");
        let watched = changes.watch(path).expect("watch");
        assert_eq!(changes.watch(path).expect("again"), watched);
        std::os::unix::fs::symlink("a", path.join("new")).expect("link");
        std::fs::rename(path.join("new"), path.join("..data")).expect("rename");
        let seen = changes.next().await.expect("changes");
        assert!(seen.contains(&Change::Entry(watched, "..data".into())), "{seen:?}");
        std::fs::remove_file(path.join("..data")).expect("remove");
        let seen = changes.next().await.expect("changes");
        assert_eq!(seen, [Change::Entry(watched, "..data".into())]);
        assert!(changes.watch(&path.join("none")).is_err());
    }
}
