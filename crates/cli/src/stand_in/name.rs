//! The name of a service that was given none: from its pid file, else from its configuration.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bindonce_core::name::Name;
use bindonce_haproxy::config::Command;
use bindonce_sys::directory::Directory;
use nix::unistd::AccessFlags;

/// Directories with one haproxy of each name, so that the name alone is enough.
const WELL_KNOWN: [&str; 6] =
    ["/run", "/var/run", "/run/haproxy", "/etc", "/etc/haproxy", "/usr/local/etc/haproxy"];

/// The name of a command's service: that of its pid file (`-p`) without the extension, else that of
/// its first configuration file. Outside the directories of packages, a hash of the path is added.
pub(super) fn of(command: &Command) -> anyhow::Result<Name> {
    let here = std::env::current_dir().context("cannot tell the current directory")?;
    let here = command.directory.as_ref().map_or_else(|| here.clone(), |other| here.join(other));
    let paths: Vec<PathBuf> = match &command.role.pid_file {
        Some(file) => vec![here.join(file)],
        None => command.files.iter().map(|file| here.join(file)).collect(),
    };
    Ok(after(&paths).parse()?)
}

fn after(paths: &[PathBuf]) -> String {
    let stem = paths.first().and_then(|path| path.file_stem()).unwrap_or_default();
    let stem = stem.to_string_lossy();
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
    let mut name: String = stem.chars().take(40).map(allowed).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        name.insert(0, '_');
    }
    let well_known = |path: &Path| {
        path.parent()
            .is_some_and(|parent| WELL_KNOWN.iter().any(|known| parent == Path::new(known)))
    };
    if let [only] = paths
        && well_known(only)
    {
        return name;
    }
    let bytes = paths.iter().flat_map(|path| path.as_os_str().as_bytes().iter().chain([&0]));
    // FNV-1a: it distinguishes paths, and keeps no secret.
    let hash = bytes
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{name}-{hash:08x}")
}

/// Fails, in haproxy's words, if haproxy could not write its pid to this path, which is relative to
/// `directory`.
pub(super) fn can_write(path: &Path, directory: &Path) -> anyhow::Result<()> {
    let place = directory.join(path);
    if place.is_dir() {
        bail!("Cannot create pidfile {}: it is a directory", path.display());
    }
    let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    // A file that cannot be removed is written where it is.
    let is_ours = || Directory::of(&place).is_ok_and(|(directory, name)| directory.has_own(name));
    match nix::unistd::access(parent, AccessFlags::W_OK | AccessFlags::X_OK) {
        Err(error) if !is_ours() => {
            Err(error).with_context(|| format!("Cannot create pidfile {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_where_there_is_one_and_different_elsewhere() {
        let name = |paths: &[&str]| after(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        for (path, expected) in [
            ("/run/haproxy.pid", "haproxy"),
            ("/etc/haproxy/haproxy.cfg", "haproxy"),
            ("/usr/local/etc/haproxy/edge.cfg", "edge"),
            ("/etc/haproxy", "haproxy"),
        ] {
            assert_eq!(name(&[path]), expected, "{path}");
        }
        let elsewhere = ["/srv/a/haproxy.cfg", "/srv/b/haproxy.cfg"];
        assert_ne!(name(&elsewhere[..1]), name(&elsewhere[1..]));
        assert_ne!(name(&elsewhere), name(&elsewhere[..1]));
        for paths in [&["/srv/1 \u{e4}.cfg"][..], &["/"], &elsewhere, &["/run/1.pid"]] {
            assert!(name(paths).parse::<Name>().is_ok(), "{paths:?} {}", name(paths));
        }
    }
}
