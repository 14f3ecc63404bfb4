//! How a listener ends: by release, or with its last lease if it is tentative.

use std::collections::HashSet;

use super::Registry;
use super::event::{Action, Closing};
use super::ids::{ConnectionId, ListenerId};
use super::refusal::Refusal;
use crate::listener::{Listener, Wanted};
use crate::time::Timestamp;

/// The most leases of an ended connection that end in one step.
pub(super) const ENDED_AT_ONCE: usize = 256;

/// The most listeners that are closed in one step, some 8 us each.
pub(super) const CLOSED_AT_ONCE: usize = 32;

/// A release that is decided some listeners at a time.
#[derive(Debug, Default)]
pub struct Releasing {
    /// The listeners decided so far.
    pub ids: Vec<ListenerId>,
    seen: HashSet<ListenerId>,
    /// How much is decided: whole elements, and listeners of the next one.
    at: (usize, usize),
}

impl<H> Registry<H> {
    /// Closes all of the named listeners, or none. A lease of the caller does not stand in the way,
    /// one of another connection does.
    pub(super) fn release(
        &mut self,
        caller: ConnectionId,
        wanted: &[Wanted],
        actions: &mut Vec<Action<H>>,
    ) {
        let mut releasing = Releasing::default();
        loop {
            match self.decide_release(caller, wanted, &mut releasing) {
                Err(refusal) => return actions.push(Action::Refuse(caller, refusal)),
                Ok(true) => return self.release_some(caller, releasing.ids, actions),
                Ok(false) => {}
            }
        }
    }

    /// Closes some of these listeners, on which only the caller has a lease. A listener that
    /// another connection has claimed since the decision stays.
    pub(super) fn release_some(
        &mut self,
        caller: ConnectionId,
        mut ids: Vec<ListenerId>,
        actions: &mut Vec<Action<H>>,
    ) {
        let rest = ids.split_off(ids.len().min(CLOSED_AT_ONCE));
        let mut names = Vec::with_capacity(ids.len());
        for id in ids {
            let own = self
                .connections
                .get_mut(&caller)
                .and_then(|connection| connection.leases.remove(&id).map(|_| connection.peer.uid));
            if let Some(uid) = own {
                self.leases.remove(uid, 1);
                self.held.get_mut(&id).into_iter().for_each(|held| held.leases -= 1);
            }
            if self.held.get(&id).is_some_and(|held| held.leases == 0) {
                self.close(id, Closing::Released, Some(&mut names), actions);
            }
        }
        actions.push(Action::Released(caller, names, rest));
    }

    /// Decides about more of a release; true when all is decided. Then more listeners may follow,
    /// or [`Event::ReleaseRest`](super::Event::ReleaseRest) closes the decided ones: a listener
    /// that is claimed meanwhile stays open, as if it had been claimed afterwards.
    ///
    /// # Errors
    /// A listener is not held, or another connection uses it. Then none may be closed.
    pub fn decide_release(
        &self,
        caller: ConnectionId,
        wanted: &[Wanted],
        releasing: &mut Releasing,
    ) -> Result<bool, Refusal> {
        let mut room = self.at_once;
        while let Some(next) = wanted.get(releasing.at.0) {
            match next {
                Wanted::Named(name) => {
                    let id = self.index.name(name).filter(|id| self.held.contains_key(id));
                    let id = id.ok_or_else(|| Refusal::NotFound { wanted: name.to_string() })?;
                    self.check_release(caller, id, releasing)?;
                    room = room.saturating_sub(1);
                }
                Wanted::Listen(spec) => {
                    for listener in spec.expand_from(releasing.at.1) {
                        if room == 0 {
                            return Ok(false);
                        }
                        room -= 1;
                        let id = self.find(&listener);
                        let id =
                            id.ok_or_else(|| Refusal::NotFound { wanted: listener.to_string() })?;
                        self.check_release(caller, id, releasing)?;
                        releasing.at.1 += 1;
                    }
                }
            }
            releasing.at = (releasing.at.0 + 1, 0);
        }
        releasing.at = (0, 0);
        Ok(true)
    }

    fn check_release(
        &self,
        caller: ConnectionId,
        id: ListenerId,
        releasing: &mut Releasing,
    ) -> Result<(), Refusal> {
        if !releasing.seen.insert(id) {
            return Ok(());
        }
        let own = self.connections.get(&caller);
        let own = own.is_some_and(|connection| connection.leases.contains_key(&id));
        if let Some(held) = self.held.get(&id).filter(|held| held.leases > usize::from(own)) {
            let holders = self.holders(id).filter(|(id, _)| *id != caller);
            let holders = holders.map(|(_, holder)| holder).collect();
            return Err(Refusal::InUse { held: held.described(), holders });
        }
        releasing.ids.push(id);
        Ok(())
    }

    /// A held listener by its address as asked for, or with the port that it got. An address alone
    /// also finds a listener there that has a device or is for IPv6 alone; an address with such an
    /// option finds no other listener.
    fn find(&self, listener: &Listener) -> Option<ListenerId> {
        let key = listener.key();
        let bound = |id: &ListenerId| {
            self.held.get(id).is_some_and(|held| {
                let bound = &held.opened.bound;
                held.key().bound(bound) == key || (key.is_plain() && *bound == listener.address)
            })
        };
        self.index
            .key(&key)
            .or_else(|| self.index.overlapping(&key).find(bound))
            .filter(|id| self.held.contains_key(id))
    }

    /// Ends the leases of a connection, some at a time, then the connection.
    pub(super) fn gone(&mut self, now: Timestamp, id: ConnectionId, actions: &mut Vec<Action<H>>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let service = connection.label.as_ref().map(|(label, _)| label.service.clone());
        let uid = connection.peer.uid;
        // In a fixed order, to keep logs and tests comparable.
        let (mut some, mut closing) = (Vec::new(), 0);
        while some.len() < ENDED_AT_ONCE && closing < CLOSED_AT_ONCE {
            let Some((id, _)) = connection.leases.pop_first() else { break };
            let held = self.held.get(&id);
            closing += usize::from(held.is_some_and(|held| held.tentative && held.leases == 1));
            some.push(id);
        }
        self.leases.remove(uid, some.len());
        if connection.leases.is_empty() {
            self.connections.remove(&id);
        } else {
            actions.push(Action::Leaving(id));
        }
        self.waiting.remove(&id);
        self.abandon_pending(now, id, actions);
        for id in some {
            if let Some(held) = self.held.get_mut(&id) {
                held.leases -= 1;
                let last = service.clone().filter(|_| held.leases == 0);
                held.last_user = last.map(|service| Box::new((service, uid)));
            }
            self.close_unconfirmed(id, actions);
        }
    }

    /// Closes a listener that was claimed tentatively and has no lease left.
    pub(super) fn close_unconfirmed(&mut self, id: ListenerId, actions: &mut Vec<Action<H>>) {
        if self.held.get(&id).is_some_and(|held| held.tentative && held.leases == 0) {
            self.close(id, Closing::Unconfirmed, None, actions);
        }
    }

    fn close(
        &mut self,
        id: ListenerId,
        why: Closing,
        names: Option<&mut Vec<String>>,
        actions: &mut Vec<Action<H>>,
    ) {
        let Some(held) = self.held.remove(&id) else {
            return;
        };
        let key = held.key();
        self.index.vacate(id, key.bound(&held.opened.bound));
        self.index.remove(id, &key);
        if let Some(name) = &held.listener.name {
            self.index.remove_name(id, name);
        }
        if let Some(names) = names {
            names.push(held.listener.label());
        }
        actions.push(Action::Close(held.opened.handle, held.listener, why));
    }
}
