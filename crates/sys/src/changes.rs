//! Waits for files to change (inotify(7)).
//!
//! It watches directories, not files: an editor renames a new file into place, and a Kubernetes
//! volume swaps a symbolic link, so the old file itself never changes. A change comes with the
//! entry's name, so that the caller can ignore entries that do not matter to it.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::watch::Watch;

/// A watched directory, as returned by [`Changes::watch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Directory(WatchDescriptor);

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An entry with this name was created, written, renamed or removed, or its permissions were
    /// changed.
    Entry(Directory, OsString),
    /// The directory itself is gone, or was renamed; it is no longer watched.
    Gone(Directory),
    /// There were too many changes, and some were lost.
    Lost,
}

/// The limit that an error of [`Changes`] comes from, for the end of a message. Empty for other
/// errors.
pub fn limit(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(nix::libc::EMFILE) => {
            " (fs.inotify.max_user_instances, or open files: `ulimit -n`, LimitNOFILE=)"
        }
        Some(nix::libc::ENOSPC) => " (fs.inotify.max_user_watches)",
        _ => "",
    }
}

/// Watches directories for changes of their entries.
#[derive(Debug)]
pub struct Changes {
    inotify: Inotify,
    watch: Watch,
}

impl Changes {
    /// Watches nothing yet. Call it within a tokio runtime.
    ///
    /// # Errors
    /// Errors from inotify_init1(2); `EMFILE` means that fs.inotify.max_user_instances is reached.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let watch = Watch::new(&inotify.as_fd())?;
        Ok(Self { inotify, watch })
    }

    /// Watches a directory, even behind a symbolic link. Watching the same directory twice returns
    /// the same value.
    ///
    /// # Errors
    /// Errors from inotify_add_watch(2): `ENOENT`, `ENOTDIR`, `EACCES`; `ENOSPC` means that
    /// fs.inotify.max_user_watches is reached.
    pub fn watch(&self, directory: &Path) -> io::Result<Directory> {
        // A file being written counts as changed only once it is closed.
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

    /// Stops watching a directory. One that is gone is not an error.
    pub fn forget(&self, directory: Directory) {
        let _ = self.inotify.rm_watch(directory.0);
    }

    /// Waits for changes, and returns all that have occurred.
    ///
    /// # Errors
    /// Errors from read(2); none occur in practice.
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
                            // The directory's own permissions or times changed, but no entry.
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
