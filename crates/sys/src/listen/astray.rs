//! Whether clients still reach a socket under the name in its listener.
//!
//! A socket is bound to a file, to a device number and to a network namespace, not to their names.
//! If a name comes to mean another object, the socket still listens, but no client reaches it by
//! that name. (An address that leaves the host and comes back is different: the socket is reachable
//! again.)

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::fs::AtFlags;
use socket2::{Domain, Socket, Type};

use super::{UnixPath, within_netns};
use crate::hidden::is_hidden;
use crate::options::netns_cookie;

/// Why clients cannot reach a socket by its listener's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Astray {
    /// No file exists at the path.
    #[error("{path} is gone", path = .0.display())]
    PathGone(PathBuf),
    /// Another file exists at the path.
    #[error("{path} is another file now", path = .0.display())]
    PathTaken(PathBuf),
    /// The device is gone; if a device has this name now, it is another one.
    #[error("the device {0} that it was bound to has been deleted or renamed")]
    Device(String),
    /// The name now means another network namespace.
    #[error("the network namespace {0} is another one now")]
    Namespace(String),
    /// No network namespace has this name.
    #[error("there is no network namespace {0} any more")]
    NamespaceGone(String),
}

/// Whether [`astray`] can apply to a listener; for most listeners it cannot.
pub fn can_go_astray(listener: &Listener) -> bool {
    matches!(listener.address, Address::Unix(_))
        || listener.options.interface.is_some()
        || listener.options.netns.is_some()
}

/// Why clients no longer reach the socket of `listener`, if that can be determined. Makes no system
/// call unless [`can_go_astray`].
pub fn astray(
    socket: BorrowedFd<'_>,
    listener: &Listener,
    path: Option<&UnixPath>,
) -> Option<Astray> {
    let namespace = listener.options.netns.as_deref().and_then(|name| namespace(socket, name));
    namespace
        .or_else(|| listener.options.interface.as_deref().and_then(|name| device(socket, name)))
        .or_else(|| path.and_then(file))
}

fn file(ours: &UnixPath) -> Option<Astray> {
    match rustix::fs::statat(rustix::fs::CWD, &ours.path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if (found.st_dev, found.st_ino) == (ours.dev, ours.ino) => None,
        Ok(_) => Some(Astray::PathTaken(ours.path.clone())),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
            Some(Astray::PathGone(ours.path.clone()))
        }
        // Being unable to look at the file does not mean that it is gone.
        Err(_) => None,
    }
}

/// The kernel keeps the device number, and returns the name that belongs to it now.
fn device(socket: BorrowedFd<'_>, name: &str) -> Option<Astray> {
    let gone = || Some(Astray::Device(name.to_owned()));
    match getsockopt(&socket, sockopt::BindToDevice) {
        Ok(found) if found.as_encoded_bytes() == name.as_bytes() => None,
        // A hidden socket is reachable again once its device is restored.
        Err(Errno::ENODEV) if is_hidden(socket) => None,
        Ok(_) | Err(Errno::ENODEV) => gone(),
        Err(_) => None,
    }
}

fn namespace(socket: BorrowedFd<'_>, name: &str) -> Option<Astray> {
    let ours = netns_cookie(socket)?;
    let there = within_netns(name, || {
        let probe = Socket::new(Domain::UNIX, Type::STREAM, None).ok()?;
        netns_cookie(probe.as_fd())
    });
    match there {
        Ok(Some(there)) if there != ours => Some(Astray::Namespace(name.to_owned())),
        Err(error) if error.errno() == Some(Errno::ENOENT as i32) => {
            Some(Astray::NamespaceGone(name.to_owned()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::listen::open;
    use crate::testing::Directory;

    #[test]
    fn a_path_is_ours_until_another_file_stands_there() {
        let directory = Directory::new("astray");
        let path = directory.path().join("a");
        let listener: Listener = format!("unix@{}", path.display()).parse().expect("address");
        let opened = open(&listener).expect("open");
        let why = || astray(opened.fd.as_fd(), &listener, opened.path.as_ref());
        assert_eq!(why(), None);
        fs::rename(&path, directory.path().join("b")).expect("rename");
        assert_eq!(why(), Some(Astray::PathGone(path.clone())));
        let other = open(&listener).expect("another");
        assert_eq!(why(), Some(Astray::PathTaken(path.clone())));
        drop(other);
        fs::rename(directory.path().join("b"), &path).expect("back");
        assert_eq!(why(), None);
    }

    #[test]
    fn a_plain_address_is_never_asked_about() {
        let plain: Listener = "127.0.0.1:0".parse().expect("address");
        assert!(!can_go_astray(&plain));
        for text in ["/run/a", "127.0.0.1:0,interface=lo", "abns@a,netns=blue"] {
            assert!(can_go_astray(&text.parse().expect(text)), "{text}");
        }
    }
}
