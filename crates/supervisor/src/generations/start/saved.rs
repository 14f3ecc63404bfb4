//! A rendered configuration on disk, beside its copies: what another supervisor, or another image of this one, needs to
//! start the same again.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::haproxy::{Facts, Rendered};
use crate::kind::Haproxy;
use bindonce_haproxy::config::Rendering;

/// Two lines of JSON: the facts, and the rendering without the texts of its copies.
const NAME: &str = "bindonce-prepared.json";

/// Writes it; `rendering` is JSON already.
pub(super) fn save(directory: &Path, facts: &Facts, rendering: &[u8]) -> io::Result<()> {
    let mut text = serde_json::to_vec(facts)?;
    text.push(b'\n');
    text.extend_from_slice(rendering);
    write(&directory.join(NAME), &text)
}

/// Reads what is in this directory, for this haproxy.
pub(super) fn load(kind: &Haproxy, directory: &Path) -> io::Result<Rendered> {
    let text = std::fs::read(directory.join(NAME))?;
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    let (facts, rendering) = text.split_at(end);
    let facts: Facts = serde_json::from_slice(facts)?;
    let rendering: Rendering = serde_json::from_slice(rendering)?;
    let copies: Vec<_> = rendering.files.iter().map(|file| directory.join(&file.name)).collect();
    let rendering = rendering.with_copies(&copies)?;
    let kind = match facts.caller.as_deref() {
        Some(caller) => kind.of(caller.clone()).map_err(io::Error::other)?,
        None => kind.clone(),
    };
    Ok(Rendered::new(kind, rendering, directory, facts))
}

/// Writes a file for this user alone.
pub(super) fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(text)
}
