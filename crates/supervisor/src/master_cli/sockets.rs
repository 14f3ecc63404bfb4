//! The sockets of the master CLI. Each supervisor binds them anew; an upgrade in place keeps them.
//! A socket of the haproxy that is being replaced stays with it until the first generation serves.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_core::listener::Listener;
use bindonce_haproxy::config::{MasterAddress, MasterSocket};
use bindonce_sys::identity;
use bindonce_sys::listen::{self, Accounts};
use nix::libc;
use rustix::net::{AddressFamily, sockopt};
use tokio::net::{TcpListener, UnixListener};

use super::client::Hub;
use super::conversation;
use super::seats::Seats;
use crate::adopt;
use crate::control::gate::Gate;
use crate::error::Error;
use crate::passed::Passed;

/// The pause after a failed accept(2).
const REFUSED: Duration = Duration::from_millis(100);

/// One socket of the master CLI.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) wanted: MasterSocket,
    pub(crate) fd: OwnedFd,
}

impl Socket {
    /// Takes the socket that an earlier image of this process left or that was inherited, or binds
    /// it with the owner in `accounts`. None if the address is in use and this service `replaces`
    /// another haproxy.
    pub(super) fn open(
        wanted: &MasterSocket,
        left: &mut BTreeMap<String, OwnedFd>,
        passed: &Passed,
        accounts: &Accounts,
        replaces: bool,
    ) -> Result<Option<Self>, Error> {
        let fd = match (left.remove(&wanted.text), &wanted.at) {
            (Some(fd), _) => fd,
            (None, MasterAddress::Descriptor(number)) => {
                let failed = || Error::system("create the listener of the master CLI");
                let fd = passed.socket(*number).map_err(failed())?;
                rustix::io::ioctl_fionbio(&fd, true).map_err(|error| failed()(error.into()))?;
                fd
            }
            (None, MasterAddress::Listen(listener)) => {
                match listen::open_with(listener, accounts) {
                    Err(error) if is_in_use(&error) && replaces => return Ok(None),
                    Err(error) if is_in_use(&error) => take_place(listener, accounts, error)?,
                    done => done?.fd,
                }
            }
        };
        Ok(Some(Self { wanted: wanted.clone(), fd }))
    }

    /// Binds an address of the haproxy with these pids.
    pub(super) fn take(
        wanted: &MasterSocket,
        accounts: &Accounts,
        pids: &[i32],
    ) -> Result<Option<Self>, Error> {
        let MasterAddress::Listen(listener) = &wanted.at else { return Ok(None) };
        if !matches!(listener.address, Address::Unix(_)) {
            adopt::shut_down(pids, &listener.address)?;
        }
        Self::open(wanted, &mut BTreeMap::new(), &Passed::default(), accounts, false)
    }

    /// Serves clients until the process ends.
    pub(super) fn serve(&self, hub: &Hub, seats: &Rc<Seats>) -> Result<(), Error> {
        let failed = || Error::system("serve the master CLI");
        let fd = self.fd.try_clone().map_err(failed())?;
        let family = sockopt::socket_domain(fd.as_fd()).map_err(|e| failed()(e.into()))?;
        let (hub, seats, level) = (hub.clone(), Rc::clone(seats), self.wanted.level);
        if family == AddressFamily::UNIX {
            let listener = UnixListener::from_std(fd.into()).map_err(failed())?;
            crate::tasks::spawn(accept(Rc::clone(&seats), hub.gate(), async move || {
                let (stream, _) = listener.accept().await?;
                let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
                conversation::begin(stream, level, pid, &hub, &seats);
                Ok(())
            }));
        } else {
            let listener = TcpListener::from_std(fd.into()).map_err(failed())?;
            crate::tasks::spawn(accept(Rc::clone(&seats), hub.gate(), async move || {
                let (stream, _) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                conversation::begin(stream, level, None, &hub, &seats);
                Ok(())
            }));
        }
        Ok(())
    }
}

fn is_in_use(error: &bindonce_sys::Error) -> bool {
    error.errno() == Some(libc::EADDRINUSE)
}

/// Listens on the address of another process. haproxy's own master takes a UNIX path from the
/// process that has it, and so from another master. A path that another user could exchange is not
/// followed.
fn take_place(
    listener: &Listener,
    accounts: &Accounts,
    error: bindonce_sys::Error,
) -> Result<OwnedFd, Error> {
    let Address::Unix(path) = &listener.address else { return Err(error.into()) };
    tracing::warn!(path, "another process listens here for its master CLI; taking its place");
    if let Some(file) = identity::file(path) {
        listen::unlink_if_ours(&file).map_err(Error::system("bind the master CLI"))?;
    }
    Ok(listen::open_with(listener, accounts)?.fd)
}

/// Accepts one client at a time, when a seat is free and the gate is open.
async fn accept(seats: Rc<Seats>, gate: Gate, one: impl AsyncFn() -> io::Result<()>) {
    loop {
        seats.free().await;
        if let Err(error) = gate.while_open(one()).await {
            // The error concerns one client, or lasts until descriptors are free again.
            tracing::warn!(%error, "a client of the master CLI was not accepted");
            tokio::time::sleep(REFUSED).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use bindonce_haproxy::cli::Level;

    use super::*;

    /// A name that was not looked up counts as not answered: opening asks no name service.
    #[test]
    fn a_socket_gets_its_owner_from_the_names_that_were_looked_up() {
        let path = std::env::temp_dir().join(format!("bindonce-owner-{}", std::process::id()));
        let open = |text: &str, accounts: &Accounts| {
            let listener: Listener = text.parse().expect("a listener");
            let at = MasterAddress::Listen(listener);
            let wanted = MasterSocket { text: text.to_owned(), at, level: Level::Admin };
            let left = &mut BTreeMap::new();
            Socket::open(&wanted, left, &Passed::default(), accounts, false)
        };
        let named = format!("unix@{},user=root", path.display());
        let error = open(&named, &Accounts::default()).expect_err("not looked up");
        let text = error.with_hint();
        assert!(text.contains("user \"root\"") && text.contains("did not answer"), "{text}");
        assert!(!path.exists());
        let numbered = format!("unix@{},user={}", path.display(), nix::unistd::getuid());
        let opened = open(&numbered, &Accounts::default()).expect("a number");
        assert!(opened.is_some() && path.exists());
        std::fs::remove_file(&path).expect("removed");
    }
}
