//! Reads the files of a command, once each, because one may be a pipe.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::command::Command;
use super::world::World;
use super::{Error, templates};

/// A file of the user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// The path that haproxy alone would have used.
    pub(super) path: PathBuf,
    /// The text; for a template, the configuration that it generates.
    pub(super) text: Vec<u8>,
}

/// haproxy's working directory.
pub(super) fn directory(command: &Command, world: &dyn World) -> PathBuf {
    let mut directory = world.directory();
    if let Some(change) = &command.directory {
        directory.push(change);
    }
    directory
}

/// Reads the files in haproxy's order.
///
/// # Errors
/// [`Error::Read`], and errors in a template.
pub(super) fn read(command: &Command, world: &dyn World) -> Result<Vec<Source>, Error> {
    let directory = directory(command, world);
    let mut sources = Vec::new();
    for path in paths(command, world, &directory)? {
        let read = world.read(&directory.join(&path));
        let mut text = read.map_err(|source| Error::Read { path: path.clone(), source })?;
        if templates::is_template(&path) {
            text = templates::addresses(&path, &text)?;
        }
        sources.push(Source { path, text });
    }
    Ok(sources)
}

/// The variable with haproxy's list of its files, which haproxy first sets at the end of a pass.
pub(super) const CFGFILES: &str = "HAPROXY_CFGFILES";

/// The files as haproxy lists them in [`CFGFILES`].
pub(super) fn listed(sources: &[Source]) -> Vec<u8> {
    let paths: Vec<&[u8]> =
        sources.iter().map(|source| source.path.as_os_str().as_bytes()).collect();
    paths.join(&b';')
}

/// The files in haproxy's order. A directory stands for every `*.cfg` in it except hidden ones, in
/// the order of their bytes (haproxy stays in the C locale).
fn paths(
    command: &Command,
    world: &dyn World,
    directory: &std::path::Path,
) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    for path in &command.files {
        let listed = world.list(&directory.join(path));
        let listed = listed.map_err(|source| Error::Read { path: path.clone(), source })?;
        let Some(mut names) = listed else {
            paths.push(path.clone());
            continue;
        };
        // haproxy requires the first ".cfg" in the name to be at its end.
        names.retain(|name| {
            let name = name.as_bytes();
            let first = name.windows(4).position(|part| part == b".cfg");
            !name.starts_with(b".") && first.is_some_and(|at| at + 4 == name.len())
        });
        names.sort();
        for name in names {
            let mut full = path.as_os_str().to_owned();
            full.push("/");
            full.push(name);
            paths.push(full.into());
        }
    }
    Ok(paths)
}
