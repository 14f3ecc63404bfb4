//! All that the next image must know, written down.

use std::collections::HashMap;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;

use bindonce_core::registry::{self, ConnectionId};
use bindonce_core::time::Timestamp;
use bindonce_daemon::reexec;
use bindonce_daemon::rpc::Link;
use bindonce_wire::manifest::{
    ConnectionEntry as Written, ConnectionLabel, ConnectionLease, ConnectionTurn, Manifest,
};
use tokio::net::UnixListener;

use crate::answer;
use crate::broker::Broker;
use crate::control::Control;

/// All that the next image must know.
pub(super) fn snapshot(
    broker: &Broker,
    links: &[(Rc<Link>, Vec<u8>)],
    listener: &UnixListener,
    control: &Control,
) -> Manifest {
    let mut manifest = broker.manifest();
    let header = &mut manifest.header;
    header.process = Some(reexec::this_process());
    header.descriptors.insert("control".to_owned(), listener.as_raw_fd());
    header.descriptors.insert("lock".to_owned(), control.lock().as_raw_fd());
    header.unfinished = broker.listeners.unfinished.written();
    header.store = broker.persistence.ledger.store().and_then(|store| store.name());
    for (entry, view) in manifest.listeners.iter_mut().zip(broker.listeners.registry.list()) {
        entry.descriptor = Some(view.held.opened.handle.fd.as_raw_fd());
    }
    let turns: HashMap<ConnectionId, ConnectionTurn> = broker.succession.turns().collect();
    manifest.connections = broker
        .listeners
        .registry
        .links()
        .filter_map(|link| {
            let same = |(other, _): &&(Rc<Link>, _)| other.caller.connection == link.id;
            let (open, unread) = links.iter().find(same)?;
            let turn = turns.get(&link.id).copied();
            Some(written(link, turn, open, unread))
        })
        .collect();
    manifest
}

fn written(
    link: registry::SavedConnection,
    turn: Option<ConnectionTurn>,
    open: &Link,
    unread: &[u8],
) -> Written {
    let label = link.label.map(|(label, since)| ConnectionLabel {
        service: label.service.to_string(),
        generation: label.generation,
        pid: label.pid,
        state: answer::wire_state(label.phase),
        since: since.0,
        turn,
    });
    let lease = |(inode, since): (u64, Timestamp)| ConnectionLease { inode, since: since.0 };
    Written {
        id: link.id.0,
        descriptor: Some(open.stream.as_raw_fd()),
        pid: link.peer.pid,
        uid: link.peer.uid,
        gid: link.peer.gid,
        label,
        leases: link.leases.into_iter().map(lease).collect(),
        unread: unread.to_vec(),
        owed: open.upgrade(),
    }
}
