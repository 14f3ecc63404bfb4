//! Where the files of a generation lie while the service's directory takes none: it is full, or has
//! become read-only. Only for a generation without which none would serve; a reload is refused
//! then.

use std::cell::RefCell;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A directory of this process alone, made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Fallback(RefCell<Option<PathBuf>>);

impl Fallback {
    /// The directory, if it was needed.
    pub(crate) fn get(&self) -> Option<PathBuf> {
        self.0.borrow().clone()
    }

    /// The directory; made in the memory of the system, or where temporary files lie.
    ///
    /// # Errors
    /// The last of those of mkdir(2).
    pub(crate) fn make(&self) -> io::Result<PathBuf> {
        if let Some(made) = self.get() {
            return Ok(made);
        }
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let name = format!("bindonce-{}-{}", std::process::id(), since.as_nanos());
        let mut last = io::Error::from(io::ErrorKind::StorageFull);
        for parent in [PathBuf::from("/dev/shm"), std::env::temp_dir(), PathBuf::from("/run")] {
            let path = parent.join(&name);
            // It must not be there: what another user has made is never used.
            let made = protects(&parent).and_then(|()| DirBuilder::new().mode(0o700).create(&path));
            match made {
                Ok(()) => {
                    tracing::warn!(
                        path = %path.display(),
                        "the service's directory takes no files; those of this start lie elsewhere"
                    );
                    self.0.replace(Some(path.clone()));
                    return Ok(path);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Removes it if nothing is in it any more.
    pub(crate) fn tidy(&self) {
        self.0.borrow_mut().take_if(|path| fs::remove_dir(path).is_ok());
    }

    /// Removes it with all that is in it.
    pub(crate) fn clear(&self) {
        if let Some(path) = self.0.take()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::warn!(path = %path.display(), %error, "could not be removed");
        }
    }
}

/// Whether what this user makes in a directory is replaced by no other one (sticky(7)).
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

/// Whether an error says that a file system takes nothing now.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | ReadOnlyFilesystem | QuotaExceeded)
        || error.raw_os_error() == Some(nix::libc::EIO)
}
