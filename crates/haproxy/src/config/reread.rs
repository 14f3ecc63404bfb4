//! Restores a rendering that another process has saved, and checks whether the user's files are
//! still the same.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;

use super::command::Command;
use super::rendering::{Change, Rendering};
use super::world::World;
use super::{Error, files};

impl Rendering {
    /// The rendering with the texts of its copies, which are read from `copies` in the order of its
    /// files.
    ///
    /// # Errors
    /// A copy cannot be read or has been changed.
    pub fn with_copies(mut self, copies: &[PathBuf]) -> io::Result<Self> {
        if copies.len() != self.files.len() {
            return Err(io::Error::other("there are not as many copies as files"));
        }
        for (file, copy) in self.files.iter_mut().zip(copies) {
            file.text = std::fs::read(copy)?;
            let fits = |range| file.text.get::<std::ops::Range<usize>>(range).is_some();
            if !file.changes.iter().all(|change| fits(change.range.clone())) {
                return Err(io::Error::other(format!("{} has been changed", copy.display())));
            }
        }
        Ok(self)
    }

    /// Whether the files of the command are still the same. A pipe is not read and counts as
    /// changed: its content is new. A device, such as the standard input of a service, is not read
    /// either and counts as unchanged.
    ///
    /// # Errors
    /// A file cannot be read, or is a template with other tags.
    pub fn reads_as_before(&self, command: &Command, world: &dyn World) -> Result<bool, Error> {
        let directory = files::directory(command, world);
        let users = || self.files.iter().filter(|file| !file.injected);
        for file in users() {
            match std::fs::metadata(directory.join(&file.user_path)) {
                Ok(metadata) if metadata.file_type().is_fifo() => return Ok(false),
                Ok(metadata) if !metadata.is_file() => return Ok(true),
                // The error, if any, comes from reading the file.
                Ok(_) | Err(_) => {}
            }
        }
        let now = files::read(command, world)?.into_iter().map(|source| (source.path, source.text));
        Ok(users().map(|file| (file.user_path.clone(), before(&file.text, &file.changes))).eq(now))
    }
}

/// The text before the changes.
pub(super) fn before(text: &[u8], changes: &[Change]) -> Vec<u8> {
    let (mut was_text, mut at) = (Vec::with_capacity(text.len()), 0);
    for Change { range, was } in changes {
        was_text.extend_from_slice(text.get(at..range.start).unwrap_or_default());
        was_text.extend_from_slice(was);
        at = range.end;
    }
    was_text.extend_from_slice(text.get(at..).unwrap_or_default());
    was_text
}
