//! Files that outlive their process: read when the next process starts, and replaced as a whole.
//! Also paths of files that stand beside another file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bindonce_core::time::Timestamp;
use bindonce_sys::clock::now;
use bindonce_sys::directory::Directory;
use rustix::fs::OFlags;

/// The longest state that is read, in bytes: that of a million listeners.
pub const LARGEST: u64 = 256 << 20;

/// A file that is longer than this, and than twice its new text, is truncated first.
const LONGER: usize = 64 << 10;

/// The path with a suffix on its last name: `/run/b.sock` and `.state` give `/run/b.sock.state`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.to_owned().into_os_string();
    path.push(suffix);
    path.into()
}

/// FNV-1a: a hash of bytes that is the same in every version of this program.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    let add = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, add)
}

/// The content of the file at `path`; None if there is no file. Another user may have put something
/// else there, so only a regular file is read.
///
/// # Errors
/// Errors from reading the file.
pub fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    match Directory::of(path).and_then(|(directory, name)| directory.read(name, most)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Moves an unreadable file aside, to `PATH.bad-MILLISECONDS`, for a person to look at. Returns its
/// new path, for the log.
pub fn move_aside(path: &Path) -> String {
    let Timestamp(milliseconds) = now();
    let aside = with_suffix(path, &format!(".bad-{milliseconds}"));
    let moved = Directory::of(path)
        .and_then(|(directory, name)| directory.rename(name, aside.file_name().unwrap_or(name)));
    match moved {
        Ok(()) => aside.display().to_string(),
        Err(error) => format!("nowhere: {error}"),
    }
}

/// Replaces a file in one step (mode 0600), by way of `PATH.new`. Returns the new file, open for
/// appending. The caller holds a lock, so a file at `PATH.new` was left by a crash and is removed.
/// The content outlives this process; after a crash of the system it may be lost.
///
/// # Errors
/// Errors from the system calls; then the file at `path` is unchanged.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let (directory, name) = Directory::of(path)?;
    directory.replace(name, &other(name), 0o600, bytes)
}

/// Opens a file for appending, if it is this user's own and no other path leads to it; None if not.
///
/// # Errors
/// Errors from the system calls.
pub fn append(path: &Path) -> io::Result<Option<File>> {
    let (directory, name) = Directory::of(path)?;
    directory.own(name, OFlags::WRONLY | OFlags::APPEND)
}

/// Removes a file. A missing file is no error.
///
/// # Errors
/// Errors from the system calls.
pub fn remove(path: &Path) -> io::Result<()> {
    match Directory::of(path).and_then(|(directory, name)| directory.remove(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// As [`replace`], for text that is written often and may have spaces before it. The old file stays
/// at `PATH.new`; the next call overwrites it and exchanges it with the file at `path`
/// (renameat2(2), RENAME_EXCHANGE). So no file is freed: freeing a file on a disk may wait for that
/// disk, hundreds of milliseconds if it is busy.
///
/// # Errors
/// Errors from the system calls; then the file at `path` is unchanged.
pub fn exchange(path: &Path, text: &[u8]) -> io::Result<()> {
    let (directory, name) = Directory::of(path)?;
    let other = other(name);
    let file = match directory.own(&other, OFlags::WRONLY) {
        Ok(Some(file)) => file,
        // There is no such file, or it is not ours alone.
        Ok(None) | Err(_) => directory.create(&other, 0o600)?,
    };
    let mut length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if length > LONGER.max(2 * text.len()) {
        file.set_len(0)?;
        length = 0;
    }
    // Padded, not truncated: truncation would wait for data that is being written to the disk.
    let mut whole = vec![b' '; length.saturating_sub(text.len())];
    whole.extend_from_slice(text);
    file.write_all_at(&whole, 0)?;
    directory.exchange(&other, name)
}

fn other(name: &OsStr) -> OsString {
    with_suffix(Path::new(name), ".new").into_os_string()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
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
        // A directory in the way of the new file, which cannot be removed as a file.
        fs::create_dir(directory.0.join("state.new")).expect("mkdir");
        assert!(replace(&path, b"new").is_err());
        assert_eq!(fs::read_to_string(&path).expect("read"), "old");
    }
}
