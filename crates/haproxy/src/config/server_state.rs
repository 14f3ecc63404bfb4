//! Finds the server-state files that a configuration loads, so that the supervisor can write the
//! state of the old generation there before the next one starts.
//!
//! The rules are those of `load-server-state-from-file`, `server-state-file-name`,
//! `server-state-base` and `server-state-file` in haproxy's configuration manual (sections 3.1 and
//! 4.2). haproxy reads the files after the configuration, so neither the order of lines nor
//! `default-path` affects their paths.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::saved;

/// A file from which haproxy takes the state of servers when it starts. The output of `show servers
/// state` of the old generation belongs there before the new one starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerState {
    /// The absolute path.
    #[serde(with = "saved::path")]
    pub path: PathBuf,
    /// The one backend whose servers the file is for, as the argument of `show servers state`; None
    /// for the global file, which covers all backends.
    pub backend: Option<String>,
}

impl ServerState {
    /// The admin CLI command that prints the file's content.
    pub fn command(&self) -> String {
        match &self.backend {
            Some(backend) => format!("show servers state {backend}"),
            None => "show servers state".to_owned(),
        }
    }

    /// The part of the answer that belongs into the file. None if haproxy answers with a sentence
    /// because it has no state yet, as for a new backend.
    pub fn text(answer: &str) -> Option<&str> {
        Some(answer.trim_start()).filter(|text| text.starts_with(|c: char| c.is_ascii_digit()))
    }
}

/// The `load-server-state-from-file` and `server-state-file-name` of a proxy or of `defaults`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Loads {
    from: From,
    /// `server-state-file-name`; None means the name of the backend.
    file: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum From {
    #[default]
    Nowhere,
    Global,
    Local,
}

impl Loads {
    /// Takes a line of a proxy or of `defaults`; lines about other things are ignored.
    pub(super) fn take(&mut self, words: &[&[u8]]) {
        let value = words.get(1).copied().unwrap_or_default();
        match (words[0], value) {
            (b"load-server-state-from-file", b"global") => self.from = From::Global,
            (b"load-server-state-from-file", b"local") => self.from = From::Local,
            (b"load-server-state-from-file", b"none") => self.from = From::Nowhere,
            (b"server-state-file-name", b"" | b"use-backend-name") => self.file = None,
            (b"server-state-file-name", name) => self.file = Some(name.to_vec()),
            _ => {}
        }
    }
}

/// The server-state lines read so far.
#[derive(Debug, Default)]
pub(super) struct ServerStates {
    base: Option<Vec<u8>>,
    global: Option<Vec<u8>>,
    /// Whether some proxy loads the global file.
    global_is_loaded: bool,
    /// The file and the backend of each `local`, in order.
    local: Vec<(Vec<u8>, Vec<u8>)>,
}

impl ServerStates {
    /// Takes a line of `global`; lines about other things are ignored. haproxy refuses a second
    /// one.
    pub(super) fn take(&mut self, keyword: &[u8], value: &[u8]) {
        let place = match keyword {
            b"server-state-base" => &mut self.base,
            b"server-state-file" => &mut self.global,
            _ => return,
        };
        if !value.is_empty() {
            place.get_or_insert_with(|| value.to_vec());
        }
    }

    /// Records the file that a backend loads, at the end of its section.
    pub(super) fn loaded_by(&mut self, backend: &[u8], loads: &Loads) {
        match loads.from {
            From::Nowhere => {}
            From::Global => self.global_is_loaded = true,
            From::Local => {
                let file = loads.file.as_deref().unwrap_or(backend);
                self.local.push((file.to_vec(), backend.to_vec()));
            }
        }
    }

    /// The files of a haproxy that runs in `directory`: the global one first.
    pub(super) fn files(self, directory: &Path) -> Vec<ServerState> {
        let base = self.base.as_deref();
        let path = |file: &[u8]| -> PathBuf {
            match base {
                Some(base) if !file.starts_with(b"/") => {
                    directory.join(OsStr::from_bytes(base)).join(OsStr::from_bytes(file))
                }
                _ => directory.join(OsStr::from_bytes(file)),
            }
        };
        let global = self.global.as_deref().filter(|_| self.global_is_loaded);
        let global = global.map(|file| ServerState { path: path(file), backend: None });
        let local = self.local.iter().map(|(file, backend)| ServerState {
            path: path(file),
            backend: Some(String::from_utf8_lossy(backend).into_owned()),
        });
        global.into_iter().chain(local).collect()
    }
}
