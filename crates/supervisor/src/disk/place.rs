//! The location of a service's files: `SERVICE.d/` beside the broker's socket, or, where another
//! user could replace that directory, a directory that only the supervisor's user can write.
//!
//! A supervisor executes haproxy on the files there and signals the processes named there. As
//! packaged, the broker's directory belongs to the broker's user and the supervisor is root: beside
//! the socket that user could swap the directory and become root with the next start. So root's
//! supervisor keeps everything below [`PRIVATE`], and leaves a symbolic link beside the socket for
//! people. Clients of the control socket look in the same places in the same order.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink,
};
use std::path::{Path, PathBuf};

use bindonce_core::name::Name;
use bindonce_daemon::state::fnv1a;
use bindonce_sys::trusted::{self, Untrusted};
use nix::libc;

/// The file of events, which the next supervisor continues.
pub(crate) const EVENTS: &str = "events.jsonl";

/// The directory for root's services whose broker's directory cannot be trusted, with one
/// subdirectory for each broker's socket.
const PRIVATE: &str = "/run/bindonce-services";

/// The same for other users, below XDG_RUNTIME_DIR.
const PRIVATE_OF_USER: &str = "bindonce-services";

/// The location of a supervisor's files.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    /// Why the files are not beside the broker's socket, or should not be.
    pub(crate) untrusted: Option<Untrusted>,
}

/// The directory of a service whose broker listens on `socket`, for clients of its supervisor.
pub fn service_directory(socket: &Path, service: &Name) -> PathBuf {
    let name = directory_name(service);
    let beside = socket.with_file_name(&name);
    let own = own(socket, &name).path;
    // The supervisor may run as another user, which trusts its own directory.
    if own != beside && !own.exists() && beside.exists() { beside } else { own }
}

/// The name of the control socket in a service's directory.
pub(crate) const CONTROL: &str = "control.sock";

/// The control socket of a service whose broker listens on `socket`.
pub fn control_socket(socket: &Path, service: &Name) -> PathBuf {
    service_directory(socket, service).join(CONTROL)
}

/// The event file of a service whose broker listens on `socket`.
pub fn events_file(socket: &Path, service: &Name) -> PathBuf {
    service_directory(socket, service).join(EVENTS)
}

/// The names of all services with the broker at `socket` that have, or had, a supervisor; sorted.
pub fn services(socket: &Path) -> Vec<Name> {
    let beside = socket.parent().map(Path::to_owned);
    let directories = beside.into_iter().chain(private(socket));
    let entries = directories.filter_map(|directory| fs::read_dir(directory).ok()).flatten();
    let name = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".d")?.parse().ok();
    let mut names: Vec<Name> = entries.flatten().filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

/// Creates the directory of a service for this user's supervisor. For root, nothing is created in a
/// directory that another user controls.
///
/// # Errors
/// Those of the system calls, and if the directory belongs to another user.
pub(crate) fn make(socket: &Path, service: &Name) -> io::Result<Place> {
    let name = directory_name(service);
    let denied = |text: String| io::Error::new(io::ErrorKind::PermissionDenied, text);
    if let Some(parent) = socket.parent() {
        // If it is not trusted, `own` notices that too, and chooses another place.
        let _ = trusted::make(parent, me(), 0o755, me() == 0)?;
    }
    let place = own(socket, &name);
    let beside = socket.with_file_name(&name);
    if place.path != beside {
        if let Some(parent) = place.path.parent() {
            trusted::make(parent, me(), 0o700, true)?
                .map_err(|untrusted| denied(untrusted.to_string()))?;
            fs::write(parent.join("socket"), [socket.as_os_str().as_bytes(), b"\n"].concat())?;
        }
        // An existing entry belongs to another program, or is this link.
        if let Err(error) = symlink(&place.path, &beside)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            tracing::debug!(path = %beside.display(), %error, "no link beside the broker's socket");
        }
    }
    match DirBuilder::new().mode(0o700).create(&place.path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // A symbolic link that takes its place is not followed.
    let flags = libc::O_NOFOLLOW | libc::O_DIRECTORY;
    let directory = OpenOptions::new().read(true).custom_flags(flags).open(&place.path)?;
    let found = directory.metadata()?;
    if found.uid() != me() {
        let owner = found.uid();
        return Err(denied(format!(
            "it belongs to user {owner}, who could replace what lies there"
        )));
    }
    if found.mode() & 0o077 != 0 {
        directory.set_permissions(fs::Permissions::from_mode(0o700))?;
    }
    Ok(place)
}

/// The location of a service's files for this user's supervisor.
fn own(socket: &Path, name: &OsString) -> Place {
    let beside = socket.with_file_name(name);
    let parent = socket.parent().filter(|parent| !parent.as_os_str().is_empty());
    // This user will create a missing directory.
    let untrusted =
        trusted::directory(parent.unwrap_or(Path::new(".")), me()).ok().and_then(Result::err);
    let untrusted = untrusted.or_else(|| {
        let found = fs::symlink_metadata(&beside).ok()?;
        let foreign = !found.is_dir() || found.uid() != me();
        foreign.then(|| Untrusted {
            path: beside.clone(),
            owner: found.uid(),
            mode: found.mode() & 0o7777,
            foreign: true,
        })
    });
    let path = match &untrusted {
        Some(_) => private(socket).map_or(beside, |directory| directory.join(name)),
        None => beside,
    };
    Place { path, untrusted }
}

/// The directory for the services of one broker that only this user writes.
fn private(socket: &Path) -> Option<PathBuf> {
    let root = match me() {
        0 => PathBuf::from(PRIVATE),
        _ => PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?).join(PRIVATE_OF_USER),
    };
    let socket = std::path::absolute(socket).ok()?;
    // Short enough for the path of a UNIX socket.
    Some(root.join(format!("{:016x}", fnv1a(socket.as_os_str().as_bytes()))))
}

fn directory_name(service: &Name) -> OsString {
    format!("{service}.d").into()
}

fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}
