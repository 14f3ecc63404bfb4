//! What it takes to translate haproxy's messages, for the next image of the process that does.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use bindonce_core::listener::ListenSpec;
use serde::{Deserialize, Serialize};

use super::Place;
use super::rendering::{Binding, Change, RenderedFile, Rendering};

/// Saved [`Messages`](super::Messages). Paths and the user's text are bytes: they need not be UTF-8.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedMessages {
    first: RawFd,
    files: Vec<SavedFile>,
    bindings: Vec<SavedBinding>,
}

/// A copy. Its text is read again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct SavedFile {
    copy: Vec<u8>,
    user_path: Vec<u8>,
    changes: Vec<(Range<usize>, Box<[u8]>)>,
}

/// One descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct SavedBinding {
    listener: String,
    file: Vec<u8>,
    line: usize,
    text: String,
}

impl SavedMessages {
    pub(super) fn new(rendering: &Rendering, copies: &[Vec<u8>], first: RawFd) -> Self {
        let file = |(file, copy): (&RenderedFile, &Vec<u8>)| SavedFile {
            copy: copy.clone(),
            user_path: bytes(&file.user_path),
            changes: file.changes.iter().map(|it| (it.range.clone(), it.was.clone())).collect(),
        };
        let binding = |binding: &Binding| SavedBinding {
            listener: binding.listener.to_string(),
            file: bytes(&binding.place.file),
            line: binding.place.line,
            text: binding.text.clone(),
        };
        Self {
            first,
            files: rendering.files.iter().zip(copies).map(file).collect(),
            bindings: rendering.bindings.iter().map(binding).collect(),
        }
    }

    /// As much of the rendering as messages need, the paths of the copies, and the first number.
    pub(super) fn read(self) -> io::Result<(Rendering, Vec<PathBuf>, RawFd)> {
        let copies: Vec<PathBuf> = self.files.iter().map(|file| path(file.copy.clone())).collect();
        let file = |(file, copy): (SavedFile, &PathBuf)| {
            let text = std::fs::read(copy)?;
            let fits = |(range, _): &(Range<usize>, _)| text.get(range.clone()).is_some();
            if !file.changes.iter().all(fits) {
                return Err(io::Error::other("the copy has been changed"));
            }
            let changes = file.changes.into_iter().map(|(range, was)| Change { range, was });
            Ok(RenderedFile {
                user_path: path(file.user_path),
                name: String::new(),
                injected: false,
                changes: changes.collect(),
                text,
            })
        };
        let binding = |saved: SavedBinding| {
            let listener: ListenSpec = saved.listener.parse().map_err(io::Error::other)?;
            Ok(Binding {
                inherited: None,
                listener: listener.first,
                variable: String::new(),
                place: Place { file: path(saved.file), line: saved.line },
                also: Vec::new(),
                section: String::new(),
                text: saved.text,
            })
        };
        let rendering = Rendering {
            files: self.files.into_iter().zip(&copies).map(file).collect::<io::Result<_>>()?,
            bindings: self.bindings.into_iter().map(binding).collect::<io::Result<_>>()?,
            ..Rendering::default()
        };
        Ok((rendering, copies, self.first))
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}
