//! The identity of the file at a path, to tell it from a replacement.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A file, by its device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct File {
    dev: u64,
    ino: u64,
}

impl File {
    /// The file at this path, if there is one. Symbolic links are not followed.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let found = fs::symlink_metadata(path).ok()?;
        Some(Self { dev: found.dev(), ino: found.ino() })
    }
}
