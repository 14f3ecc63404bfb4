//! UNIX listeners: paths that appear ready or not at all, and abstract names.
//!
//! A socket is bound directly to its final path, because getsockname(2) keeps returning that name.
//! The file then gets its mode and owner through a descriptor, and only after that the socket
//! listens. Until then clients are refused, as they were by a dead socket at that path. A path with
//! a live socket is never taken over. Without `mode=` the umask of the process decides who may
//! connect. The clients of a control socket look for its path and do not use its name, so it gets
//! its path only when it listens (`ready_path`).
//!
//! The directory may belong to a hostile user. `directory.rs` and `confined.rs` keep the file in
//! that directory, and `node.rs` ensures that file operations apply to that file alone.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use nix::errno::Errno;
use rustix::fs::{AtFlags, RenameFlags, renameat, renameat_with};
use socket2::{Domain, SockAddr, Socket, Type};

use super::accounts::{Accounts, Owner};
use super::confined;
use super::node::{Life, Node, UnixPath};
use crate::directory::Directory;
use crate::error::Error;

/// Size of `sun_path` in bytes (unix(7)); haproxy pads abstract names to it.
const SUN_PATH: usize = 108;

/// The name of a socket until it listens, if the directory and the path's own name are too long
/// together.
const NEW: &str = ".bindonce.new";

/// How often to retry when the path changes during a check.
const ATTEMPTS: usize = 16;

/// A listening socket in the abstract name space.
pub(super) fn abstract_name(listener: &Listener, backlog: i32) -> Result<Socket, Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    let socket = stream(listener)?;
    named(&listener.address).and_then(|address| socket.bind(&address)).map_err(fail("bind"))?;
    socket.listen(backlog).map_err(fail("listen"))?;
    Ok(socket)
}

/// The socket address of an abstract name: a NUL, the name, and NULs to the end of `sun_path`, as
/// haproxy pads it (its manual, `abns@`) and its clients expect; without the padding for `abnsz@`.
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
    accounts: &Accounts,
    backlog: i32,
) -> Result<(Socket, UnixPath), Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    let owner = Owner::of(listener, accounts)?;
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
    let Node { dev, ino, .. } = file;
    Ok((socket, UnixPath { path: path.to_owned(), dev, ino, owner: owner.of_file() }))
}

/// A socket on a path that appears only once the socket listens. The file is created under another
/// name in the same directory, and renamed in one step, over a dead socket if there is one.
pub(super) fn ready_path(
    listener: &Listener,
    path: &Path,
    backlog: i32,
) -> Result<(Socket, UnixPath), Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    // No control socket has an owner of its own.
    let owner = Owner::of(listener, &Accounts::default())?;
    let socket = stream(listener)?;
    let (directory, name) = Directory::of(path).map_err(fail("open"))?;
    let mut new = name.to_owned();
    new.push(".new");
    let mut shown = path.with_file_name(&new);
    if !directory.pinned || shown.as_os_str().len() >= SUN_PATH {
        // The path through the open directory: as short as possible, and it cannot lead elsewhere.
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
    let Node { dev, ino, .. } = file;
    Ok((socket, UnixPath { path: path.to_owned(), dev, ino, owner: owner.of_file() }))
}

/// Renames the file `new` to `name`, if that name is free or belongs to a dead socket.
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
        // The file system does not support rename flags. The caller's lock keeps others away.
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
        // The old file now has the name `new`, unless the exchange was not possible.
        match Node::open(directory, new) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Ok(out) if out.is_socket && !matches!(out.life(), Ok(Life::Alive)) => {
                return directory.remove(new).map_err(fail("unlink"));
            }
            // The file has changed since the check.
            _ => rename(RenameFlags::EXCHANGE).map_err(|error| fail("rename")(error.into()))?,
        }
    }
    Err(Error::PathInUse { path: path.to_owned() })
}

/// Sets mode and owner of a bound socket's file, then listens. On failure nothing is left behind.
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
        // A failure needs no action: usually the file is gone already.
        let _ = rustix::fs::unlinkat(&directory.fd, name, AtFlags::empty());
    };
    let node = Node::open(directory, name).inspect_err(|_| remove()).map_err(fail("open"))?;
    let life = if node.is_socket { node.life() } else { Ok(Life::Dead) };
    if matches!(life, Ok(Life::Dead | Life::Alive)) {
        // Another user with write access to the directory put another file there. It is not ours to
        // remove.
        return Err(fail("bind")(Errno::EADDRINUSE.into()));
    }
    let ready = || {
        life.map_err(fail("connect"))?;
        // The socket does not listen yet: connections are refused until the mode and owner are
        // right.
        if owner.is_set() {
            node.set_owner(owner.user, owner.group).map_err(fail("chown"))?;
        }
        // chown(2) may clear mode bits, so the mode is set last.
        if let Some(mode) = listener.options.mode {
            node.set_mode(mode).map_err(fail("chmod"))?;
        }
        socket.listen(backlog).map_err(fail("listen"))?;
        // Until now the socket looked dead, and another process may have replaced its file.
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

/// Binds; replaces a dead socket at the path.
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

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Clients try the path again and again: a bound socket that does not listen never refuses
    /// them, the mode is right from the start, and a dead socket is replaced without a gap.
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
                // Keep all sockets open until the client ends: it may have found the file of one
                // that is removed now.
                let mut all = Vec::new();
                for _ in 0..400 {
                    let opened = open_control(&path, 0o640).expect("it listens");
                    unlink_if_ours(opened.path.as_ref().expect("its file")).expect("removed");
                    all.push(opened);
                }
                over.store(true, Ordering::Relaxed);
                client.join().expect("none was refused");
            });
            // A dead socket of this process, and one of a process that was killed before its socket
            // listened.
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

    /// The new socket is bound, and a user with write access to the directory puts something else
    /// in its place before the broker looks at it again: neither that file nor its target is
    /// changed or removed.
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
            let owner = Owner::of(&listener, &Accounts::default()).expect("nobody");
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
