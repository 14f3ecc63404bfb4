//! How a rendering is written down for another process. Paths need not be UTF-8, and a listener is its text. The texts of the
//! copies are not written again: they are in the copies.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::command::Command;
use super::rendering::{Change, RenderedFile, Rendering};
use super::world::World;
use super::{Error, files};

impl Rendering {
    /// The same with the texts of its copies, which are here, in the order of its files.
    ///
    /// # Errors
    /// One cannot be read, or is not what was written.
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

    /// Whether the files of the command read now as they did for this. A pipe is not read again.
    ///
    /// # Errors
    /// One cannot be read, or is a template that says too much.
    pub fn reads_as_before(&self, command: &Command, world: &dyn World) -> Result<bool, Error> {
        let directory = files::directory(command, world);
        let users = || self.files.iter().filter(|file| !file.injected);
        let is_file = |path: &Path| std::fs::metadata(directory.join(path)).map(|it| it.is_file());
        if users().any(|file| is_file(&file.user_path).is_ok_and(|is_file| !is_file)) {
            return Ok(true);
        }
        let now = files::read(command, world)?;
        let then = users().map(|file| (&file.user_path, file.users_text()));
        Ok(then.eq(now.iter().map(|source| (&source.path, source.text.clone()))))
    }
}

impl RenderedFile {
    /// The text of the user's file.
    fn users_text(&self) -> Vec<u8> {
        let (mut text, mut at) = (Vec::with_capacity(self.text.len()), 0);
        for Change { range, was } in &self.changes {
            text.extend_from_slice(self.text.get(at..range.start).unwrap_or_default());
            text.extend_from_slice(was);
            at = range.end;
        }
        text.extend_from_slice(self.text.get(at..).unwrap_or_default());
        text
    }
}

/// A path: a string, or the numbers of its bytes where it is not UTF-8.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<&Path> for Text {
    fn from(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }
}

impl From<Text> for PathBuf {
    fn from(text: Text) -> Self {
        match text {
            Text::Text(text) => text.into(),
            Text::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }
    }
}

pub(super) mod path {
    use serde::{Deserializer, Serializer};

    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        path: &Path,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        Text::from(path).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<PathBuf, D::Error> {
        Text::deserialize(from).map(PathBuf::from)
    }
}

pub(super) mod optional_path {
    use serde::{Deserializer, Serializer};

    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        path: &Option<PathBuf>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        path.as_deref().map(Text::from).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Text>::deserialize(from)?.map(PathBuf::from))
    }
}

pub(super) mod addresses {
    use bindonce_core::address::Address;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        all: &[Address],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(all.iter().map(Address::to_string))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<Address>, D::Error> {
        let all = Vec::<String>::deserialize(from)?;
        all.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

pub(super) mod listener {
    use bindonce_core::listener::{ListenSpec, Listener};
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        it: &Listener,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(it)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Listener, D::Error> {
        let spec: ListenSpec = String::deserialize(from)?.parse().map_err(D::Error::custom)?;
        Ok(spec.first)
    }
}
