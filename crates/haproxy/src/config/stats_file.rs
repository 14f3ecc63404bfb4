//! Which `stats-file` a configuration loads, and which frontends, backends and servers have a `guid` in it.
//!
//! haproxy (3.0 and later) reads the file when it starts, after the configuration, and begins to count with what it says about each
//! object that has a GUID. Source: its configuration manual, "stats-file" (section 3.1) and "guid" (4.2, 5.2); its management guide,
//! 9.5, "Stats-file".

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::saved;

/// What tells a generation to write its counters, for the file.
const QUESTION: &str = "dump stats-file";

/// What each GUID names: a proxy, and perhaps one of its servers.
pub type Guids = BTreeMap<String, (String, Option<String>)>;

/// The file from which haproxy takes its counters when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsFile {
    /// Where it is: absolute.
    #[serde(with = "saved::path")]
    pub path: PathBuf,
    /// What has a GUID.
    pub guids: Guids,
}

impl StatsFile {
    /// The command of the admin CLI that tells it.
    pub fn command(&self) -> &'static str {
        QUESTION
    }

    /// What the answer to that command has for the file; None if it is something else.
    pub fn text(answer: &str) -> Option<&str> {
        Some(answer.trim_start()).filter(|text| text.starts_with("#fe guid,"))
    }
}

/// What has been read so far.
#[derive(Debug, Default)]
pub(super) struct Reading {
    path: Option<Vec<u8>>,
    guids: Guids,
}

impl Reading {
    /// `stats-file`. haproxy refuses a second one.
    pub(super) fn take(&mut self, path: &[u8]) {
        if !path.is_empty() {
            self.path.get_or_insert_with(|| path.to_vec());
        }
    }

    /// A line of the proxy of this name. Which words of a `server` line are values of others only haproxy knows: a
    /// value that reads `guid` makes a name that no file has.
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

    /// The file, when haproxy runs in `directory`.
    pub(super) fn finish(self, directory: &Path) -> Option<StatsFile> {
        let path = directory.join(OsStr::from_bytes(&self.path?));
        Some(StatsFile { path, guids: self.guids })
    }
}
