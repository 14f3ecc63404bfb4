//! A file system that does not answer, like a network mount whose server is gone: a FUSE mount
//! whose daemon, this process, reads no request (fuse(4)).

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::skip;

/// Gives the calling thread, and what it starts from now on, mounts of its own.
pub(crate) fn own_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}

/// A directory in which every access waits, until this is dropped: then it is the one below again.
pub(crate) struct Stalled {
    place: PathBuf,
    daemon: Option<File>,
}

impl Stalled {
    /// Stalls a directory, in the mounts of [`own_mounts`]. None where that needs rights that the
    /// test lacks, with the reason reported.
    pub(crate) fn over(place: &Path) -> Option<Self> {
        let mounted = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let mounted = mounted.and_then(|daemon| {
            let number = daemon.as_raw_fd();
            let options = format!("fd={number},rootmode=40000,user_id=0,group_id=0");
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("stalled"), place, Some("fuse"), flags, Some(options.as_str()))?;
            Ok(daemon)
        });
        match mounted {
            Ok(daemon) => Some(Self { place: place.to_owned(), daemon: Some(daemon) }),
            Err(error) => {
                skip(&format!("no file system that stalls: {error}"));
                None
            }
        }
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        // First the daemon: whatever waits there gets an error.
        drop(self.daemon.take());
        // Where this fails, the scene cannot remove its directory, and says so.
        umount2(&self.place, MntFlags::MNT_DETACH).ok();
    }
}
