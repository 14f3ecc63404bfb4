//! Going on where an earlier image of this process stopped: what it has left, taken over.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use bindonce_core::event::Kind;
use bindonce_core::policy::Peer;
use bindonce_core::registry::{self, ConnectionId, Label};
use bindonce_core::succession::Place;
use bindonce_core::time::Timestamp;
use bindonce_daemon::Happening;
use bindonce_daemon::rpc::{Caller, Link, Reply};
use bindonce_sys::listen::UnixPath;
use bindonce_sys::{identity, inherit};
use bindonce_wire::manifest::{self, ConnectionEntry as Written, ConnectionLease, Manifest};
use bindonce_wire::message::{Id, encode_result};
use bindonce_wire::result::UpgradeResult;
use tokio::net::UnixStream;

use super::inherited::Inherited;
use crate::answer::phase;
use crate::broker::{Broker, VERSION};
use crate::generations;
use crate::listeners::unlink;
use crate::persistence::found::{Found, as_written};
use crate::persistence::store::Store;
use crate::succession;

/// A resumed connection, and the reply to the upgrade that it has asked for.
pub(crate) type Resumed = (Rc<Link>, Option<Reply>);

/// Resumes with the listeners and the connections. The log names each that cannot be taken over;
/// the rest is resumed.
pub(crate) fn resume(inherited: Inherited, broker: &RefCell<Broker>) -> io::Result<Vec<Resumed>> {
    let Manifest { header, listeners, connections, services } = inherited.manifest;
    let mut broker = broker.borrow_mut();
    let broker = &mut *broker;
    remove(header.unfinished);
    broker.since = Timestamp(header.since);
    broker.upgrade.done.set(header.upgrades);
    let store = Store::new(header.store)?;
    let stored = store.is_some();
    if let Some(store) = store {
        broker.persistence.ledger.keep_in_store(store);
    }
    // They were open when the descriptors were counted.
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
    broker.succession.recall(services, header.floor);
    let mut places = Vec::new();
    let mut links = Vec::with_capacity(connections.len());
    let mut resumed = Vec::with_capacity(connections.len());
    for written in connections {
        match link(&written, broker) {
            Ok(link) => {
                let read = read_link(&written);
                places.extend(place(&written, &read));
                links.push(read);
                resumed.push((link, written.owed.as_deref().and_then(answer)));
            }
            Err(error) => tracing::warn!(pid = written.pid, %error, "a connection was lost"),
        }
    }
    broker.listeners.resume(links);
    generations::resume(broker, places);
    tracing::info!(
        listeners = broker.listeners.registry.len(),
        connections = resumed.len(),
        from = header.written_by,
        to = VERSION,
        "upgraded in place"
    );
    let text = format!("upgraded in place, from {} to {}", header.written_by, VERSION);
    let happening = Happening::new(Kind::Upgraded, text);
    broker.reporter.record(happening.pid(std::process::id().cast_signed()));
    Ok(resumed)
}

/// Removes the files of claims that ended with the image before.
pub(crate) fn remove(unfinished: Vec<(String, manifest::File)>) {
    for (path, manifest::File { dev, ino }) in unfinished {
        unlink(Some(&UnixPath { path: path.into(), dev, ino }));
    }
}

fn peer(written: &Written) -> Peer {
    Peer { pid: written.pid, uid: written.uid, gid: written.gid }
}

fn link(written: &Written, broker: &mut Broker) -> io::Result<Rc<Link>> {
    let fd: OwnedFd = inherit::take(written.descriptor.unwrap_or(-1))?;
    let stream = UnixStream::from_std(fd.into())?;
    // The kernel still has what is not recorded.
    let groups = bindonce_sys::peer::credentials(stream.as_fd())?.groups.into();
    let caller = Caller { connection: ConnectionId(written.id), peer: peer(written), groups };
    let admission = broker.access.admission(&caller);
    Ok(broker.clients.enter(stream, caller, admission, &written.unread))
}

fn read_link(written: &Written) -> registry::SavedConnection {
    let label = written.label.as_ref().and_then(|label| {
        let read = Label {
            service: label.service.parse().ok()?,
            generation: label.generation,
            pid: label.pid,
            phase: phase(label.state),
        };
        Some((read, Timestamp(label.since)))
    });
    let lease = |lease: &ConnectionLease| (lease.inode, Timestamp(lease.since));
    registry::SavedConnection {
        id: ConnectionId(written.id),
        peer: peer(written),
        label,
        leases: written.leases.iter().map(lease).collect(),
    }
}

/// The place of a connection's generation among those of its service.
fn place(written: &Written, read: &registry::SavedConnection) -> Option<Place> {
    let (label, _) = read.label.clone()?;
    let turn = written.label.as_ref().and_then(|label| label.turn);
    let ordered = turn.map(succession::progress);
    Some(Place { connection: read.id, uid: read.peer.uid, label, ordered })
}

/// The reply to a request for the upgrade that has been done, by its id.
fn answer(owed: &str) -> Option<Reply> {
    let id = match serde_json::from_str(owed) {
        Ok(serde_json::Value::Number(number)) => Id::Number(number),
        Ok(serde_json::Value::String(text)) => Id::Text(text),
        _ => Id::Null,
    };
    let version = VERSION.to_owned();
    let result = UpgradeResult { upgraded: true, pid: std::process::id(), version };
    encode_result(&id, &result).ok().map(Reply::from)
}
