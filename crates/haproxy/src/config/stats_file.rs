//! Finds the `stats-file` that a configuration loads, and the frontends, backends and servers that
//! have a `guid` in it.
//!
//! haproxy (3.0 and later) reads the file when it starts, after the configuration, and initializes
//! the counters of each object that has a GUID. Source: configuration manual, "stats-file" (section
//! 3.1) and "guid" (4.2, 5.2); management guide, 9.5, "Stats-file".

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::saved;

/// The command with which a generation prints its counters for the file.
const QUESTION: &str = "dump stats-file";

/// The object of each GUID: a proxy, or a proxy and one of its servers.
pub type Guids = BTreeMap<String, (String, Option<String>)>;

/// The file from which haproxy takes its counters when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsFile {
    /// The absolute path.
    #[serde(with = "saved::path")]
    pub path: PathBuf,
    /// The objects with a GUID.
    pub guids: Guids,
}

impl StatsFile {
    /// The admin CLI command that prints the file's content.
    pub fn command(&self) -> &'static str {
        QUESTION
    }

    /// The part of the answer that belongs into the file; None if the answer is something else.
    pub fn text(answer: &str) -> Option<&str> {
        Some(answer.trim_start()).filter(|text| text.starts_with("#fe guid,"))
    }
}

/// The `stats-file` and `guid` lines read so far.
#[derive(Debug, Default)]
pub(super) struct Reading {
    path: Option<Vec<u8>>,
    guids: Guids,
}

impl Reading {
    /// Takes a `stats-file` line. haproxy refuses a second one.
    pub(super) fn take(&mut self, path: &[u8]) {
        if !path.is_empty() {
            self.path.get_or_insert_with(|| path.to_vec());
        }
    }

    /// Takes a line of the proxy with this name. Only haproxy knows which words of a `server` line
    /// are values of options: a value that reads `guid` adds a name that no file has.
    pub(super) fn line(&mut self, proxy: &[u8], words: &[&[u8]]) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (options, server) = match words {
            [b"guid", ..] => (words, None),
            [b"server", name, _, options @ ..] => (options, Some(text(name))),
            _ => return,
        };
        for pair in options.windows(2).filter(|pair| pair[0] == b"guid") {
            self.guids.insert(text(pair[1]), (text(proxy), server.clone()));
        }
    }

    /// The file of a haproxy that runs in `directory`.
    pub(super) fn finish(self, directory: &Path) -> Option<StatsFile> {
        let path = directory.join(OsStr::from_bytes(&self.path?));
        Some(StatsFile { path, guids: self.guids })
    }
}
