//! What the fuzz targets check, as plain functions of bytes.
//!
//! Each takes any bytes, gives them to one reader of input from outside, and panics where it breaks a promise: not
//! only by crashing, but by giving something else for the same bytes in other pieces, or by not reading again what it
//! has written. There is one for the requests of clients and one for each file that a broker or a supervisor reads
//! when it starts. libFuzzer feeds them (tests/fuzz/run); tests/corpus.rs replays seeds/ and some random inputs, so that what
//! was found once stays found without a fuzzer.

#![forbid(unsafe_code)]

mod address;
mod command;
mod configuration;
mod events;
mod file;
mod manifest;
mod one;
mod random;
mod request;
mod secret;
mod state;

use std::path::{Path, PathBuf};

pub use random::random;

/// A target: it returns if the bytes break no promise.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its directory in [`directory`].
pub const TARGETS: [(&str, Target); 9] = [
    ("address", address::address),
    ("command", command::command),
    ("configuration", configuration::configuration),
    ("events", events::events),
    ("file", file::file),
    ("manifest", manifest::manifest),
    ("request", request::request),
    ("secret", secret::secret),
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
