//! Which file a path leads to, to tell it from another at the same path.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct File {
    dev: u64,
    ino: u64,
}

impl File {
    /// The file at this path itself, if there is one.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let found = fs::symlink_metadata(path).ok()?;
        Some(Self { dev: found.dev(), ino: found.ino() })
    }
}
