//! UNIX listeners: paths that appear ready or not at all, and abstract names.
//!
//! A socket is bound to its path itself, because that is the name that getsockname(2) gives for
//! ever. It is given its mode and owner, by its file's descriptor, and only then does it
//! listen: until then a client is refused, as it was by the dead socket that stood there before. A
//! path that a live socket answers on is never taken. Without `mode=` the umask of the process
//! decides who may connect. A control socket, whose clients look for its path and not for its name, gets its path only
//! when it listens (`ready_path`).
//!
//! The directory may belong to a user who is hostile. `directory.rs` and `confined.rs` keep the file in
//! that directory, and `node.rs` keeps what is done to the file to that file.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};
use rustix::fs::{AtFlags, RenameFlags, renameat, renameat_with};
use socket2::{Domain, SockAddr, Socket, Type};

use super::confined;
use super::node::{Life, Node, UnixPath};
use crate::directory::Directory;
use crate::error::Error;

/// `sun_path` holds this many bytes (unix(7)); haproxy pads abstract names to it.
const SUN_PATH: usize = 108;

/// What a socket is called until it listens, where that and the path's own name together are too long.
const NEW: &str = ".bindonce.new";

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
    bind(listener, &directory, path, name, || {
        if directory.pinned {
            SockAddr::unix(path).and_then(|address| socket.bind(&address))
        } else {
            confined::bind(&socket, &directory, path)
        }
    })?;
    let file = appear(listener, &owner, backlog, &socket, &directory, name)?;
    Ok((socket, UnixPath { path: path.to_owned(), dev: file.dev, ino: file.ino }))
}

/// A listening socket on a path that appears when it listens: it is made under another name in the same directory, and gets
/// its own in one step, in place of a dead socket where one is in the way.
pub(super) fn ready_path(
    listener: &Listener,
    path: &Path,
    backlog: i32,
) -> Result<(Socket, UnixPath), Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    let owner = Owner::find(listener)?;
    let socket = stream(listener)?;
    let (directory, name) = Directory::of(path).map_err(fail("open"))?;
    let mut new = name.to_owned();
    new.push(".new");
    let mut shown = path.with_file_name(&new);
    if !directory.pinned || shown.as_os_str().len() >= SUN_PATH {
        // The way through the open directory: as short as can be, and it leads nowhere else.
        shown = PathBuf::from(format!("/proc/self/fd/{}", directory.fd.as_raw_fd())).join(NEW);
        new = NEW.into();
    }
    let address = SockAddr::unix(&shown).map_err(fail("bind"))?;
    let aside = path.with_file_name(&new);
    bind(listener, &directory, &aside, &new, || socket.bind(&address))?;
    let file = appear(listener, &owner, backlog, &socket, &directory, &new)?;
    if let Err(error) = place(listener, &directory, path, &new, name) {
        if file.is_at(&directory, &new) {
            let _ = directory.remove(&new);
        }
        return Err(error);
    }
    Ok((socket, UnixPath { path: path.to_owned(), dev: file.dev, ino: file.ino }))
}

/// Gives the file `new` its name, where nothing has that but a dead socket.
fn place(
    listener: &Listener,
    directory: &Directory,
    path: &Path,
    new: &OsStr,
    name: &OsStr,
) -> Result<(), Error> {
    use rustix::io::Errno;
    let fail = |operation| Error::listen(operation, &listener.address);
    let at = &directory.fd;
    let rename = |flags| match renameat_with(at, new, at, name, flags) {
        // A file system without flags. The caller's lock keeps others away.
        Err(Errno::INVAL | Errno::NOSYS) => renameat(at, new, at, name),
        renamed => renamed,
    };
    for _ in 0..ATTEMPTS {
        let there = match Node::open(directory, name) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match rename(RenameFlags::NOREPLACE) {
                    Err(Errno::EXIST) => continue,
                    renamed => return renamed.map_err(|error| fail("rename")(error.into())),
                }
            }
            Err(error) => return Err(fail("open")(error)),
        };
        if !there.is_socket {
            return Err(Error::NotASocket { path: path.to_owned() });
        }
        if there.life().map_err(fail("connect"))? == Life::Alive {
            return Err(Error::PathInUse { path: path.to_owned() });
        }
        match rename(RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(fail("rename")(error.into())),
        }
        if there.is_at(directory, name) {
            continue;
        }
        // What was there has the other name now, unless the two could not be exchanged.
        match Node::open(directory, new) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Ok(out) if out.is_socket && !matches!(out.life(), Ok(Life::Alive)) => {
                return directory.remove(new).map_err(fail("unlink"));
            }
            // It has changed since it was looked at.
            _ => rename(RenameFlags::EXCHANGE).map_err(|error| fail("rename")(error.into()))?,
        }
    }
    Err(Error::PathInUse { path: path.to_owned() })
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
    directory: &Directory,
    path: &Path,
    name: &OsStr,
    mut try_bind: impl FnMut() -> io::Result<()>,
) -> Result<(), Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    for _ in 0..ATTEMPTS {
        match try_bind() {
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

    /// Clients look for it again and again: none is refused by a socket that is only bound, the mode is there from the start, and a dead one
    /// is replaced without a moment in which there is none.
    #[test]
    fn a_control_socket_appears_when_it_listens() {
        use std::os::unix::net::UnixStream;
        use std::sync::atomic::{AtomicBool, Ordering};

        use crate::listen::{open_control, unlink_if_ours};
        let directory = std::env::temp_dir().join(format!("bindonce-ready-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let longest = directory.join("x".repeat(SUN_PATH - 2 - directory.as_os_str().len()));
        for path in [directory.join("control.sock"), longest] {
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let client = scope.spawn(|| {
                    let mut answered = 0;
                    while !over.load(Ordering::Relaxed) {
                        match UnixStream::connect(&path) {
                            Ok(_) => answered += 1,
                            Err(error) => {
                                assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
                            }
                        }
                        if let Ok(found) = fs::symlink_metadata(&path) {
                            assert_eq!(found.mode() & 0o777, 0o640);
                        }
                    }
                    answered
                });
                // None is closed before the client has ended: it may have found the file of one that is removed now.
                let mut all = Vec::new();
                for _ in 0..400 {
                    let opened = open_control(&path, 0o640).expect("it listens");
                    unlink_if_ours(opened.path.as_ref().expect("its file")).expect("removed");
                    all.push(opened);
                }
                over.store(true, Ordering::Relaxed);
                client.join().expect("none was refused");
            });
            // A dead one, of this process and of one that was killed before its socket listened.
            drop(open_control(&path, 0o600).expect("it listens"));
            let new = path.with_file_name("control.sock.new");
            drop(UnixListener::bind(&new).expect("a socket"));
            let alive = open_control(&path, 0o600).expect("the dead one is replaced");
            let refused = open_control(&path, 0o600).expect_err("one answers there");
            assert!(matches!(refused, Error::PathInUse { path: at } if at == path));
            assert!(UnixStream::connect(&path).is_ok());
            unlink_if_ours(alive.path.as_ref().expect("its file")).expect("removed");
            fs::write(&path, "a file").expect("a file");
            let refused = open_control(&path, 0o600).expect_err("it is no socket");
            assert!(matches!(refused, Error::NotASocket { path: at } if at == path));
            assert_eq!(fs::read_to_string(&path).expect("the file"), "a file");
            fs::remove_file(&path).expect("removed");
            let _ = fs::remove_file(new);
            assert_eq!(fs::read_dir(&directory).expect("the directory").count(), 0);
        }
        fs::remove_dir(&directory).expect("removed");
    }

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
            let address = SockAddr::unix(&path).expect("an address");
            bind(&listener, &opened, &path, name, || socket.bind(&address)).expect("bound");
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
