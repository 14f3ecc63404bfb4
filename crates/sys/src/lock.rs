//! Ensures a single process with a file lock, which ends with its process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};

/// A held lock (flock(2), exclusive). It ends when its last descriptor is closed, at the latest
/// with the process. The file stays when the value is dropped; [`LockFile::remove`] removes it.
#[derive(Debug)]
pub struct LockFile {
    fd: OwnedFd,
    path: PathBuf,
}

impl LockFile {
    /// Takes the lock if it is free; None if another process has it. Creates a missing file with
    /// mode 0600.
    ///
    /// # Errors
    /// Errors from open(2) and flock(2).
    pub fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        Self::lock(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// The same, but waits up to `ending` for a holder that is ending: a killed process has the
    /// lock until the kernel has closed its files, and the files of a child that had not executed
    /// its program yet. None at once if the holder `answers`.
    ///
    /// # Errors
    /// Errors from open(2) and flock(2), and from starting a thread.
    pub fn acquire(
        path: &Path,
        ending: Duration,
        answers: impl FnOnce() -> bool,
    ) -> io::Result<Option<Self>> {
        let taken = Self::try_acquire(path)?;
        if taken.is_some() || answers() {
            return Ok(taken);
        }
        let (sender, receiver) = mpsc::channel();
        let waits = path.to_owned();
        // The thread may wait longer than the caller: a lock that it gets then is released at once.
        let wait = move || sender.send(Self::lock(&waits, FlockOperation::LockExclusive));
        thread::Builder::new().name("lock".to_owned()).spawn(wait)?;
        receiver.recv_timeout(ending).unwrap_or(Ok(None))
    }

    fn lock(path: &Path, how: FlockOperation) -> io::Result<Option<Self>> {
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
            match rustix::fs::flock(&fd, how) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            // The previous holder may have removed the file between open and flock: a lock on a
            // file without a name excludes nobody.
            let ours = rustix::fs::fstat(&fd)?;
            match rustix::fs::lstat(path) {
                Ok(there) if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => {
                    return Ok(Some(Self { fd, path: path.to_owned() }));
                }
                Ok(_) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Resumes the lock that an earlier image of this process took at `path` and left open. The
    /// lock belongs to the open file and not to the process, so it is still held.
    pub fn resume(fd: OwnedFd, path: &Path) -> Self {
        Self { fd, path: path.to_owned() }
    }

    /// Removes the file, then releases the lock, in this order, so that the file of another holder
    /// is never removed.
    ///
    /// # Errors
    /// Errors from unlink(2); the lock is released in any case.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    /// The path of the lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for LockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_removal_lets_the_next_in() {
        let directory = crate::testing::Directory::new("lock");
        let path = directory.path().join("broker.lock");
        let first = LockFile::try_acquire(&path).expect("open").expect("free");
        assert!(LockFile::try_acquire(&path).expect("open").is_none());
        drop(first);
        let second = LockFile::try_acquire(&path).expect("open").expect("free again");
        second.remove().expect("remove");
        assert!(!path.exists());
        assert!(LockFile::try_acquire(&path).expect("open").is_some());
    }

    #[test]
    fn a_holder_that_ends_is_waited_for_and_one_that_answers_or_stays_is_not() {
        let directory = crate::testing::Directory::new("lock");
        let path = directory.path().join("broker.lock");
        let first = LockFile::try_acquire(&path).expect("open").expect("free");
        let long = Duration::from_secs(600);
        let refused = LockFile::acquire(&path, long, || true).expect("open");
        assert!(refused.is_none());
        let refused = LockFile::acquire(&path, Duration::from_millis(1), || false).expect("open");
        assert!(refused.is_none());
        // The holder is asked, does not answer, and ends.
        let mut first = Some(first);
        let ends = || first.take().is_none();
        let next = LockFile::acquire(&path, long, ends).expect("open").expect("free at last");
        assert!(LockFile::try_acquire(&path).expect("open").is_none());
        // With the file: a lock on a file without a name is worth nothing.
        let mut next = Some(next);
        let removed = || next.take().map(LockFile::remove).is_none();
        let last = LockFile::acquire(&path, long, removed).expect("open").expect("free at last");
        assert!(path.exists(), "{last:?}");
    }
}
