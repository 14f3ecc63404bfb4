//! What the fuzz targets check, as plain functions of bytes.
//!
//! Each takes any bytes, gives them to one reader of input from outside, and panics where it breaks a promise: not
//! only by crashing, but by giving something else for the same bytes in other pieces, or by not reading again what it
//! has written. There is one for the requests of clients and one for each file that a broker or a supervisor reads
//! when it starts:
//!
//! | file | target |
//! |---|---|
//! | the broker's configuration | `file` |
//! | what a broker left: its state file, its stored or handed over manifest | `manifest` |
//! | addresses, in all of these and in requests | `address` |
//! | the events of a broker or of a supervisor | `events` |
//! | haproxy's configuration, and the copies that were made of it | `configuration` |
//! | haproxy's command line, of its own or of a process | `command` |
//! | `state.json` of a supervisor, on disk or handed over in an upgrade | `state` |
//! | `bindonce-prepared.json` beside the copies | `prepared` |
//! | the `cluster-secret` | `secret` |
//! | `/proc/PID/stat`, where others have chosen the name | `stat` |
//!
//! What else is read there is a number or a name that the kernel writes, or is only cut at a byte (`/proc/PID/environ`). libFuzzer feeds them (tests/fuzz/run); tests/corpus.rs replays seeds/ and some random inputs, so that what
//! was found once stays found without a fuzzer.

#![forbid(unsafe_code)]

mod address;
mod command;
mod configuration;
mod events;
mod file;
mod manifest;
mod one;
mod prepared;
mod random;
mod request;
mod secret;
mod stat;
mod state;

use std::path::{Path, PathBuf};

pub use random::random;

/// A target: it returns if the bytes break no promise.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its directory in [`directory`].
pub const TARGETS: [(&str, Target); 11] = [
    ("address", address::address),
    ("command", command::command),
    ("configuration", configuration::configuration),
    ("events", events::events),
    ("file", file::file),
    ("manifest", manifest::manifest),
    ("prepared", prepared::prepared),
    ("request", request::request),
    ("secret", secret::secret),
    ("stat", stat::stat),
    ("state", state::state),
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

/// Where the seeds lie, a directory for each target.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds")
}

/// The seeds of a target, each with its path; sorted.
///
/// # Errors
/// Those of reading them.
pub fn seeds(name: &str) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = std::fs::read_dir(directory().join(name))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    paths.into_iter().map(|path| Ok((path.clone(), std::fs::read(path)?))).collect()
}
