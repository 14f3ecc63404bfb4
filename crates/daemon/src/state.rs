//! Files that outlive their process: read when the next one starts, and replaced as a whole. And files that
//! stand beside another one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bindonce_core::time::Timestamp;
use bindonce_sys::clock::now;
use bindonce_sys::file;

/// The longest state that is read: a record of a million listeners.
pub const LARGEST: u64 = 256 << 20;

/// The path with something added to its last name: `/run/b.sock` and `.state` give `/run/b.sock.state`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.to_owned().into_os_string();
    path.push(suffix);
    path.into()
}

/// What is written at `path`; None if nothing is there. Another user may have put something else there: only a
/// regular file is read.
///
/// # Errors
/// Those of reading it.
pub fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    match file::regular(path, most) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Moves a file that cannot be read aside, to `PATH.bad-MILLISECONDS`, for a person to look at. Gives where it is
/// then, for the log.
pub fn move_aside(path: &Path) -> String {
    let Timestamp(milliseconds) = now();
    let aside = with_suffix(path, &format!(".bad-{milliseconds}"));
    match fs::rename(path, &aside) {
        Ok(()) => aside.display().to_string(),
        Err(error) => format!("nowhere: {error}"),
    }
}

/// Writes `PATH.new` (mode 0600) and renames it: a reader sees the old or the new content, whole.
/// Gives the new file, open to append to it. The caller has a lock: what is at `PATH.new` was left by
/// a crash, and goes. What was written outlives this process; after a crash of the system it may be lost.
///
/// # Errors
/// Those of the system calls; the file at `path` is then as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let temporary = with_suffix(path, ".new");
    let mut options = OpenOptions::new();
    options.append(true).create_new(true).mode(0o600);
    let mut file = match options.open(&temporary) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&temporary)?;
            options.open(&temporary)?
        }
        opened => opened?,
    };
    if let Err(error) = file.write_all(bytes).and_then(|()| fs::rename(&temporary, path)) {
        // Half of it on a full disk would take the room that the next attempt needs.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::testing::Directory;

    #[test]
    fn the_content_is_replaced_and_may_be_added_to() {
        let directory = Directory::new("files");
        let path = directory.0.join("state");
        fs::write(directory.0.join("state.new"), "left by a crash").expect("write");
        let mut file = replace(&path, b"one\n").expect("replace");
        file.write_all(b"two\n").expect("append");
        assert_eq!(fs::read_to_string(&path).expect("read"), "one\ntwo\n");
        let mode = fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!directory.0.join("state.new").exists());
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old() {
        let directory = Directory::new("files-old");
        let path = directory.0.join("state");
        drop(replace(&path, b"old").expect("replace"));
        // In the way of the new file, and not to be removed as one.
        fs::create_dir(directory.0.join("state.new")).expect("mkdir");
        assert!(replace(&path, b"new").is_err());
        assert_eq!(fs::read_to_string(&path).expect("read"), "old");
    }
}
