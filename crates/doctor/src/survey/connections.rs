//! Collects how long a queue has waited, and which connections keep draining processes alive. Asked
//! only where a finding needs it, because the kernel walks through every connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use bindonce_core::address::Address;
use bindonce_sys::diag::{self, Connection};
use bindonce_sys::holders;

use super::namespaces::Namespace;
use crate::facts::{Connections, Details, Look, Questions, Socket};

pub(super) fn ask(namespaces: &[Namespace], look: &Look, questions: &Questions) -> Details {
    let queues: Vec<&Socket> =
        look.sockets.iter().filter(|socket| questions.queues.contains(&socket.inode)).collect();
    let mut draining: HashMap<u64, i32> = HashMap::new();
    for pid in &questions.connections {
        draining.extend(holders::sockets(*pid).into_iter().map(|inode| (inode, *pid)));
    }
    let mut details = Details::default();
    if queues.is_empty() && draining.is_empty() {
        return details;
    }
    for namespace in namespaces {
        // The longest wait by local address and port.
        let mut waiting: HashMap<SocketAddr, Duration> = HashMap::new();
        let connections = &mut details.connections;
        // A namespace that is gone meanwhile has no connections.
        let _ = namespace.within(|| {
            diag::connections(|connection| {
                // A connection that nobody has accepted has sent nothing since it was established.
                if connection.inode == 0 {
                    let longest = waiting.entry(connection.local).or_default();
                    *longest = Duration::from_millis(connection.since_sent.into()).max(*longest);
                } else if let Some(pid) = draining.get(&connection.inode) {
                    count(connections.entry(*pid).or_default(), &connection);
                }
            })
        });
        for socket in queues.iter().filter(|one| one.network == namespace.id) {
            if let Some(longest) = longest(&waiting, &socket.address) {
                details.waits.insert(socket.inode, longest);
            }
        }
    }
    details
}

/// The longest wait at a listener: on its address, or on any address for a wildcard. 0 if the
/// waiting connections were accepted meanwhile; None if it is not a TCP listener.
fn longest(waiting: &HashMap<SocketAddr, Duration>, address: &Address) -> Option<Duration> {
    let Address::Tcp(listener) = address else {
        return None;
    };
    let here = |local: &SocketAddr| {
        local.port() == listener.port()
            && (listener.ip().is_unspecified() || local.ip() == listener.ip().to_canonical())
    };
    let times = waiting.iter().filter(|(local, _)| here(local)).map(|(_, time)| *time);
    Some(times.max().unwrap_or_default())
}

fn count(known: &mut Connections, connection: &Connection) {
    known.count += 1;
    let idle = connection.since_sent.min(connection.since_received);
    let idle = Duration::from_millis(idle.into());
    if known.oldest.as_ref().is_none_or(|(_, longest)| idle > *longest) {
        known.oldest = Some((format!("{} - {}", connection.remote, connection.local), idle));
    }
}
