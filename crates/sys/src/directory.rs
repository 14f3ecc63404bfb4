//! The directory of a file, opened once, and whether others can redirect its path.
//!
//! A broker binds for others, and a supervisor writes where haproxy's user may write: a path must
//! not lead them where that user could not go. A symbolic link is followed only if nobody but root
//! and this process's user can change it; any other link is an error (ELOOP). All further
//! operations use this descriptor and a single name: exchanging the directory meanwhile changes
//! nothing, and nothing is written through a link or a hard link.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::fs::{fstat, openat, renameat, renameat_with, unlinkat};

use crate::{file, path_walk};

const NAME: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    pub(crate) fd: OwnedFd,
    /// Nobody but root and this process's user can make the path lead to another directory.
    pub(crate) pinned: bool,
}

impl Directory {
    /// Opens the directory that contains `path`; also returns the path's last name.
    ///
    /// # Errors
    /// Errors from the system calls. ELOOP for a link that others can change.
    pub fn of(path: &Path) -> io::Result<(Self, &OsStr)> {
        let name = path.file_name().ok_or(Errno::EISDIR)?;
        let parent = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => path,
        };
        Ok((Self::open(parent)?, name))
    }

    /// Opens the directory at `path`.
    ///
    /// # Errors
    /// As [`Directory::of`].
    pub fn open(path: &Path) -> io::Result<Self> {
        let own = nix::unistd::geteuid().as_raw();
        let mut pinned = true;
        let walked = path_walk::walk(path, |step| {
            let kept = step.keeps(own);
            if step.is_link() && !kept {
                return ControlFlow::Break(());
            }
            pinned &= kept;
            ControlFlow::Continue(())
        })?;
        match walked {
            ControlFlow::Continue(fd) => Ok(Self { fd, pinned }),
            ControlFlow::Break(()) => Err(Errno::ELOOP.into()),
        }
    }

    /// Reads a regular file of at most `most` bytes. Opens nothing else, and follows no link.
    ///
    /// # Errors
    /// Errors from the system calls, and for anything that is not such a file.
    pub fn read(&self, name: &OsStr, most: u64) -> io::Result<Vec<u8>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        file::found(&File::from(openat(&self.fd, name, flags, Mode::empty())?), most)
    }

    /// Creates a new file of this process's user, replacing anything with this name.
    ///
    /// # Errors
    /// Errors from the system calls.
    pub fn create(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        match self.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = NAME | OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL;
        Ok(openat(&self.fd, name, flags, Mode::from_raw_mode(mode))?.into())
    }

    /// As [`Directory::create`]. Where nothing can be removed, a file of this process's user is
    /// emptied instead.
    ///
    /// # Errors
    /// As [`Directory::create`].
    pub fn rewrite(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        let refused = match self.create(name, mode) {
            Err(error) => error,
            created => return created,
        };
        // It is emptied only once it is known to be ours.
        let Ok(Some(file)) = self.own(name, OFlags::WRONLY) else { return Err(refused) };
        file.set_len(0)?;
        Ok(file)
    }

    /// Whether there is a file that this process's user owns and may write.
    pub fn has_own(&self, name: &OsStr) -> bool {
        matches!(self.own(name, OFlags::WRONLY), Ok(Some(_)))
    }

    /// Opens a regular file of this process's user for writing. None if the name belongs to
    /// something else, or if the file has a second name (a hard link, which another user may have
    /// planted).
    ///
    /// # Errors
    /// Errors from the system calls.
    pub fn own(&self, name: &OsStr, flags: OFlags) -> io::Result<Option<File>> {
        let file = openat(&self.fd, name, NAME | flags, Mode::empty())?;
        let found = fstat(&file)?;
        let own = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
            && found.st_uid == nix::unistd::geteuid().as_raw()
            && found.st_nlink == 1;
        Ok(own.then(|| file.into()))
    }

    /// Replaces a file in one step: a reader sees the old or the new content, whole. The new
    /// content is written under the name `temporary`, replacing anything with that name. Returns
    /// the new file, open for appending.
    ///
    /// # Errors
    /// Errors from the system calls; the file `name` is then unchanged.
    pub fn replace(
        &self,
        name: &OsStr,
        temporary: &OsStr,
        mode: u32,
        bytes: &[u8],
    ) -> io::Result<File> {
        let mut file = self.create(temporary, mode)?;
        if let Err(error) = file.write_all(bytes).and_then(|()| self.rename(temporary, name)) {
            // On a full disk half a file would take the room that the next attempt needs.
            let _ = self.remove(temporary);
            return Err(error);
        }
        Ok(file)
    }

    /// As [`Directory::replace`], by way of `.new`: a file that its owner alone may read, in a
    /// directory in which only this process writes, one file at a time.
    ///
    /// # Errors
    /// As [`Directory::replace`].
    pub fn replace_private(&self, name: &OsStr, bytes: &[u8]) -> io::Result<()> {
        self.replace(name, ".new".as_ref(), 0o600, bytes).map(drop)
    }

    /// Renames a file, replacing anything with the new name.
    ///
    /// # Errors
    /// Errors from renameat(2).
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Exchanges two files. If the second does not exist, or the file system does not support it,
    /// the first replaces the second.
    ///
    /// # Errors
    /// Errors from renameat2(2).
    pub fn exchange(&self, one: &OsStr, other: &OsStr) -> io::Result<()> {
        use rustix::io::Errno;
        match renameat_with(&self.fd, one, &self.fd, other, RenameFlags::EXCHANGE) {
            Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => self.rename(one, other),
            done => Ok(done?),
        }
    }

    /// Removes a file.
    ///
    /// # Errors
    /// Errors from unlinkat(2).
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, AtFlags::empty())?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};

    use super::*;
    use crate::testing;

    /// A user with write access to the directory sets up every kind of trap under the names in use.
    #[test]
    fn what_others_have_put_under_a_name_leads_to_no_other_file() {
        let scene = testing::Directory::new("traps");
        let (victim, file) = (scene.path().join("victim"), scene.path().join("file"));
        fs::write(&victim, "precious").expect("write");
        let untouched = || assert_eq!(fs::read_to_string(&victim).expect("read"), "precious");
        let lay = |trap: &dyn Fn(&Path)| {
            for path in [&file, &file.with_file_name("new")] {
                let _ = fs::remove_file(path);
                trap(path);
            }
        };
        let link = |path: &Path| symlink(&victim, path).expect("symlink");
        let second_name = |path: &Path| fs::hard_link(&victim, path).expect("link");
        let traps: [&dyn Fn(&Path); 2] = [&link, &second_name];
        for trap in traps {
            let (directory, name) = Directory::of(&file).expect("the directory");
            lay(trap);
            drop(directory.replace(name, "new".as_ref(), 0o600, b"text").expect("replace"));
            assert_eq!(directory.read(name, 100).expect("read"), b"text");
            untouched();
            lay(trap);
            directory.create(name, 0o600).expect("create").write_all(b"new").expect("write");
            untouched();
            lay(trap);
            let opened = directory.own(name, OFlags::WRONLY);
            assert!(!matches!(opened, Ok(Some(_))), "{opened:?}");
            drop(directory.create(name, 0o600).expect("create"));
            assert!(directory.own(name, OFlags::WRONLY).expect("open").is_some());
        }
    }

    #[test]
    fn a_file_that_cannot_be_removed_is_written_where_it_is() {
        let scene = testing::Directory::new("rewritten");
        let (place, file) = (scene.path().join("place"), scene.path().join("place/file"));
        fs::create_dir(&place).expect("mkdir");
        fs::write(&file, "a longer text").expect("write");
        let allow = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
        };
        for (path, mode) in [(scene.path(), 0o755), (&*file, 0o666), (&*place, 0o555)] {
            allow(path, mode);
        }
        let work = move || {
            // Root could remove it all the same. This is for this thread alone.
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_533));
            let (directory, name) = Directory::of(&file).expect("the directory");
            assert!(directory.create(name, 0o644).is_err());
            assert!(directory.has_own(name) && !directory.has_own("other".as_ref()));
            let mut rewritten = directory.rewrite(name, 0o644).expect("rewrite");
            rewritten.write_all(b"text").expect("write");
            assert_eq!(directory.read(name, 100).expect("read"), b"text");
            assert!(directory.rewrite("other".as_ref(), 0o644).is_err());
        };
        std::thread::spawn(work).join().expect("all as it should be");
        // The removal of the scene needs it.
        allow(&place, 0o755);
    }

    #[test]
    fn a_directory_that_is_exchanged_or_a_link_of_others_leads_nowhere_else() {
        let scene = testing::Directory::new("exchanged");
        let (theirs, roots) = (scene.path().join("theirs"), scene.path().join("roots"));
        fs::create_dir(&theirs).expect("mkdir");
        fs::create_dir(&roots).expect("mkdir");
        let file = theirs.join("file");
        let (directory, name) = Directory::of(&file).expect("the directory");
        fs::rename(&theirs, scene.path().join("away")).expect("rename");
        symlink(&roots, &theirs).expect("symlink");
        drop(directory.replace(name, "new".as_ref(), 0o600, b"text").expect("replace"));
        assert_eq!(fs::read_dir(&roots).expect("list").count(), 0);
        assert_eq!(fs::read(scene.path().join("away/file")).expect("read"), b"text");
        if nix::unistd::geteuid().is_root() {
            // Opened again: the link is another user's, in a directory that is not root's alone.
            lchown(&theirs, Some(65_533), None).expect("lchown");
            let all = fs::Permissions::from_mode(0o1777);
            fs::set_permissions(scene.path(), all).expect("chmod");
            let refused = Directory::of(&file).expect_err("a link of another user");
            assert_eq!(refused.raw_os_error(), Some(nix::libc::ELOOP));
        }
    }
}
