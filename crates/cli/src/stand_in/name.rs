//! The name of a service that was given none: from its pid file, else from its configuration.

use std::ffi::OsStr;
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

/// Extensions that do not distinguish one file from another.
const USUAL: [&str; 3] = ["pid", "cfg", "conf"];

/// The name of a command's service: that of its pid file (`-p`) without a usual extension, else that
/// of its first configuration file. Outside the directories of packages, and where a part of the
/// file's name is lost, a hash of the path is added.
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
    let first = paths.first().map_or(Path::new(""), PathBuf::as_path);
    let is_usual = |it: &OsStr| USUAL.iter().any(|usual| it == *usual);
    let stem = match first.extension() {
        Some(extension) if is_usual(extension) => first.file_stem(),
        _ => first.file_name(),
    };
    let stem = stem.unwrap_or_default().to_string_lossy();
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
        && name == stem
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
            ("/run/haproxy.web", "haproxy.web"),
            ("/etc/haproxy/haproxy.cfg.blue", "haproxy.cfg.blue"),
        ] {
            assert_eq!(name(&[path]), expected, "{path}");
        }
        let elsewhere = ["/srv/a/haproxy.cfg", "/srv/b/haproxy.cfg"];
        assert_ne!(name(&elsewhere[..1]), name(&elsewhere[1..]));
        assert_ne!(name(&elsewhere), name(&elsewhere[..1]));
        assert_ne!(name(&["/run/haproxy@a.pid"]), name(&["/run/haproxy_a.pid"]));
        let long = "x".repeat(40);
        let [one, two] = ["a", "b"].map(|end| format!("/run/{long}{end}.pid"));
        assert_ne!(name(&[one.as_str()]), name(&[two.as_str()]));
        for paths in [&["/srv/1 \u{e4}.cfg"][..], &["/"], &elsewhere, &["/run/1.pid"]] {
            assert!(name(paths).parse::<Name>().is_ok(), "{paths:?} {}", name(paths));
        }
    }
}
