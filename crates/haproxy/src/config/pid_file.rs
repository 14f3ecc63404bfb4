//! `pidfile`: haproxy writes it as a daemon and as its own master, never in the foreground. Under
//! bindonce the file names the supervisor, which lives on through all generations.

use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::edits::Edits;

/// The lines of `global` about it.
#[derive(Debug, Default)]
pub(super) struct PidFile {
    /// The first line: its path, its copy, and where its keyword is there.
    first: Option<(Vec<u8>, usize, Range<usize>)>,
    pub(super) is_daemon: bool,
}

impl PidFile {
    /// haproxy takes the first of several lines.
    pub(super) fn take(&mut self, path: &[u8], copy: usize, keyword: Range<usize>) {
        if !path.is_empty() {
            self.first.get_or_insert_with(|| (path.to_vec(), copy, keyword));
        }
    }

    /// The file, if haproxy would write it: as a daemon or a master. A nested master would write it in any case,
    /// so the line becomes a comment.
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
