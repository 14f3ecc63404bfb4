//! Writes down everything that the next image must know.

use std::collections::HashMap;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;

use bindonce_core::registry::{self, ConnectionId};
use bindonce_core::succession::Progress;
use bindonce_daemon::reexec;
use bindonce_daemon::rpc::Link;
use bindonce_wire::manifest::{ConnectionEntry, ConnectionLabel, Manifest};
use tokio::net::UnixListener;

use crate::broker::Broker;
use crate::control::Control;

pub(super) fn snapshot(
    broker: &Broker,
    links: &[(Rc<Link>, Vec<u8>)],
    listener: &UnixListener,
    control: &Control,
) -> Manifest {
    let mut manifest = broker.whole_manifest();
    let header = &mut manifest.header;
    header.broker.process = Some(reexec::this_process());
    header.descriptors.insert("control".to_owned(), listener.as_raw_fd());
    header.descriptors.insert("lock".to_owned(), control.lock().as_raw_fd());
    header.unfinished = broker.listeners.unfinished.written();
    header.store = broker.persistence.ledger.store().and_then(|store| store.name());
    for (entry, view) in manifest.listeners.iter_mut().zip(broker.listeners.registry.list()) {
        entry.descriptor = Some(view.held.opened.handle.fd.as_raw_fd());
    }
    // Those that are not recovered have no descriptor.
    manifest.listeners.extend(broker.persistence.missing.entries.iter().cloned());
    let turns: HashMap<ConnectionId, Progress> = broker.succession.turns().collect();
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
    // Lingering connections have nothing but what their peers have not received; the next image
    // finds that they have ended.
    let lingering = links.iter().filter(|(link, _)| link.lingers());
    manifest.connections.extend(lingering.map(|(link, unread)| {
        let (id, peer) = (link.caller.connection, link.caller.peer);
        let nothing = registry::SavedConnection { id, peer, label: None, leases: Vec::new() };
        written(nothing, None, link, unread)
    }));
    manifest
}

fn written(
    link: registry::SavedConnection,
    turn: Option<Progress>,
    open: &Link,
    unread: &[u8],
) -> ConnectionEntry {
    ConnectionEntry {
        id: link.id,
        descriptor: Some(open.stream.as_raw_fd()),
        peer: link.peer,
        label: link.label.map(|(label, since)| ConnectionLabel { label, since, turn }),
        leases: link.leases,
        unread: unread.to_vec(),
        unanswered: open.upgrade(),
        unreceived: open.unreceived(),
    }
}
