//! Which server-state files a configuration loads, so that the state of the
//! generation before is in them when the next one starts.
//!
//! The rules are those of `load-server-state-from-file`, `server-state-file-name`,
//! `server-state-base` and `server-state-file` in haproxy's configuration manual
//! (sections 3.1 and 4.2). haproxy reads the files after the configuration, so
//! neither the order of lines nor `default-path` matters for where they are.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::saved;

/// A file from which haproxy takes the state of servers when it starts. What
/// `show servers state` prints for the older generation belongs there before the
/// newer one starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerState {
    /// Where it is: absolute.
    #[serde(with = "saved::path")]
    pub path: PathBuf,
    /// The one backend whose servers it is for, as the argument of `show servers
    /// state`; none for the global file, which has those of all backends.
    pub backend: Option<String>,
}

impl ServerState {
    /// The command of the admin CLI that tells it.
    pub fn command(&self) -> String {
        match &self.backend {
            Some(backend) => format!("show servers state {backend}"),
            None => "show servers state".to_owned(),
        }
    }

    /// What the answer to that command has for the file; None if haproxy has no state yet, as for a backend that is
    /// new: it says so in a sentence.
    pub fn text(answer: &str) -> Option<&str> {
        Some(answer.trim_start()).filter(|text| text.starts_with(|c: char| c.is_ascii_digit()))
    }
}

/// Where a proxy takes the state of its servers from, and what it inherits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Loads {
    from: From,
    /// `server-state-file-name`; without one the file is named after the backend.
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
    /// Takes a line of a proxy or of `defaults`, if it is about server states.
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

/// What has been read so far.
#[derive(Debug, Default)]
pub(super) struct ServerStates {
    base: Option<Vec<u8>>,
    global: Option<Vec<u8>>,
    /// Some proxy loads the global file.
    global_is_loaded: bool,
    /// The file and the proxy of each `local`, in order.
    local: Vec<(Vec<u8>, Vec<u8>)>,
}

impl ServerStates {
    /// Takes a line of `global`, if it is about server states. haproxy refuses a second one.
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

    /// Takes what a backend loads, when its section has ended.
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

    /// The files, when haproxy runs in `directory`: the global one first.
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
