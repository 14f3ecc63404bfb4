//! Descriptors that the starter of this supervisor left open for haproxy: `fd@N` of its
//! configuration, and the sockets of a socket unit (sd_listen_fds(3)).
//!
//! Each listener among them goes to the broker with the first generation that names it; later
//! generations get it from the broker. Our own descriptors stay open, as those of haproxy's master
//! do: a later configuration may name them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use bindonce::aio::Client;
use bindonce::{Claim, Give};
use bindonce_core::listener::Listener;
use bindonce_haproxy::config::{Binding, Descriptors, MasterAddress, MasterSocket};
use bindonce_sys::{identity, inherit};

use crate::adopt::give;
use crate::broker::{self, lease};
use crate::error::Error;
use crate::generations::listeners::read;

/// Inherited descriptors and their kinds.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    descriptors: BTreeMap<RawFd, OwnedFd>,
    /// The listener behind each descriptor number that a configuration may name, or why it is no
    /// listener. Includes listeners of an earlier supervisor that only the broker still holds.
    pub(crate) known: Descriptors,
}

impl Passed {
    /// Takes the open descriptors of this process, those that an earlier image left, and the
    /// listeners that the broker keeps from an earlier supervisor.
    pub(crate) fn take(
        saved: &BTreeMap<RawFd, String>,
        left: BTreeMap<RawFd, OwnedFd>,
    ) -> Result<Self, Error> {
        let mut descriptors = left;
        let mut known = Descriptors::new();
        for (number, text) in saved {
            known.extend(read(text).map(|listener| (*number, Ok(listener))));
        }
        for (number, fd) in &descriptors {
            known.insert(*number, identity::listener(fd.as_fd()));
        }
        // Other descriptors are left to haproxy, which may write its log there.
        let given = inherit::given(|number, fd| {
            let listener = identity::listener(fd);
            let is_one = listener.is_ok();
            known.insert(number, listener);
            is_one
        });
        descriptors.extend(given.map_err(Error::system("look at the inherited descriptors"))?);
        Ok(Self { descriptors, known })
    }

    /// The listeners among them, for the next supervisor.
    pub(crate) fn listeners(&self) -> BTreeMap<RawFd, String> {
        let listeners = self.known.iter();
        listeners
            .filter_map(|(number, listener)| Some((*number, listener.as_ref().ok()?.to_string())))
            .collect()
    }

    /// The descriptor with this number, if this process has it.
    pub(crate) fn descriptor(&self, number: RawFd) -> Option<BorrowedFd<'_>> {
        self.descriptors.get(&number).map(OwnedFd::as_fd)
    }

    /// The listening socket with this number.
    ///
    /// # Errors
    /// In haproxy's words.
    pub(crate) fn socket(&self, number: RawFd) -> io::Result<OwnedFd> {
        let why = match (self.known.get(&number), self.descriptor(number)) {
            (Some(Ok(_)), Some(fd)) => return fd.try_clone_to_owned(),
            (Some(Err(why)), _) => why,
            _ => "Bad file descriptor",
        };
        Err(io::Error::other(format!("cannot use file descriptor '{number}' : {why}.")))
    }

    /// All descriptors that this process has.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = (RawFd, &OwnedFd)> {
        self.descriptors.iter().map(|(number, fd)| (*number, fd))
    }

    /// Gives the broker the sockets that `-S` names, and takes those from it that only the broker
    /// still holds.
    pub(crate) async fn keep(&mut self, wanted: &[MasterSocket], socket: &Path) {
        for wanted in wanted {
            let MasterAddress::Descriptor(number) = wanted.at else { continue };
            let Some(Ok(listener)) = self.known.get(&number).cloned() else { continue };
            match self.lease(number, &listener, socket).await {
                Ok((client, fd)) => {
                    if let (Entry::Vacant(place), Ok(copy)) =
                        (self.descriptors.entry(number), fd.try_clone())
                    {
                        place.insert(copy);
                    }
                    let socket = socket.to_owned();
                    crate::tasks::spawn(async move {
                        lease::keep_one(client, &listener, &fd, &socket).await;
                    });
                }
                Err(error) => {
                    let text = "the broker does not keep the socket of the master CLI";
                    tracing::warn!(%listener, "{text}: {}", error.with_hint());
                }
            }
        }
    }

    async fn lease(
        &self,
        number: RawFd,
        listener: &Listener,
        socket: &Path,
    ) -> Result<(Client, OwnedFd), Error> {
        let mut client = broker::connect(socket).await?;
        if let Some(fd) = self.descriptor(number) {
            client.store(&[give(listener, fd)]).await.map_err(Error::claim)?;
        }
        let fd = lease::claim_one(&mut client, Claim::listen(listener.to_string())).await?;
        Ok((client, fd))
    }

    /// Gives the broker the descriptors that these bindings name, to be claimed on the same
    /// connection.
    pub(crate) async fn store(
        &self,
        lease: &mut Client,
        bindings: &[Binding],
    ) -> Result<(), Error> {
        let gives: Vec<Give<'_>> = bindings
            .iter()
            .filter_map(|binding| {
                Some(give(&binding.listener, self.descriptor(binding.inherited?)?))
            })
            .collect();
        if gives.is_empty() {
            return Ok(());
        }
        lease.store(&gives).await.map(drop).map_err(Error::claim)
    }
}
