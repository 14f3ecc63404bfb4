//! Claims: planned against held listeners (`planning`), opened by the shell, then granted as a
//! whole or not at all. Each step handles some listeners, so other clients have their turn in
//! between. A claim that meets a listener of another undecided claim waits for that claim.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::Registry;
use super::event::{Action, Closing, Lease};
use super::held::{Held, Opened};
use super::ids::{ConnectionId, MAX_CLAIM};
use super::plan::{New, Outcome, Pending, Phase, Stop};
use super::refusal::Refusal;
use super::wants::Wants;
use crate::listener::{Listener, Options};
use crate::time::Timestamp;

/// Closing a socket costs as much of a step as this many listeners.
const CLOSING: usize = 4;

impl<H> Registry<H> {
    pub(super) fn claim(
        &mut self,
        now: Timestamp,
        connection: ConnectionId,
        wants: Wants,
        actions: &mut Vec<Action<H>>,
    ) {
        if self.pending.contains_key(&connection) {
            self.waiting.insert(connection, (wants, Some(connection)));
            return;
        }
        let count = wants.count();
        if count > MAX_CLAIM {
            let refusal = Refusal::TooMany { count, limit: MAX_CLAIM };
            actions.push(Action::Refuse(connection, refusal));
            return;
        }
        if count > self.at_once {
            if self.planning.is_some() {
                self.waiting.insert(connection, (wants, None));
                return;
            }
            self.planning = Some(connection);
        }
        let plan = Pending::new(connection, wants, self.next, count);
        self.next += count as u64;
        self.go_on(now, plan, self.at_once, actions);
    }

    /// The next step of a claim.
    pub(super) fn more(
        &mut self,
        now: Timestamp,
        connection: ConnectionId,
        actions: &mut Vec<Action<H>>,
    ) {
        if let Some(plan) = self.pending.remove(&connection) {
            self.go_on(now, plan, self.at_once, actions);
        }
    }

    /// Continues a claim with up to `room` of its listeners.
    pub(super) fn go_on(
        &mut self,
        now: Timestamp,
        mut plan: Pending<H>,
        mut room: usize,
        actions: &mut Vec<Action<H>>,
    ) {
        let connection = plan.connection;
        loop {
            if plan.gone && !matches!(plan.phase, Phase::Undoing(_)) {
                plan.phase = Phase::Undoing(Outcome::Gone);
            }
            if !matches!(plan.phase, Phase::Planning) {
                self.end_planning(connection);
            }
            match std::mem::replace(&mut plan.phase, Phase::Performing) {
                Phase::Planning => match self.plan_some(&mut plan, &mut room) {
                    Err(stop) if !self.meets_given_up(&stop) => {
                        plan.phase = Phase::Undoing(stop.into());
                    }
                    Ok(true) if plan.opening.new.is_empty() && plan.changes.is_empty() => {
                        if room < plan.entries.len() {
                            self.pin(&mut plan);
                        }
                        plan.phase = Phase::Granting;
                    }
                    Ok(true) => {
                        self.end_planning(connection);
                        self.pin(&mut plan);
                        actions.push(if plan.opening.new.is_empty() {
                            Action::Change(connection, plan.changes.clone())
                        } else {
                            let listeners = std::mem::take(&mut plan.opening.to_open);
                            let overlaps = std::mem::take(&mut plan.opening.overlaps);
                            Action::Open(connection, listeners, overlaps)
                        });
                        break;
                    }
                    // A claim that is given up waits for no other claim. If this one were given up
                    // too, the two could meet again and again.
                    Ok(false) | Err(_) => {
                        self.pin(&mut plan);
                        plan.phase = Phase::Planning;
                        actions.push(Action::More(connection));
                        break;
                    }
                },
                Phase::Performing => break,
                Phase::Granting => {
                    let before = plan.leases.len();
                    if self.grant_some(now, &mut plan, &mut room) {
                        actions.push(Action::Grant(connection, plan.leases));
                        return;
                    }
                    plan.phase = Phase::Granting;
                    actions.push(Action::Granting(connection, plan.leases[before..].to_vec()));
                    actions.push(Action::More(connection));
                    break;
                }
                Phase::Undoing(outcome) => {
                    if self.undo_some(&mut plan, &mut room, actions) {
                        return self.given_up(plan, outcome, actions);
                    }
                    plan.phase = Phase::Undoing(outcome);
                    actions.push(Action::More(connection));
                    break;
                }
            }
        }
        self.pending.insert(connection, plan);
    }

    fn meets_given_up(&self, stop: &Stop) -> bool {
        let Stop::Wait(Some(other)) = stop else { return false };
        self.pending.get(other).is_some_and(|plan| matches!(plan.phase, Phase::Undoing(_)))
    }

    /// Lets another large claim be planned.
    fn end_planning(&mut self, connection: ConnectionId) {
        self.planning = self.planning.filter(|planning| *planning != connection);
    }

    /// Ends a claim that was given up and left nothing behind.
    fn given_up(&mut self, plan: Pending<H>, outcome: Outcome, actions: &mut Vec<Action<H>>) {
        let connection = plan.connection;
        match outcome {
            // Its client may have gone meanwhile.
            _ if plan.gone => {}
            Outcome::Gone => {}
            Outcome::Refused(refusal) => actions.push(Action::Refuse(connection, refusal)),
            Outcome::Wait(other) => {
                self.waiting.insert(connection, (plan.wants, other));
            }
            Outcome::NotDone => actions.push(Action::NotOpened(connection)),
        }
    }

    pub(super) fn opened(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        opened: Vec<Opened<H>>,
        actions: &mut Vec<Action<H>>,
    ) {
        let Some(mut plan) = self.pending.remove(&id) else {
            return close_all(opened, actions);
        };
        let (asked, count) = (plan.opening.new.len(), opened.len());
        plan.opening.opened = opened.into();
        if count != asked {
            let refusal = Refusal::Miscounted { asked, opened: count };
            plan.phase = Phase::Undoing(Outcome::Refused(refusal));
        } else if plan.changes.is_empty() || plan.gone {
            plan.phase = Phase::Granting;
        } else {
            actions.push(Action::Change(plan.connection, plan.changes.clone()));
        }
        self.go_on(now, plan, self.at_once, actions);
    }

    pub(super) fn open_failed(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        opened: Vec<Opened<H>>,
        actions: &mut Vec<Action<H>>,
    ) {
        self.waiting.remove(&id);
        let Some(mut plan) = self.pending.remove(&id) else {
            return close_all(opened, actions);
        };
        plan.opening.opened.extend(opened);
        plan.phase = Phase::Undoing(Outcome::NotDone);
        self.go_on(now, plan, self.at_once, actions);
    }

    /// Notes that the client of a pending claim has gone: its sockets are closed as they arrive.
    pub(super) fn abandon_pending(
        &mut self,
        now: Timestamp,
        connection: ConnectionId,
        actions: &mut Vec<Action<H>>,
    ) {
        let Some(mut plan) = self.pending.remove(&connection) else { return };
        plan.gone = true;
        if matches!(plan.phase, Phase::Performing) {
            self.pending.insert(connection, plan);
        } else {
            // No event will continue it.
            self.go_on(now, plan, usize::MAX, actions);
        }
    }

    /// Grants more of a claim; true when all is granted.
    fn grant_some(&mut self, now: Timestamp, plan: &mut Pending<H>, room: &mut usize) -> bool {
        let Some(connection) = self.connections.get_mut(&plan.connection) else { return true };
        let before = connection.leases.len();
        plan.leases.reserve_exact(plan.entries.len() - plan.leases.len());
        while *room > 0 {
            let Some((id, tentative)) = plan.entries.get(plan.leases.len()).copied() else { break };
            *room -= 1;
            // New listeners are entered in order, so a listener is new to the client if it is the
            // next.
            let new = plan.opening.grant(id);
            let created = new.is_some();
            let (mut changed, mut first) = (false, false);
            if let Some((New { listener, key }, opened)) = new {
                if opened.bound != listener.address {
                    self.index.occupy(id, key.bound(&opened.bound));
                }
                self.held.insert(id, Box::new(Held::new(listener, opened, now, true)));
            }
            if let Some(held) = self.held.get_mut(&id) {
                if let Some(name) = plan.named.remove(&id) {
                    Arc::make_mut(&mut held.listener).name = Some(name);
                    held.edition += 1;
                }
                if !tentative {
                    held.confirm();
                }
                changed = held.grant();
                match connection.leases.entry(id) {
                    Entry::Vacant(lease) => {
                        // The clock may have been set back since the socket was bound.
                        lease.insert(held.since.max(now));
                        held.leases += 1;
                        first = true;
                    }
                    // The socket may have been replaced meanwhile: the client now has the new one.
                    Entry::Occupied(mut lease) => {
                        let since = lease.get_mut();
                        *since = held.since.max(*since);
                    }
                }
                if plan.leases.len() < plan.pinned && !plan.opening.is_own(id) {
                    held.leases -= 1;
                }
            }
            plan.leases.push(Lease { listener: id, created, changed, first });
        }
        self.leases.add(connection.peer.uid, connection.leases.len() - before);
        plan.leases.len() == plan.entries.len()
    }

    /// Gives back more of a failed claim: its sockets, its place in the index and its pins; true
    /// when all is given back.
    fn undo_some(
        &mut self,
        plan: &mut Pending<H>,
        room: &mut usize,
        actions: &mut Vec<Action<H>>,
    ) -> bool {
        // More sockets than asked for are a mistake of the shell.
        let asked = plan.opening.new.len().min(plan.opening.opened.len());
        close_all(plan.opening.opened.drain(asked..).collect(), actions);
        while *room > 0 {
            *room -= 1;
            if let Some((id, new, opened)) = plan.opening.give_up() {
                self.index.remove(id, &new.key);
                if let Some(name) = &new.listener.name {
                    self.index.remove_name(id, name);
                }
                if let Some(opened) = opened {
                    *room = room.saturating_sub(CLOSING);
                    actions.push(Action::Close(opened.handle, new.listener, Closing::NeverHeld));
                }
            } else if plan.pinned > plan.leases.len() {
                plan.pinned -= 1;
                let (id, _) = plan.entries[plan.pinned];
                if !plan.opening.is_own(id) {
                    if let Some(held) = self.held.get_mut(&id) {
                        held.leases -= 1;
                        self.close_unconfirmed(id, actions);
                    }
                }
            } else if let Some((id, name)) = plan.named.pop_first() {
                self.index.remove_name(id, &name);
            } else {
                return true;
            }
        }
        false
    }
}

/// Gives back sockets that belong to no claim.
fn close_all<H>(opened: Vec<Opened<H>>, actions: &mut Vec<Action<H>>) {
    for opened in opened {
        let options = Options::default();
        let listener = Listener { name: None, address: opened.bound, options }.into();
        actions.push(Action::Close(opened.handle, listener, Closing::NeverHeld));
    }
}
