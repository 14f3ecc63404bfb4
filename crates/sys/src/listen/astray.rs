//! Whether clients still reach a socket under the name in its listener.
//!
//! A socket is bound to a file, to a device number and to a network namespace, not to their names.
//! If a name comes to mean another object, the socket still listens, but no client reaches it by
//! that name. A file whose mode or owner was changed keeps clients out too. (An address that leaves
//! the host is different: if it comes back, the socket is reachable again.)

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::fs::AtFlags;
use socket2::{Domain, Socket, Type};

use super::{FileOwner, UnixPath, within_netns};
use crate::error::{Error, errno_of};
use crate::hidden::is_hidden;
use crate::options::{netns_cookie, number};

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
    /// Clients that the listener's mode lets in have lost the right to connect.
    #[error("{path} has the mode {mode:04o} now, not {wanted:04o}", path = path.display())]
    PathClosed {
        /// The path.
        path: PathBuf,
        /// The mode of the file.
        mode: u32,
        /// The mode in the listener's options.
        wanted: u32,
    },
    /// The file has another owner, so its mode may keep out clients that the listener lets in.
    #[error("{path} belongs to {now} now, not to {wanted}", path = path.display())]
    PathOwner {
        /// The path.
        path: PathBuf,
        /// The owner of the file.
        now: FileOwner,
        /// The owner in the listener's options.
        wanted: FileOwner,
    },
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

/// Why clients no longer reach the socket of `listener`, if that can be determined. `owner` is that
/// of its file since the last [`change`](super::change()). Makes no system call unless
/// [`can_go_astray`].
pub fn astray(
    socket: BorrowedFd<'_>,
    listener: &Listener,
    path: Option<&UnixPath>,
    owner: FileOwner,
) -> Option<Astray> {
    let namespace = listener.options.netns.as_deref().and_then(|name| namespace(socket, name));
    namespace
        .or_else(|| listener.options.interface.as_deref().and_then(|name| device(socket, name)))
        .or_else(|| file(path?, listener.options.mode, owner))
}

/// The address of a listener's socket, if no interface of its network namespace has it now: no
/// client reaches the socket until one has it again. Not for a listener that may have such an
/// address (`freebind`, `transparent`), or that is bound to a device or in another namespace.
pub fn without_interface(socket: BorrowedFd<'_>, listener: &Listener) -> Option<IpAddr> {
    let options = &listener.options;
    let elsewhere = options.netns.is_some() || options.interface.is_some();
    let (Address::Tcp(at) | Address::Udp(at) | Address::Quic(at)) = &listener.address else {
        return None;
    };
    let always = at.ip().is_unspecified() || at.ip().is_loopback();
    if elsewhere || options.freebind || options.transparent || always {
        return None;
    }
    let probe = Socket::new(Domain::for_address(*at), Type::DGRAM, None).ok()?;
    if netns_cookie(probe.as_fd())? != netns_cookie(socket)? {
        return None;
    }
    let mut at = *at;
    at.set_port(0);
    let refused = probe.bind(&at.into()).err()?;
    (errno_of(&refused) == Errno::EADDRNOTAVAIL).then(|| at.ip())
}

/// The device to which a process that shares the socket has bound it: only clients that come
/// through that device reach it. Not for a listener with a device of its own.
pub fn device_of_holder(socket: BorrowedFd<'_>, listener: &Listener) -> Option<String> {
    let at = listener.address.ip()?;
    // The kernel chose the device of a link-local address.
    let scoped = matches!(at, SocketAddr::V6(at) if at.scope_id() != 0);
    if listener.options.interface.is_some() || scoped {
        return None;
    }
    let device = |socket: BorrowedFd<'_>| {
        number(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX).filter(|device| *device != 0)
    };
    let set = device(socket)?;
    // `ip vrf exec` binds every new socket of this process to a device.
    let new = Socket::new(Domain::for_address(at), Type::STREAM, None).ok()?;
    if is_hidden(socket) || device(new.as_fd()) == Some(set) {
        return None;
    }
    let name = getsockopt(&socket, sockopt::BindToDevice).ok().and_then(|it| it.into_string().ok());
    Some(name.unwrap_or_else(|| format!("the device {set}, which does not exist,")))
}

fn file(ours: &UnixPath, wanted: Option<u32>, owner: FileOwner) -> Option<Astray> {
    match rustix::fs::statat(rustix::fs::CWD, &ours.path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if (found.st_dev, found.st_ino) == (ours.dev, ours.ino) => {
            let path = || ours.path.clone();
            let now = owner.as_of(found.st_uid, found.st_gid);
            if now != owner {
                return Some(Astray::PathOwner { path: path(), now, wanted: owner });
            }
            let (mode, wanted) = (found.st_mode & 0o7777, wanted?);
            // Connecting takes the right to write (unix(7)).
            (wanted & !mode & 0o222 != 0).then(|| Astray::PathClosed { path: path(), mode, wanted })
        }
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
        // `umount` leaves a file that is no namespace any more.
        Err(Error::Netns { errno: Errno::EINVAL | Errno::ENOENT, .. }) => {
            Some(Astray::NamespaceGone(name.to_owned()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use socket2::SockRef;

    use super::*;
    use crate::listen::{open, restore};
    use crate::testing::Directory;

    #[test]
    fn a_path_is_ours_until_another_file_stands_there() {
        let directory = Directory::new("astray");
        let path = directory.path().join("a");
        let listener: Listener = format!("unix@{}", path.display()).parse().expect("address");
        let opened = open(&listener).expect("open");
        let nobodys = FileOwner::default();
        let why = || astray(opened.fd.as_fd(), &listener, opened.path.as_ref(), nobodys);
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
    fn a_path_whose_mode_was_changed_lets_in_fewer() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = Directory::new("astray-mode");
        let path = directory.path().join("a");
        let listener: Listener =
            format!("unix@{},mode=0660", path.display()).parse().expect("address");
        let opened = open(&listener).expect("open");
        let set = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            astray(opened.fd.as_fd(), &listener, opened.path.as_ref(), FileOwner::default())
        };
        assert_eq!((set(0o660), set(0o666), set(0o220)), (None, None, None));
        let closed = set(0o640).expect("closed for the group").to_string();
        assert_eq!(closed, format!("{} has the mode 0640 now, not 0660", path.display()));
    }

    #[test]
    fn a_path_that_was_given_to_another_owner_gets_its_own_back() {
        let directory = Directory::new("astray-owner");
        let path = directory.path().join("a");
        let (user, group) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        let listener: Listener =
            format!("unix@{},mode=0660,group={group}", path.display()).parse().expect("address");
        let opened = open(&listener).expect("open");
        let ours = opened.path.as_ref().expect("its file");
        assert_eq!(ours.owner, FileOwner { user: None, group: Some(group) });
        let why = |owner| astray(opened.fd.as_fd(), &listener, Some(ours), owner);
        assert_eq!(why(ours.owner), None);
        let other = FileOwner { user: Some(user), group: Some(group + 1) };
        let told = why(other).expect("another group").to_string();
        let expected = format!("{user} and group {group} now, not to user {user} and group");
        assert!(told.contains(&expected), "{told}");
        if restore(ours, other, listener.options.mode).is_err() {
            return crate::testing::skip("needs CAP_CHOWN");
        }
        assert_eq!(why(other), None);
        assert!(matches!(why(ours.owner), Some(Astray::PathOwner { .. })));
        restore(ours, ours.owner, listener.options.mode).expect("its own again");
        assert_eq!(why(ours.owner), None);
    }

    #[test]
    fn a_device_that_a_holder_has_set_is_told() {
        for text in ["127.0.0.1:0", "[::]:0", "udp4@127.0.0.1:0"] {
            let listener: Listener = text.parse().expect("address");
            let opened = open(&listener).expect("open");
            let device = |listener| device_of_holder(opened.fd.as_fd(), listener);
            assert_eq!(device(&listener), None, "{text}");
            SockRef::from(&opened.fd).bind_device(Some(b"lo")).expect("SO_BINDTODEVICE");
            assert_eq!(device(&listener), Some("lo".to_owned()), "{text}");
            let own: Listener = format!("{text},interface=lo").parse().expect("address");
            assert_eq!(device(&own), None, "{text}");
        }
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
