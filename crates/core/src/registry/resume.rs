//! Connections that survive an upgrade of the broker: exported to the next image, and entered there
//! as they were.

use std::collections::{BTreeMap, HashMap};

use super::Registry;
use super::connection::{Connection, SavedConnection, SavedLease};
use super::event::Action;

impl<H> Registry<H> {
    /// Every connection, in the order in which they connected.
    pub fn links(&self) -> impl Iterator<Item = SavedConnection> {
        self.connections.iter().map(|(id, connection)| {
            let lease = |(id, since): (&_, &_)| {
                let inode = self.held.get(id)?.opened.inode;
                Some(SavedLease { inode, since: *since })
            };
            let mut leases: Vec<_> = connection.leases.iter().filter_map(lease).collect();
            leases.sort_unstable();
            SavedConnection {
                id: *id,
                peer: connection.peer,
                label: connection.label.clone(),
                leases,
            }
        })
    }

    /// Enters connections of the earlier image. A lease on a listener that is no longer held is
    /// left out. A tentative listener without a remaining lease is closed.
    pub(super) fn resume(&mut self, links: Vec<SavedConnection>, actions: &mut Vec<Action<H>>) {
        let ids: HashMap<u64, _> =
            self.held.iter().map(|(id, held)| (held.opened.inode, *id)).collect();
        for link in links {
            let mut leases = BTreeMap::new();
            for SavedLease { inode, since } in link.leases {
                if let Some(id) = ids.get(&inode) {
                    if let Some(held) = self.held.get_mut(id) {
                        if leases.insert(*id, since).is_none() {
                            held.leases += 1;
                        }
                    }
                }
            }
            self.leases.add(link.peer.uid, leases.len());
            let connection = Connection { peer: link.peer, label: link.label, leases };
            self.connections.insert(link.id, connection);
        }
        for id in ids.into_values() {
            self.close_unconfirmed(id, actions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Adoption, Closing, ConnectionId, Event, Label, Opened, State};
    use super::*;
    use crate::listener::Listener;
    use crate::policy::Peer;
    use crate::time::Timestamp;

    const NOW: Timestamp = Timestamp(5);

    #[test]
    fn a_registry_with_its_connections_goes_on_in_the_next_image() {
        let adoption = |handle: u32, listen: &str, tentative| Adoption {
            listener: listen.parse::<Listener>().expect(listen).into(),
            opened: Opened {
                handle,
                bound: format!("0.0.0.0:{handle}").parse().expect("address"),
                inode: u64::from(handle),
                cookie: 0,
                backlog: 5,
                exclusive: true,
            },
            since: NOW,
            tentative,
            outlived: None,
        };
        let adoptions = || vec![adoption(80, "web=:80", false), adoption(81, "b=:81", true)];
        let mut first = Registry::default();
        first.on(NOW, Event::Adopt(adoptions()));
        let label = Label {
            service: "edge".parse().expect("name"),
            generation: 7,
            pid: 9,
            state: State::Serving,
        };
        let peer = Peer { pid: 1, uid: 2, gid: 3 };
        let link =
            |id, leases, label| SavedConnection { id: ConnectionId(id), peer, label, leases };
        let lease = |inode, since| SavedLease { inode, since };
        let links = vec![
            link(3, vec![lease(80, Timestamp(6)), lease(81, Timestamp(7))], Some((label, NOW))),
            // A lease on a socket that is gone is left out.
            link(4, vec![lease(99, NOW)], None),
        ];
        first.on(NOW, Event::Resume(links));
        let saved: Vec<SavedConnection> = first.links().collect();
        assert_eq!((saved.len(), saved[0].leases.len(), saved[1].leases.len()), (2, 2, 0));

        let mut second = Registry::default();
        second.on(NOW, Event::Adopt(adoptions()));
        second.on(NOW, Event::Resume(saved.clone()));
        assert_eq!(second.links().collect::<Vec<_>>(), saved);
        assert_eq!(second.list()[0].holders[0].since, Timestamp(6));
        // A tentative listener ends with its last lease, as in the earlier image.
        let mut third = Registry::default();
        third.on(NOW, Event::Adopt(adoptions()));
        let actions = third.on(NOW, Event::Resume(saved[1..].to_vec()));
        assert!(matches!(actions[..], [Action::Close(81, _, Closing::Unconfirmed)]), "{actions:?}");
        let actions = second.on(NOW, Event::Gone(ConnectionId(3)));
        assert!(matches!(actions[..], [Action::Close(81, _, Closing::Unconfirmed)]), "{actions:?}");
    }
}
