//! Restores what the service manager kept of an earlier broker, as far as the kernel confirms it.
//!
//! A descriptor counts as the listener that the manifest names only if the kernel agrees: inode,
//! cookie, address, options, and the file for a UNIX path. A socket that no client got is closed.
//! If the manifest itself cannot be read, the sockets are kept as they are, without names: a bound
//! address is never given up because a note about it is lost.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use bindonce_core::registry::Process;
use bindonce_core::succession::Record;
use bindonce_core::time::Timestamp;
use bindonce_sys::clock::now;
use bindonce_sys::identity::{self, Identity};
use bindonce_sys::listen::{self, FileOwner, UnixPath};
use bindonce_wire::manifest::{self, Entry, Manifest, Unreadable};

use super::store::{self, CONTROL};

/// Longest manifest that is read; one of 150,000 listeners takes a fifth of this.
const MAX_MANIFEST: u64 = 256 << 20;

/// A listener whose socket exists already.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) listener: Listener,
    pub(crate) socket: listen::Opened,
    pub(crate) exclusive: bool,
    pub(crate) since: Timestamp,
    pub(crate) tentative: bool,
    /// The user whose claim created it, if recorded.
    pub(crate) owner: Option<u32>,
    /// The process that it is kept for, because its generation outlived its supervisor.
    pub(crate) outlived: Option<Process>,
    /// The backlog that it was given, if recorded. A holder may have changed it since.
    pub(crate) backlog: Option<u32>,
}

/// The descriptors that the service manager passed, sorted.
#[derive(Debug, Default)]
pub(crate) struct Sorted {
    /// Listeners that are as they were.
    pub(crate) listeners: Vec<Found>,
    /// Listeners of the manifest whose socket is missing.
    pub(crate) missing: Vec<Listener>,
    /// The control socket, if a client that connects to its path reaches it.
    pub(crate) control: Option<OwnedFd>,
    /// Services whose order the previous broker kept.
    pub(crate) services: Vec<Record>,
    /// Services that the broker had forgotten have no generation number above this.
    pub(crate) floor: u64,
    /// Store names of descriptors that are not used.
    pub(crate) stale: Vec<String>,
}

/// Sorts the descriptors that were passed.
pub(crate) fn restore(passed: Vec<(String, OwnedFd)>, socket: &Path) -> Sorted {
    let mut sorted = Sorted::default();
    let mut controls = Vec::new();
    let mut sockets = Vec::new();
    let mut manifests: BTreeMap<u128, _> = BTreeMap::new();
    for (name, fd) in passed {
        if name == CONTROL {
            controls.push(fd);
        } else if let Some(number) = name.strip_prefix("manifest.").and_then(|n| n.parse().ok()) {
            manifests.insert(number, read(File::from(fd)));
            sorted.stale.push(name);
        } else {
            sockets.push((name, fd));
        }
    }
    // The newest whole manifest. It was whole before the older one was removed.
    let mut failure = None;
    let manifest = manifests.into_values().rev().find_map(|manifest| match manifest {
        Ok(manifest) => Some(manifest),
        Err(reason) => {
            failure.get_or_insert(reason);
            None
        }
    });
    if let Some(reason) = &failure {
        tracing::error!(%reason, "the manifest in the descriptor store cannot be read");
    }
    let written = manifest.is_some();
    let file = manifest.as_ref().and_then(|manifest| manifest.header.control);
    sorted.control = controls.into_iter().find(|fd| leads_to(socket, file, fd));
    sorted.floor = manifest.as_ref().map_or(0, |manifest| manifest.header.floor);
    let (entries, services) =
        manifest.map(|manifest| (manifest.listeners, manifest.services)).unwrap_or_default();
    sorted.services = services;
    let mut entries: BTreeMap<u64, Entry> =
        entries.into_iter().map(|entry| (entry.inode, entry)).collect();
    for (name, fd) in sockets {
        let known = match identity::of(fd.as_fd()) {
            Ok(identity) if name == store::name(identity.inode) => Ok(identity),
            Ok(identity) => Err(format!("it is the socket of inode {}", identity.inode)),
            Err(error) => Err(format!("it is no bound socket: {error}")),
        };
        let found = match known {
            Ok(identity) => match entries.get(&identity.inode) {
                Some(entry) => as_written(entry, &identity, fd),
                None if written => Err("no client was told of it".to_owned()),
                None => Ok(as_it_is(&identity, fd)),
            },
            Err(reason) => Err(reason),
        };
        match found {
            Ok(found) => {
                entries.remove(&found.socket.inode);
                sorted.listeners.push(found);
            }
            Err(reason) => {
                tracing::warn!(name, reason, "a descriptor from the store is not used");
                sorted.stale.push(name);
            }
        }
    }
    sorted.missing = entries
        .into_values()
        .filter(|entry| !entry.tentative)
        .filter_map(|entry| parse(&entry))
        .collect();
    sorted
}

/// Whether `path` leads to this socket: the socket was bound there itself (by bindonce.socket), or
/// the file is the one that the manifest records for the control socket.
fn leads_to(path: &Path, file: Option<manifest::File>, socket: &OwnedFd) -> bool {
    let Some(path) = path.to_str() else { return false };
    let Some(found) = identity::file(path) else { return false };
    let Ok(socket) = identity::of(socket.as_fd()) else { return false };
    let bound_there = socket.bound == Address::Unix(path.to_owned());
    let written = file.is_some_and(|file| (file.dev, file.ino) == (found.dev, found.ino));
    socket.listening && (bound_there || written)
}

/// Reads a manifest from a memory file.
fn read(mut file: File) -> Result<Manifest, String> {
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.take(MAX_MANIFEST).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    Manifest::decode(&bytes).map_err(|error: Unreadable| error.to_string())
}

fn parse(entry: &Entry) -> Option<Listener> {
    let parsed = entry.listener();
    if let Err(error) = &parsed {
        tracing::error!(listener = entry.listen, %error, "a listener of the manifest is unknown here");
    }
    parsed.ok()
}

/// A socket that the manifest describes, if it is the same socket. The kernel gives a cookie to one
/// socket only. A holder may have changed its options: it is still the socket that has the address.
pub(crate) fn as_written(entry: &Entry, identity: &Identity, fd: OwnedFd) -> Result<Found, String> {
    let listener = entry.listener().map_err(|error| error.to_string())?;
    let bound = entry.bound().map_err(|error| error.to_string())?;
    let difference = match entry.cookie {
        0 => identity.differs_from(&listener, &bound),
        cookie if cookie == identity.cookie => identity.is_elsewhere(&bound),
        cookie => Some(format!("its cookie is {}, not {cookie}", identity.cookie)),
    };
    if let Some(difference) = difference {
        return Err(difference);
    }
    let path = match &listener.address {
        Address::Unix(path) => Some(same_file(entry, path)?),
        _ => None,
    };
    let since = Timestamp(entry.since);
    let exclusive = identity.exclusive;
    let socket = opened(identity, bound, fd, path);
    let (tentative, owner, outlived) = (entry.tentative, entry.owner, kept_for(entry));
    let backlog = Some(entry.backlog).filter(|backlog| *backlog != 0);
    Ok(Found { listener, socket, exclusive, since, tentative, owner, outlived, backlog })
}

/// The process that a listener is kept for.
pub(crate) fn kept_for(entry: &Entry) -> Option<Process> {
    entry.process.map(|(pid, start)| Process { pid, start })
}

/// The file of a UNIX path, without which no client can connect to the socket.
fn same_file(entry: &Entry, path: &str) -> Result<UnixPath, String> {
    let file = identity::file(path).ok_or_else(|| format!("{path} is gone"))?;
    match entry.file {
        Some(was) if (was.dev, was.ino) == (file.dev, file.ino) => Ok(same_path(path, was)),
        _ => Err(format!("{path} belongs to another socket now")),
    }
}

/// The file at a path, as it was recorded.
pub(crate) fn same_path(path: impl Into<PathBuf>, was: manifest::File) -> UnixPath {
    let manifest::File { dev, ino, uid: user, gid: group } = was;
    UnixPath { path: path.into(), dev, ino, owner: FileOwner { user, group } }
}

/// A socket without a record.
fn as_it_is(identity: &Identity, fd: OwnedFd) -> Found {
    let listener = identity.listener();
    let (exclusive, bound) = (identity.exclusive, identity.bound.clone());
    let path = match &bound {
        Address::Unix(path) => identity::file(path),
        _ => None,
    };
    tracing::warn!(address = %bound, inode = identity.inode, "listener restored without its name");
    let socket = opened(identity, bound, fd, path);
    let since = now();
    let (tentative, owner, outlived, backlog) = (false, None, None, None);
    Found { listener, socket, exclusive, since, tentative, owner, outlived, backlog }
}

fn opened(
    identity: &Identity,
    bound: Address,
    fd: OwnedFd,
    path: Option<UnixPath>,
) -> listen::Opened {
    let Identity { inode, cookie, hidden, .. } = *identity;
    listen::Opened { fd, bound, inode, cookie, path, hidden }
}
