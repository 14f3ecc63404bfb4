//! Changes options of a bound socket. Its holders notice nothing, and no connection is lost.

use std::os::fd::BorrowedFd;

use bindonce_core::listener::{Listener, Options};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid};
use socket2::SockRef;

use super::accounts::{Accounts, Owner, owner_differs};
use super::node::{FileOwner, Node, UnixPath};
use super::transparent::{self, Foreign, is_v6, set_freebind, set_transparent};
use crate::error::Error;

/// The state of a socket before [`change`], for [`Before::undo`].
#[derive(Debug, Default)]
#[must_use = "a change that is not meant to stay is taken back with `undo`"]
pub struct Before {
    backlog: Option<u32>,
    transparent: bool,
    freebind: bool,
    blocking: bool,
    mode: Option<u32>,
    owner: Option<(u32, u32)>,
    /// The owner of the file since then.
    new_owner: Option<FileOwner>,
}

/// Applies the options of `wanted` that differ from those of `listener`: the backlog (by another
/// listen(2)), and the mode, user and group of a UNIX path; `transparent`, `freebind` and
/// `blocking` are only ever switched on. Options that are part of a listener's key are left alone.
/// `backlog` is the backlog in effect now. `accounts` has the numbers of a new user and group
/// ([`Accounts::add_changed`]).
///
/// # Errors
/// On failure the socket is restored. The error names the call and the address.
pub fn change(
    socket: BorrowedFd<'_>,
    path: Option<&UnixPath>,
    listener: &Listener,
    backlog: u32,
    wanted: &Options,
    accounts: &Accounts,
) -> Result<Before, Error> {
    let mut before = Before::default();
    match attempt(socket, path, listener, backlog, wanted, accounts, &mut before) {
        Ok(()) => Ok(before),
        Err(error) => {
            before.undo(socket, path, listener);
            Err(error)
        }
    }
}

impl Before {
    /// The owner that the file of a UNIX path has got, if that was changed.
    pub fn new_owner(&self) -> Option<FileOwner> {
        self.new_owner
    }

    /// Restores the previous state, as far as the system allows.
    pub fn undo(self, socket: BorrowedFd<'_>, path: Option<&UnixPath>, listener: &Listener) {
        if let Some(backlog) = self.backlog {
            let _ = listen(socket, backlog);
        }
        let is_v6 = is_v6(&listener.address);
        if self.transparent {
            let _ = set_transparent(&SockRef::from(&socket), is_v6, false);
        }
        if self.freebind {
            let _ = set_freebind(&SockRef::from(&socket), is_v6, false);
        }
        if self.blocking {
            let _ = SockRef::from(&socket).set_nonblocking(true);
        }
        if let Some(file) = path.and_then(|path| Node::ours(path).ok()) {
            if let Some((user, group)) = self.owner {
                let _ = file.set_owner(Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
            }
            if let Some(mode) = self.mode {
                let _ = file.set_mode(mode);
            }
        }
    }
}

fn attempt(
    socket: BorrowedFd<'_>,
    path: Option<&UnixPath>,
    listener: &Listener,
    backlog: u32,
    wanted: &Options,
    accounts: &Accounts,
    before: &mut Before,
) -> Result<(), Error> {
    let fail = |operation| Error::listen(operation, &listener.address);
    let has = &listener.options;
    if let Some(wanted) = wanted.backlog.filter(|wanted| Some(*wanted) != has.backlog) {
        listen(socket, wanted).map_err(fail("listen"))?;
        before.backlog = Some(backlog);
    }
    if wanted.transparent && !has.transparent {
        let set = transparent::set(&SockRef::from(&socket), is_v6(&listener.address))
            .map_err(fail("setsockopt(IP_TRANSPARENT)"))?;
        before.transparent = set == Foreign::Transparent;
        before.freebind = set == Foreign::Free && !has.freebind;
    }
    if wanted.freebind && !has.freebind {
        set_freebind(&SockRef::from(&socket), is_v6(&listener.address), true)
            .map_err(fail("setsockopt(IP_FREEBIND)"))?;
        before.freebind = true;
    }
    if wanted.blocking && !has.blocking {
        SockRef::from(&socket).set_nonblocking(false).map_err(fail("fcntl(O_NONBLOCK)"))?;
        before.blocking = true;
    }
    let mode = wanted.mode.filter(|mode| Some(*mode) != has.mode);
    let owner = if owner_differs(has, wanted) {
        let asked = Listener { options: wanted.clone(), ..listener.clone() };
        Some(Owner::of(&asked, accounts)?)
    } else {
        None
    };
    if mode.is_none() && owner.is_none() {
        return Ok(());
    }
    let gone = || fail("lstat")(Errno::ENOENT.into());
    let file = Node::ours(path.ok_or_else(gone)?).map_err(fail("open"))?;
    if let Some(owner) = owner {
        file.set_owner(owner.user, owner.group).map_err(fail("chown"))?;
        before.owner = Some((file.uid, file.gid));
        before.new_owner = Some(owner.of_file());
    }
    // chown(2) may clear mode bits, so the mode is set last.
    if let Some(mode) = mode.or(wanted.mode) {
        file.set_mode(mode).map_err(fail("chmod"))?;
        before.mode = Some(file.mode);
    }
    Ok(())
}

fn listen(socket: BorrowedFd<'_>, backlog: u32) -> std::io::Result<()> {
    SockRef::from(&socket).listen(i32::try_from(backlog).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::listen::open;
    use crate::queue::accept_queue;
    use crate::testing::Directory;

    fn options(text: &str) -> Options {
        text.parse().expect(text)
    }

    #[test]
    fn a_backlog_changes_in_place_and_back() {
        let listener: Listener = "127.0.0.1:0,backlog=5".parse().expect("address");
        let opened = open(&listener).expect("open");
        let fd = opened.fd.as_fd();
        let limit = || accept_queue(fd).expect("queue").limit;
        let wanted = options("backlog=9,freebind,blocking");
        let before = change(fd, None, &listener, 5, &wanted, &Accounts::default()).expect("change");
        assert_eq!(limit(), 9);
        assert!(SockRef::from(&fd).freebind_v4().expect("freebind"));
        assert!(!SockRef::from(&fd).nonblocking().expect("O_NONBLOCK"));
        before.undo(fd, None, &listener);
        assert_eq!(limit(), 5);
        assert!(!SockRef::from(&fd).freebind_v4().expect("freebind"));
        assert!(SockRef::from(&fd).nonblocking().expect("O_NONBLOCK"));
    }

    #[test]
    fn a_path_changes_its_mode_only_while_it_is_ours() {
        let directory = Directory::new("change");
        let path = directory.path().join("a");
        let listener: Listener =
            format!("unix@{},mode=0600", path.display()).parse().expect("address");
        let opened = open(&listener).expect("open");
        let (fd, ours) = (opened.fd.as_fd(), opened.path.as_ref());
        let mode = || path.metadata().expect("stat").mode() & 0o777;
        let change = |wanted: &str| {
            let wanted = options(wanted);
            change(fd, ours, &listener, 5, &wanted, &Accounts::of(&wanted))
        };
        let error = change("mode=0660,user=no-such-user").expect_err("unknown user");
        assert!(error.to_string().contains("no-such-user"), "{error}");
        assert_eq!(mode(), 0o600);
        let before = change("mode=0660").expect("change");
        assert_eq!(mode(), 0o660);
        before.undo(fd, ours, &listener);
        assert_eq!(mode(), 0o600);
        fs::remove_file(&path).expect("remove");
        fs::write(&path, "").expect("write");
        let error = change("mode=0666").expect_err("not ours");
        assert_eq!(error.errno(), Some(Errno::ENOENT as i32));
    }
}
