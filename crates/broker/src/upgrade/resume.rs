//! Resumes where an earlier image of this process stopped, with the state that it left.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use bindonce_core::event::Kind;
use bindonce_core::registry::SavedConnection;
use bindonce_core::succession::Place;
use bindonce_core::time::Timestamp;
use bindonce_daemon::Happening;
use bindonce_daemon::rpc::{Caller, Link, Reply};
use bindonce_sys::{identity, inherit};
use bindonce_wire::manifest::{self, ConnectionEntry, ConnectionLabel, Manifest};
use bindonce_wire::message::{Id, encode_result};
use bindonce_wire::result::UpgradeResult;
use tokio::net::UnixStream;

use super::inherited::Inherited;
use crate::broker::{Broker, VERSION};
use crate::generations;
use crate::listeners::unlink;
use crate::persistence::restore::{Found, as_written, same_path};
use crate::persistence::store::Store;

/// A resumed connection, and the reply to its request for the upgrade, if it made one.
pub(crate) type Resumed = (Rc<Link>, Option<Reply>);

/// Resumes with the listeners and the connections. The log names each that cannot be taken over;
/// the rest is resumed.
pub(crate) fn resume(inherited: Inherited, broker: &RefCell<Broker>) -> io::Result<Vec<Resumed>> {
    let Manifest { header, listeners, connections, services } = inherited.manifest;
    let mut broker = broker.borrow_mut();
    let broker = &mut *broker;
    remove(header.unfinished);
    broker.endpoint.since = Timestamp(header.broker.since);
    broker.upgrade.done.set(header.broker.upgrades);
    let store = Store::new(header.store)?;
    let stored = store.is_some();
    if let Some(store) = store {
        broker.persistence.ledger.keep_in_store(store);
    }
    let (listeners, missing): (Vec<_>, Vec<_>) =
        listeners.into_iter().partition(|entry| entry.descriptor.is_some());
    broker.persistence.missing.entries = missing;
    // These were open when the other descriptors were counted.
    let taken = (listeners.len() + connections.len()) as u64;
    let limits = &mut broker.listeners.limits;
    limits.other_descriptors = limits.other_descriptors.saturating_sub(taken);
    let take = |entry: &manifest::Entry| -> Result<Found, String> {
        let fd = inherit::take(entry.descriptor.unwrap_or(-1)).map_err(|e| e.to_string())?;
        let found = identity::of(fd.as_fd()).map_err(|error| error.to_string())?;
        as_written(entry, &found, fd)
    };
    let mut found = Vec::with_capacity(listeners.len());
    for entry in &listeners {
        match take(entry) {
            Ok(listener) => found.push(listener),
            Err(reason) => {
                let text = "listener lost in the upgrade: it is not what it was";
                tracing::error!(listener = entry.listen, inode = entry.inode, reason, "{text}");
                let text = format!("{}: {text}: {reason}", entry.listen);
                broker.reporter.record(Happening::new(Kind::ListenerLost, text));
            }
        }
    }
    broker.listeners.adopt(found, stored, None);
    broker.watch_survivors();
    broker.succession.recall(services, header.floor);
    let mut places = Vec::new();
    let mut links = Vec::with_capacity(connections.len());
    let mut resumed = Vec::with_capacity(connections.len());
    for written in connections {
        match link(&written, broker) {
            Ok(link) => {
                places.extend(place(&written));
                links.push(read_link(&written));
                resumed.push((link, written.unanswered.as_deref().and_then(answer)));
            }
            Err(error) => tracing::warn!(pid = written.peer.pid, %error, "a connection was lost"),
        }
    }
    for link in &links {
        if let Some((label, _)) = &link.label {
            broker.outlived.joined(link.id, &link.peer, label);
        }
    }
    broker.listeners.resume(links);
    generations::resume(broker, places);
    tracing::info!(
        listeners = broker.listeners.registry.len(),
        connections = resumed.len(),
        from = header.broker.written_by,
        to = VERSION,
        "upgraded in place"
    );
    let text = format!("upgraded in place, from {} to {}", header.broker.written_by, VERSION);
    let happening = Happening::new(Kind::Upgraded, text);
    broker.reporter.record(happening.pid(std::process::id().cast_signed()));
    Ok(resumed)
}

/// Removes the files of claims that ended with the previous image.
pub(crate) fn remove(unfinished: Vec<(String, manifest::File)>) {
    for (path, file) in unfinished {
        unlink(Some(&same_path(path, file)));
    }
}

fn link(written: &ConnectionEntry, broker: &mut Broker) -> io::Result<Rc<Link>> {
    let fd: OwnedFd = inherit::take(written.descriptor.unwrap_or(-1))?;
    let stream = UnixStream::from_std(fd.into())?;
    // The kernel still has what is not recorded, such as the groups.
    let groups = bindonce_sys::peer::credentials(stream.as_fd())?.groups.into();
    let network = identity::network_of(stream.as_fd());
    let caller = Caller { connection: written.id, peer: written.peer, groups, network };
    let admission = broker.access.admission(&caller);
    let link = broker.clients.enter(stream, caller, admission, &written.unread);
    link.was_sent(written.unreceived);
    Ok(link)
}

fn read_link(written: &ConnectionEntry) -> SavedConnection {
    let label = written.label.as_ref().map(|label| (label.label.clone(), label.since));
    SavedConnection { id: written.id, peer: written.peer, label, leases: written.leases.clone() }
}

/// The place of a connection's generation among those of its service.
fn place(written: &ConnectionEntry) -> Option<Place> {
    let ConnectionLabel { label, turn, .. } = written.label.clone()?;
    Some(Place { connection: written.id, uid: written.peer.uid, label, ordered: turn })
}

/// The reply to the request for the upgrade that was done, by its id.
fn answer(unanswered: &str) -> Option<Reply> {
    let id: Id = serde_json::from_str(unanswered).unwrap_or_default();
    let version = VERSION.to_owned();
    let result = UpgradeResult { upgraded: true, pid: std::process::id(), version };
    encode_result(&id, &result).ok().map(Reply::from)
}
