//! Remembers haproxy's answers, so that a reload with the same questions does not start another
//! haproxy.
//!
//! An answer depends on the binary and its libraries, the switches, the directory, the environment,
//! the user and the questions. All of these are compared; the libraries by the file that
//! ldconfig(8) rewrites when one is installed. A script may answer differently each time, and so
//! may libraries that the environment names: both are always asked.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bindonce_sys::subprocess::User;

use super::questions::{Answers, Questions};
use super::world::Environment;

/// Number of answers to remember: the latest ones.
const MOST: usize = 8;

/// The cache that decides which libraries a binary finds.
const LIBRARIES: &str = "/etc/ld.so.cache";

static KNOWN: Mutex<Vec<(Query, Answers)>> = Mutex::new(Vec::new());

/// Everything that an answer depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    program: Version,
    libraries: Option<Version>,
    switches: Vec<OsString>,
    directory: PathBuf,
    environment: Environment,
    user: Option<User>,
    questions: Questions,
}

/// The identity of a file's content: a rewritten or replaced file has another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Version {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl Query {
    /// The questions to `program`, as found and run in this directory and environment. None if the
    /// answer must not be remembered.
    pub(super) fn new(
        program: &OsStr,
        switches: Vec<OsString>,
        directory: &Path,
        environment: &Environment,
        user: Option<User>,
        questions: &Questions,
    ) -> Option<Self> {
        if environment.keys().any(|name| name.starts_with(b"LD_")) {
            return None;
        }
        let path = environment.get(&b"PATH"[..]).map(Vec::as_slice);
        let mut file = File::open(find(program, directory, path)?).ok()?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic).ok()?;
        if &magic != b"\x7fELF" {
            return None;
        }
        Some(Self {
            program: Version::of(&file.metadata().ok()?),
            libraries: std::fs::metadata(LIBRARIES).ok().map(|file| Version::of(&file)),
            switches,
            directory: directory.to_owned(),
            environment: environment.clone(),
            user,
            questions: questions.clone(),
        })
    }

    /// The remembered answers.
    pub(super) fn answers(&self) -> Option<Answers> {
        let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(asked, _)| asked == self).map(|(_, answers)| answers.clone())
    }

    /// Remembers the answers. An error is not an answer.
    pub(super) fn remember(self, answers: &Answers) {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.remove(0);
        }
        known.push((self, answers.clone()));
    }
}

/// The path of a program that is started in this directory with this PATH.
fn find(name: &OsStr, directory: &Path, path: Option<&[u8]>) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(directory.join(name));
    }
    let folders = path?.split(|byte| *byte == b':').map(OsStr::from_bytes);
    folders.map(|folder| directory.join(folder).join(name)).find(|path| path.is_file())
}
