//! The directory for a generation's files while the service's directory takes none: its file system
//! is full or has become read-only. Used only for a generation without which none would serve; a
//! reload is refused then.

use std::cell::RefCell;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A directory for this process alone, created when first needed.
#[derive(Debug, Default)]
pub(crate) struct Fallback(RefCell<Option<PathBuf>>);

impl Fallback {
    /// The directory, if it was created and is still there. Others may remove it: logind does so
    /// when the last session of its user ends (`RemoveIPC=` of logind.conf(5)). Then its name is
    /// forgotten, since another user may take it.
    pub(crate) fn get(&self) -> Option<PathBuf> {
        let mut made = self.0.borrow_mut();
        made.take_if(|path| !is_own(path));
        made.clone()
    }

    /// The directory in place of `instead_of`; created in memory (`/dev/shm`), or where temporary
    /// files are.
    ///
    /// # Errors
    /// The last error of mkdir(2), or of the check of its parent directory.
    pub(crate) fn make(&self, instead_of: &Path) -> io::Result<PathBuf> {
        if let Some(made) = self.get() {
            return Ok(made);
        }
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let name = format!("bindonce-{}-{}", std::process::id(), since.as_nanos());
        let mut last = io::Error::from(io::ErrorKind::StorageFull);
        for parent in [PathBuf::from("/dev/shm"), std::env::temp_dir(), PathBuf::from("/run")] {
            let path = parent.join(&name);
            // It must not exist yet: a directory that another user made is never used.
            let made = protects(&parent).and_then(|()| DirBuilder::new().mode(0o700).create(&path));
            match made {
                Ok(()) => {
                    tracing::warn!(
                        path = %path.display(),
                        "directory {} is full, read-only or gone; using {} for this start",
                        instead_of.display(),
                        path.display()
                    );
                    self.0.replace(Some(path.clone()));
                    return Ok(path);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Removes the directory if it is empty.
    pub(crate) fn tidy(&self) {
        self.0.borrow_mut().take_if(|path| fs::remove_dir(path).is_ok());
    }

    /// Removes the directory with its contents.
    pub(crate) fn clear(&self) {
        if let Some(path) = self.get()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::warn!(path = %path.display(), %error, "could not be removed");
        }
        self.0.take();
    }
}

/// Whether a directory of this user is there. Where [`protects`] allows its parent, no other user
/// can put one there.
fn is_own(path: &Path) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(|about| about.is_dir() && about.uid() == own)
}

/// Checks that no other user can replace the files that this user creates in a directory
/// (sticky(7)).
fn protects(parent: &Path) -> io::Result<()> {
    const STICKY: u32 = 0o1000;
    const OTHERS: u32 = 0o022;
    let about = fs::symlink_metadata(parent)?;
    let owner = about.uid() == 0 || about.uid() == nix::unistd::geteuid().as_raw();
    match owner && about.is_dir() && (about.mode() & OTHERS == 0 || about.mode() & STICKY != 0) {
        true => Ok(()),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Whether an error says that a file system currently takes no data.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | ReadOnlyFilesystem | QuotaExceeded)
        || error.raw_os_error() == Some(nix::libc::EIO)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::lchown;

    use super::*;

    #[test]
    fn one_that_others_have_removed_is_forgotten_and_another_made() {
        let fallback = Fallback::default();
        let make = || fallback.make(Path::new("/run/full"));
        assert_eq!(fallback.get(), None);
        let first = make().expect("a directory");
        assert_eq!(make().expect("the same"), first);
        fs::remove_dir(&first).expect("remove");
        assert_eq!(fallback.get(), None);
        let second = make().expect("another");
        assert!(second != first && second.is_dir());
        assert_eq!(fallback.get().as_ref(), Some(&second));
        if nix::unistd::geteuid().is_root() {
            // Another user has taken its name.
            lchown(&second, Some(54_321), None).expect("chown");
            let third = make().expect("another");
            assert!(third != second && third.is_dir());
            fs::remove_dir(&second).expect("remove");
        }
        let last = fallback.get().expect("the last one");
        fallback.clear();
        assert!(!last.exists() && fallback.get().is_none());
    }
}
