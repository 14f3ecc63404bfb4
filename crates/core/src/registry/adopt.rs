//! Sockets that no claim opened: adopted ones (from an upgrade, a crash or another holder), and the
//! replacement of a dead one.

use std::sync::Arc;

use super::Registry;
use super::event::{Action, Adoption, Closing};
use super::held::{Held, Opened};
use super::ids::ListenerId;
use crate::address::Address;
use crate::listener::{Listener, Options};
use crate::time::Timestamp;

impl<H> Registry<H> {
    /// A held listener, by the inode of its socket. Searches all of them.
    pub fn by_inode(&self, inode: u64) -> Option<(ListenerId, &Held<H>)> {
        let held = self.held.iter().find(|(_, held)| held.opened.inode == inode);
        held.map(|(id, held)| (*id, held.as_ref()))
    }

    /// The listener, held or being opened, that keeps this one, bound there, from being adopted.
    pub fn in_the_way(&self, listener: &Listener, bound: &Address) -> Option<&Listener> {
        let key = listener.key();
        let name = listener.name.as_ref().and_then(|name| self.index.name(name));
        let id = name
            .or_else(|| self.index.key(&key))
            .or_else(|| self.index.same_place(&key))
            .or_else(|| self.index.same_place(&key.bound(bound)))?;
        let planned = || self.pending.values().find_map(|plan| plan.opening.planned(id));
        let held = self.held.get(&id).map(|held| &held.listener);
        held.or_else(|| planned().map(|new| &new.listener)).map(Arc::as_ref)
    }

    /// Enters sockets that are already held. A socket whose name, key or place is taken is given
    /// back to be closed. Overlapping ones are all bound already, so all are held.
    pub(super) fn enter(&mut self, adoptions: Vec<Adoption<H>>, actions: &mut Vec<Action<H>>) {
        for Adoption { listener, opened, since, tentative, outlived } in adoptions {
            let key = listener.key();
            let bound = key.bound(&opened.bound);
            let name_taken =
                listener.name.as_ref().is_some_and(|name| self.index.name(name).is_some());
            let taken = self.index.key(&key).is_some()
                || self.index.same_place(&key).is_some()
                || self.index.same_place(&bound).is_some();
            if name_taken || taken {
                actions.push(Action::Close(opened.handle, listener, Closing::NeverHeld));
                continue;
            }
            let id = ListenerId(self.next);
            self.next += 1;
            self.index.insert(id, &key);
            if opened.bound != listener.address {
                self.index.occupy(id, bound);
            }
            if let Some(name) = &listener.name {
                self.index.insert_name(id, name);
            }
            let mut held = Held::new(listener, opened, since, tentative);
            held.outlived = outlived;
            self.held.insert(id, Box::new(held));
        }
    }

    /// Replaces the socket of a listener that is beyond repair. Leases stay; clients with the old
    /// socket get the new one when they claim again.
    pub(super) fn replace(
        &mut self,
        now: Timestamp,
        id: ListenerId,
        opened: Opened<H>,
        actions: &mut Vec<Action<H>>,
    ) {
        let Some(held) = self.held.get_mut(&id) else {
            let options = Options::default();
            let listener = Listener { name: None, address: opened.bound, options }.into();
            actions.push(Action::Close(opened.handle, listener, Closing::NeverHeld));
            return;
        };
        let key = held.key();
        let new = opened.bound.clone();
        held.since = now;
        let old = std::mem::replace(&mut held.opened, opened);
        actions.push(Action::Close(old.handle, held.listener.clone(), Closing::Replaced));
        self.index.vacate(id, key.bound(&old.bound));
        self.index.occupy(id, key.bound(&new));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConnectionId, Event, Want};
    use super::*;
    use crate::policy::Peer;

    const NOW: Timestamp = Timestamp(5);

    fn opened(handle: u32, bound: &str) -> Opened<u32> {
        Opened {
            handle,
            bound: bound.parse().expect("address"),
            inode: u64::from(handle),
            cookie: 0,
            backlog: 5,
            exclusive: true,
        }
    }

    fn adoption(handle: u32, listen: &str, bound: &str) -> Adoption<u32> {
        let listener = listen.parse::<Listener>().expect(listen).into();
        let opened = opened(handle, bound);
        Adoption { listener, opened, since: NOW, tentative: false, outlived: None }
    }

    fn registry(adoptions: Vec<Adoption<u32>>) -> (Registry<u32>, Vec<u32>) {
        let mut registry = Registry::default();
        let closed = registry.on(NOW, Event::Adopt(adoptions)).into_iter().map(|action| {
            let Action::Close(handle, _, Closing::NeverHeld) = action else {
                panic!("{action:?}");
            };
            handle
        });
        let closed = closed.collect();
        let connect = Event::Connected(ConnectionId(1), Peer { pid: 1, uid: 0, gid: 0 });
        registry.on(NOW, connect);
        (registry, closed)
    }

    fn claim(registry: &mut Registry<u32>, wanted: &str) -> Vec<Action<u32>> {
        let want = Want {
            wanted: wanted.parse().expect(wanted),
            tentative: false,
            change: false,
            held: false,
        };
        registry.on(NOW, Event::Claim(ConnectionId(1), vec![want].into()))
    }

    #[test]
    fn what_is_adopted_is_found_and_never_bound_again() {
        let (mut registry, closed) = registry(vec![
            adoption(1, "web=0.0.0.0:80", "0.0.0.0:80"),
            adoption(2, "any=127.0.0.1:0", "127.0.0.1:4000"),
            // Conflicts in the name, in the address, and in the address that the second really has.
            adoption(3, "web=0.0.0.0:81", "0.0.0.0:81"),
            adoption(4, "[::ffff:0.0.0.0]:80", "0.0.0.0:80"),
            adoption(5, "127.0.0.1:4000", "127.0.0.1:4000"),
            // A socket that is bound beside the first is held beside it.
            adoption(6, "10.0.0.1:80", "10.0.0.1:80"),
            adoption(7, "[::]:80", "[::]:80"),
        ]);
        assert_eq!(closed, [3, 4, 5]);
        assert_eq!(registry.len(), 4);
        for wanted in ["web", ":80", "any", "any=127.0.0.1:0"] {
            let actions = claim(&mut registry, wanted);
            assert!(matches!(actions[..], [Action::Grant(..)]), "{wanted}: {actions:?}");
        }
        let actions = claim(&mut registry, "127.0.0.1:4000");
        assert!(matches!(actions[..], [Action::Refuse(..)]), "{actions:?}");
        assert_eq!(registry.by_inode(2).expect("held").1.since, NOW);
    }

    #[test]
    fn a_replaced_socket_keeps_name_and_leases() {
        let (mut registry, _) = registry(vec![adoption(1, "any=127.0.0.1:0", "127.0.0.1:4000")]);
        claim(&mut registry, "any");
        let (id, _) = registry.by_inode(1).expect("held");
        let actions = registry.on(NOW, Event::Replace(id, opened(2, "127.0.0.1:5000")));
        assert!(matches!(actions[..], [Action::Close(1, _, Closing::Replaced)]), "{actions:?}");
        assert_eq!(registry.by_inode(2).expect("held").1.leases, 1);
        assert!(registry.by_inode(1).is_none());
        // The old place is free, the new one is not.
        assert!(matches!(claim(&mut registry, "127.0.0.1:5000")[..], [Action::Refuse(..)]));
        assert!(matches!(claim(&mut registry, "127.0.0.1:4000")[..], [Action::Open(..)]));
    }

    #[test]
    fn a_replaced_socket_is_nobodys_until_it_is_claimed_again() {
        let (mut registry, _) = registry(vec![adoption(1, "web=/run/a", "/run/a")]);
        let is_left = |registry: &Registry<u32>| registry.list()[0].has_only_old_users();
        assert!(!is_left(&registry), "nobody uses it");
        claim(&mut registry, "web");
        assert!(!is_left(&registry));
        let (id, _) = registry.by_inode(1).expect("held");
        registry.on(Timestamp(6), Event::Replace(id, opened(2, "/run/a")));
        assert!(is_left(&registry));
        // Another generation gets it, and fails.
        let connect = Event::Connected(ConnectionId(2), Peer { pid: 2, uid: 0, gid: 0 });
        registry.on(Timestamp(7), connect);
        let again = |id| {
            let wanted = "web".parse().expect("a name");
            let want = Want { wanted, tentative: true, change: false, held: false };
            Event::Claim(ConnectionId(id), vec![want].into())
        };
        registry.on(Timestamp(7), again(2));
        assert!(!is_left(&registry));
        registry.on(Timestamp(8), Event::Gone(ConnectionId(2)));
        assert!(is_left(&registry));
        registry.on(Timestamp(8), again(1));
        assert!(!is_left(&registry));
    }

    #[test]
    fn a_replacement_for_nothing_is_given_back() {
        let (mut registry, _) = registry(Vec::new());
        let actions = registry.on(NOW, Event::Replace(ListenerId(9), opened(7, "10.0.0.1:80")));
        assert!(matches!(actions[..], [Action::Close(7, _, Closing::NeverHeld)]), "{actions:?}");
    }
}
