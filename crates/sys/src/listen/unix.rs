//! UNIX listeners: paths that appear ready or not at all, and abstract names.
//!
//! A socket is bound to its path itself, because that is the name that getsockname(2) gives for
//! ever. It is given its mode and owner, by its file's descriptor, and only then does it
//! listen: until then a client is refused, as it was by the dead socket that stood there before. A
//! path that a live socket answers on is never taken. Without `mode=` the umask of the process
//! decides who may connect.
//!
//! The directory may belong to a user who is hostile. `directory.rs` and `confined.rs` keep the file in
//! that directory, and `node.rs` keeps what is done to the file to that file.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};
use rustix::fs::AtFlags;
use socket2::{Domain, SockAddr, Socket, Type};

use super::confined;
use super::node::{Life, Node, UnixPath};
use crate::directory::Directory;
use crate::error::Error;

/// `sun_path` holds this many bytes (unix(7)); haproxy pads abstract names to it.
const SUN_PATH: usize = 108;

/// How often to try again when the path changes while we look at it.
const ATTEMPTS: usize = 16;

/// A listening socket in the abstract name space.
pub(super) fn abstract_name(listener: &Listener, backlog: i32) -> Result<Socket, Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    let socket = stream(listener)?;
    named(&listener.address).and_then(|address| socket.bind(&address)).map_err(fail("bind"))?;
    socket.listen(backlog).map_err(fail("listen"))?;
    Ok(socket)
}

/// The address of an abstract name: a NUL, the name and, as in haproxy (its manual, `abns@`), NULs to the end of
/// `sun_path`, so that its clients find it; without these for `abnsz@`.
pub(crate) fn named(address: &Address) -> io::Result<SockAddr> {
    let (Address::Abstract(name) | Address::Unpadded(name)) = address else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut bytes = [0; SUN_PATH];
    bytes.get_mut(1..=name.len()).ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(name.as_bytes());
    let padded = matches!(address, Address::Abstract(_));
    let end = if padded { SUN_PATH } else { 1 + name.len() };
    SockAddr::unix(OsStr::from_bytes(&bytes[..end]))
}

/// A listening socket on a path.
pub(super) fn path(
    listener: &Listener,
    path: &Path,
    backlog: i32,
) -> Result<(Socket, UnixPath), Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    let owner = Owner::find(listener)?;
    let socket = stream(listener)?;
    let (directory, name) = Directory::of(path).map_err(fail("open"))?;
    bind(listener, &socket, &directory, path, name)?;
    let file = appear(listener, &owner, backlog, &socket, &directory, name)?;
    Ok((socket, UnixPath { path: path.to_owned(), dev: file.dev, ino: file.ino }))
}

/// Gives the file of a bound socket its mode and owner, and lets the socket listen. Where that fails nothing is left.
fn appear(
    listener: &Listener,
    owner: &Owner,
    backlog: i32,
    socket: &Socket,
    directory: &Directory,
    name: &OsStr,
) -> Result<Node, Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    let remove = || {
        // Nothing to do about a failure, and the usual one is that it is gone.
        let _ = rustix::fs::unlinkat(&directory.fd, name, AtFlags::empty());
    };
    let node = Node::open(directory, name).inspect_err(|_| remove()).map_err(fail("open"))?;
    let life = if node.is_socket { node.life() } else { Ok(Life::Dead) };
    if matches!(life, Ok(Life::Dead | Life::Alive)) {
        // Another user who may write in the directory has put another file there. It is not ours to remove.
        return Err(fail("bind")(Errno::EADDRINUSE.into()));
    }
    let ready = || {
        life.map_err(fail("connect"))?;
        // Not listening yet: until the mode and owner are right a connection is refused.
        if owner.is_said() {
            node.set_owner(owner.user, owner.group).map_err(fail("chown"))?;
        }
        // chown(2) may take bits of the mode away, so the mode comes last.
        if let Some(mode) = listener.options.mode {
            node.set_mode(mode).map_err(fail("chmod"))?;
        }
        socket.listen(backlog).map_err(fail("listen"))?;
        // Until now it looked dead, and another process may have replaced it.
        if !node.is_at(directory, name) {
            return Err(fail("bind")(Errno::EADDRINUSE.into()));
        }
        Ok(())
    };
    let ready = ready();
    if ready.is_err() && node.is_at(directory, name) {
        remove();
    }
    ready.map(|()| node)
}

/// Binds, in place of a dead socket where one is in the way.
fn bind(
    listener: &Listener,
    socket: &Socket,
    directory: &Directory,
    path: &Path,
    name: &OsStr,
) -> Result<(), Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    for _ in 0..ATTEMPTS {
        let bound = if directory.pinned {
            SockAddr::unix(path).and_then(|address| socket.bind(&address))
        } else {
            confined::bind(socket, directory, path)
        };
        match bound {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound.map_err(fail("bind")),
        }
        let node = match Node::open(directory, name) {
            Ok(node) => node,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(fail("open")(error)),
        };
        if !node.is_socket {
            return Err(Error::NotASocket { path: path.to_owned() });
        }
        if node.life().map_err(fail("connect"))? == Life::Alive {
            return Err(Error::PathInUse { path: path.to_owned() });
        }
        node.remove_dead(directory, name).map_err(fail("unlink"))?;
    }
    Err(Error::PathInUse { path: path.to_owned() })
}

fn stream(listener: &Listener) -> Result<Socket, Error> {
    Socket::new_raw(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
        .map_err(Error::listen("socket", &listener.address))
}

/// `user=` and `group=`, resolved before anything is created.
pub(super) struct Owner {
    pub(super) user: Option<Uid>,
    pub(super) group: Option<Gid>,
}

impl Owner {
    pub(super) fn find(listener: &Listener) -> Result<Self, Error> {
        let unknown = |kind, name: &str| Error::UnknownOwner {
            kind,
            name: name.to_owned(),
            address: listener.address.clone(),
        };
        let user = listener.options.user.as_deref().map(|name| match name.parse() {
            Ok(number) => Ok(Uid::from_raw(number)),
            Err(_) => match User::from_name(name) {
                Ok(Some(user)) => Ok(user.uid),
                Ok(None) => Err(unknown("user", name)),
                Err(errno) => Err(Error::listen("getpwnam", &listener.address)(errno.into())),
            },
        });
        let group = listener.options.group.as_deref().map(|name| match name.parse() {
            Ok(number) => Ok(Gid::from_raw(number)),
            Err(_) => match Group::from_name(name) {
                Ok(Some(group)) => Ok(group.gid),
                Ok(None) => Err(unknown("group", name)),
                Err(errno) => Err(Error::listen("getgrnam", &listener.address)(errno.into())),
            },
        });
        Ok(Self { user: user.transpose()?, group: group.transpose()? })
    }

    fn is_said(&self) -> bool {
        self.user.is_some() || self.group.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// The new socket is bound, and whoever may write in the directory puts something else in its place before the broker
    /// looks at it again: neither that, nor what it leads to, is changed or removed.
    #[test]
    fn what_takes_the_place_of_a_bound_socket_is_neither_changed_nor_removed() {
        let directory = std::env::temp_dir().join(format!("bindonce-place-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let (secret, path) = (directory.join("secret"), directory.join("app"));
        fs::write(&secret, "root only").expect("a file");
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("its mode");
        let listener: Listener =
            format!("unix@{},mode=0666", path.display()).parse().expect("a listener");
        let theirs = directory.join("theirs");
        let alive = UnixListener::bind(&theirs).expect("a socket");
        fs::set_permissions(&theirs, Permissions::from_mode(0o600)).expect("its mode");
        type Put = fn(&Path, &Path);
        let link: Put = |from, to| fs::hard_link(from, to).expect("a link");
        let lead: Put = |from, to| symlink(from, to).expect("a link");
        for (from, put) in [(&secret, link), (&secret, lead), (&theirs, link), (&theirs, lead)] {
            let owner = Owner::find(&listener).expect("nobody");
            let socket = stream(&listener).expect("a socket");
            let (opened, name) = Directory::of(&path).expect("the directory");
            bind(&listener, &socket, &opened, &path, name).expect("bound");
            fs::remove_file(&path).expect("removed");
            put(from, &path);
            let refused = appear(&listener, &owner, 1, &socket, &opened, name).err();
            assert_eq!(refused.and_then(|error| error.errno()), Some(Errno::EADDRINUSE as i32));
            assert_eq!(fs::metadata(from).expect("it").mode() & 0o777, 0o600);
            fs::remove_file(&path).expect("it is still there");
        }
        drop(alive);
        fs::remove_dir_all(&directory).expect("removed");
    }
}
