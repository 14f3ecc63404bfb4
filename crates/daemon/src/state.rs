//! Files that outlive their process: read when the next one starts, and replaced as a whole. And files that
//! stand beside another one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bindonce_core::time::Timestamp;
use bindonce_sys::clock::now;
use bindonce_sys::file;
use nix::fcntl::OFlag;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// The longest state that is read: a record of a million listeners.
pub const LARGEST: u64 = 256 << 20;

/// A file that is longer than this, and than twice what is written to it, is cut first.
const LONGER: usize = 64 << 10;

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

/// As [`replace`], for text with spaces allowed before it that is written often: what was at `path` stays at `PATH.new`, and
/// the next time its file is written over and changes places with the other (renameat2(2), RENAME_EXCHANGE). To free
/// a file on a disk may wait for that disk, hundreds of milliseconds where it is busy.
///
/// # Errors
/// Those of the system calls; the file at `path` is then as it was.
pub fn exchange(path: &Path, text: &[u8]) -> io::Result<()> {
    let other = with_suffix(path, ".new");
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600).custom_flags(flags.bits());
    let file = options.open(&other)?;
    let there = file.metadata()?;
    if !there.is_file() {
        return Err(io::Error::other(format!("{} is no file", other.display())));
    }
    let mut length = usize::try_from(there.len()).unwrap_or(usize::MAX);
    if length > LONGER.max(2 * text.len()) {
        file.set_len(0)?;
        length = 0;
    }
    // Not cut: what is being written to the disk would be waited for.
    let mut whole = vec![b' '; length.saturating_sub(text.len())];
    whole.extend_from_slice(text);
    file.write_all_at(&whole, 0)?;
    match renameat_with(CWD, &other, CWD, path, RenameFlags::EXCHANGE) {
        // Nothing is at the path, or this file system cannot do it.
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => fs::rename(&other, path),
        done => Ok(done?),
    }
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
    fn two_files_take_turns_and_a_reader_sees_one_text_whole() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = Directory::new("exchange");
        let (path, other) = (directory.0.join("state"), directory.0.join("state.new"));
        fs::write(&other, "half of what a crash has left, and longer").expect("write");
        let mut inodes = std::collections::BTreeSet::new();
        for text in ["{}", "{\"a\":1}", "[]", "{\"a\":[1,2,3]}", "7"] {
            exchange(&path, text.as_bytes()).expect("exchange");
            assert_eq!(fs::read_to_string(&path).expect("read").trim_start(), text);
            inodes.insert(fs::metadata(&path).expect("stat").ino());
        }
        assert_eq!(inodes.len(), 2);
        exchange(&path, &vec![b'x'; 3 * LONGER]).expect("exchange");
        for _ in 0..2 {
            exchange(&path, b"short").expect("exchange");
        }
        assert!(fs::metadata(&path).expect("stat").len() < 100);
        fs::remove_file(&other).expect("remove");
        fs::create_dir(&other).expect("mkdir");
        assert!(exchange(&path, b"new").is_err());
        assert_eq!(fs::read_to_string(&path).expect("read").trim_start(), "short");
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
