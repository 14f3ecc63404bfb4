//! `pidfile`: haproxy writes the file as a daemon and as its own master, never in the foreground.
//! Under bindonce the file names the supervisor, which outlives every generation.

use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::edits::Edits;

/// The `pidfile` and `daemon` lines of `global`.
#[derive(Debug, Default)]
pub(super) struct PidFile {
    /// The first `pidfile` line: its path, the number of its copy, and the range of its keyword in
    /// that copy.
    first: Option<(Vec<u8>, usize, Range<usize>)>,
    pub(super) is_daemon: bool,
}

impl PidFile {
    /// Takes a `pidfile` line. haproxy uses the first of several.
    pub(super) fn take(&mut self, path: &[u8], copy: usize, keyword: Range<usize>) {
        if !path.is_empty() {
            self.first.get_or_insert_with(|| (path.to_vec(), copy, keyword));
        }
    }

    /// The file, if haproxy would write it: as a daemon or a master. A nested master would write it
    /// in any case, so the line becomes a comment.
    pub(super) fn finish(
        self,
        would_write: bool,
        nested: bool,
        directory: &Path,
        edits: &mut Edits,
    ) -> Option<PathBuf> {
        let (path, copy, keyword) = self.first.filter(|_| would_write)?;
        if nested {
            edits.add(copy, keyword, b"#pidfile".to_vec());
        }
        Some(directory.join(std::ffi::OsStr::from_bytes(&path)))
    }
}
