//! Claims: planned against what is held, opened by the shell, then granted as a
//! whole or not at all.
//!
//! Planning enters every new listener in the index at once, so that a second
//! part of the same request finds the first as it finds those that are held; a
//! claim that comes to nothing takes its entries out again.

use std::collections::btree_map::Entry;

use super::Registry;
use super::event::{Action, Closing, Lease, Want};
use super::held::{Held, Opened};
use super::ids::{ConnectionId, ListenerId, MAX_CLAIM};
use super::plan::{Crowd, New, Pending, Stop, Who, overlap};
use super::refusal::Refusal;
use crate::listener::{Listener, Options, Wanted};
use crate::name::Name;
use crate::time::Timestamp;

impl<H> Registry<H> {
    pub(super) fn claim(
        &mut self,
        now: Timestamp,
        connection: ConnectionId,
        wants: Vec<Want>,
        actions: &mut Vec<Action<H>>,
    ) {
        let mut plan = Pending {
            connection,
            base: self.next,
            new: Vec::new(),
            opened: Vec::new(),
            entries: Vec::new(),
            named: Vec::new(),
            pinned: Vec::new(),
            changes: Vec::new(),
            crowd: Crowd::default(),
            overlaps: Vec::new(),
            gone: false,
        };
        if self.pending.contains_key(&connection) {
            self.waiting.insert(connection, wants);
            return;
        }
        let planned = self.plan(&mut plan, &wants).and_then(|()| self.check_beside(&mut plan));
        self.next = plan.base + plan.new.len() as u64;
        match planned {
            Err(Stop::Refused(refusal)) => {
                self.undo(&plan);
                actions.push(Action::Refuse(connection, refusal));
            }
            Err(Stop::Wait) => {
                self.undo(&plan);
                self.waiting.insert(connection, wants);
            }
            Ok(()) => {
                if plan.new.is_empty() && plan.changes.is_empty() {
                    self.grant(now, plan, actions);
                    return;
                }
                self.pin(&mut plan);
                actions.push(if plan.new.is_empty() {
                    Action::Change(connection, plan.changes.clone())
                } else {
                    let listeners = plan.new.iter().map(|new| new.listener.clone()).collect();
                    Action::Open(connection, listeners, std::mem::take(&mut plan.overlaps))
                });
                self.pending.insert(connection, plan);
            }
        }
    }

    /// Whether a listener is being opened for another claim.
    pub(super) fn is_undecided(&self, plan: &Pending<H>, id: ListenerId) -> bool {
        !self.held.contains_key(&id) && plan.place(id).is_none()
    }

    /// The listener with a name, unless another claim decides who has the name.
    fn named(&self, plan: &Pending<H>, name: &Name) -> Result<Option<ListenerId>, Stop> {
        let Some(id) = self.index.name(name) else { return Ok(None) };
        let own = || plan.place(id).is_some() || plan.named.iter().any(|(_, own)| own == name);
        let held = self.held.get(&id).is_some_and(|held| held.listener.name.as_ref() == Some(name));
        if held || own() { Ok(Some(id)) } else { Err(Stop::Wait) }
    }

    fn plan(&mut self, plan: &mut Pending<H>, wants: &[Want]) -> Result<(), Stop> {
        let count = wants.iter().fold(0_usize, |count, want| {
            count.saturating_add(match &want.wanted {
                Wanted::Named(_) => 1,
                Wanted::Listen(spec) => spec.count(),
            })
        });
        if count > MAX_CLAIM {
            return Err(Refusal::TooMany { count, limit: MAX_CLAIM }.into());
        }
        plan.entries.reserve_exact(count);
        plan.new.reserve(if count == 1 { 0 } else { count });
        for Want { wanted, tentative, change } in wants {
            match wanted {
                Wanted::Named(name) => {
                    let id = self.named(plan, name)?;
                    let id = id.ok_or_else(|| Refusal::NotFound { wanted: name.to_string() })?;
                    plan.entries.push((id, *tentative));
                }
                Wanted::Listen(spec) if !spec.is_range() => {
                    let id = self.plan_one(plan, spec.first.clone(), *change)?;
                    plan.entries.push((id, *tentative));
                }
                Wanted::Listen(spec) => {
                    for listener in spec.expand() {
                        let id = self.plan_one(plan, listener, *change)?;
                        plan.entries.push((id, *tentative));
                    }
                }
            }
        }
        Ok(())
    }

    /// Finds or enters one listener.
    fn plan_one(
        &mut self,
        plan: &mut Pending<H>,
        asked: Listener,
        change: bool,
    ) -> Result<ListenerId, Stop> {
        let key = asked.key();
        let found = self.index.key(&key).or_else(|| {
            let narrow = self.index.key(&key.narrowed()?)?;
            self.held.contains_key(&narrow).then(|| {
                plan.crowd.narrow.push((asked.clone(), narrow));
                narrow
            })
        });
        if found.is_some_and(|id| self.is_undecided(plan, id)) {
            return Err(Stop::Wait);
        }
        if let Some(name) = &asked.name
            && let Some(owner) = self.named(plan, name)?.filter(|owner| Some(*owner) != found)
            && let Some(who) = self.who(plan, owner)
        {
            let (name, asked) = (name.clone(), Box::new(asked));
            return Err(match who {
                Who::New(other) => Refusal::NameInRequest { name, asked, other },
                Who::Held(held) => Refusal::Name { name, asked, held },
            }
            .into());
        }
        if let Some(id) = found {
            self.check_options(plan, id, &asked, change)?;
            if let Some(name) = &asked.name {
                self.adopt(plan, id, name)?;
            }
            return Ok(id);
        }
        let id = ListenerId(plan.base + plan.new.len() as u64);
        let overlaps = self.index.overlapping(&key).next().is_some();
        if overlaps {
            if let Some(other) = self.index.same_place(&key) {
                let who = self.who(plan, other);
                return Err(who.map_or(Stop::Wait, |who| overlap(asked, who).into()));
            }
            plan.crowd.new.push(id);
        }
        self.index.insert(id, &key);
        if let Some(name) = &asked.name {
            self.index.insert_name(id, name);
        }
        plan.new.push(New { listener: asked, key });
        Ok(id)
    }

    /// A listener that was asked for without a name takes the first name it is given.
    fn adopt(&mut self, plan: &mut Pending<H>, id: ListenerId, name: &Name) -> Result<(), Stop> {
        let unnamed = match plan.planned(id) {
            Some(new) => new.listener.name.is_none(),
            None => self.held.get(&id).is_some_and(|held| held.listener.name.is_none()),
        };
        // A second name in the same request stays without effect, as a later one would.
        if !unnamed || plan.names(id) {
            return Ok(());
        }
        if self.pending.values().any(|other| other.names(id)) {
            return Err(Stop::Wait);
        }
        self.index.insert_name(id, name);
        plan.named.push((id, name.clone()));
        Ok(())
    }

    pub(super) fn who(&self, plan: &Pending<H>, id: ListenerId) -> Option<Who> {
        match self.held.get(&id) {
            Some(held) => Some(Who::Held(held.described())),
            None => plan.planned(id).map(|new| Who::New(Box::new(new.listener.clone()))),
        }
    }

    /// Counts a lease on what is held already, so that nobody can release it
    /// while the rest of the claim is opened.
    fn pin(&mut self, plan: &mut Pending<H>) {
        plan.pinned = plan.entries.iter().map(|(id, _)| *id).collect();
        plan.pinned.sort_unstable();
        plan.pinned.dedup();
        plan.pinned.retain(|id| match self.held.get_mut(id) {
            Some(held) => {
                held.leases += 1;
                true
            }
            None => false,
        });
    }

    fn unpin(&mut self, pinned: &[ListenerId]) {
        for id in pinned {
            if let Some(held) = self.held.get_mut(id) {
                held.leases -= 1;
            }
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
            return close_all(opened, Vec::new(), actions);
        };
        let (asked, count) = (plan.new.len(), opened.len());
        plan.opened = opened;
        if plan.gone || count != asked {
            let (connection, gone) = (plan.connection, plan.gone);
            self.abandon(plan, actions);
            if !gone {
                let refusal = Refusal::Miscounted { asked, opened: count };
                actions.push(Action::Refuse(connection, refusal));
            }
        } else if plan.changes.is_empty() {
            self.grant(now, plan, actions);
        } else {
            actions.push(Action::Change(plan.connection, plan.changes.clone()));
            self.pending.insert(id, plan);
        }
    }

    pub(super) fn open_failed(
        &mut self,
        id: ConnectionId,
        opened: Vec<Opened<H>>,
        actions: &mut Vec<Action<H>>,
    ) {
        self.waiting.remove(&id);
        let Some(mut plan) = self.pending.remove(&id) else {
            return close_all(opened, Vec::new(), actions);
        };
        plan.opened = opened;
        self.not_done(plan, actions);
    }

    /// Ends a claim that the shell could not perform.
    pub(super) fn not_done(&mut self, plan: Pending<H>, actions: &mut Vec<Action<H>>) {
        let (connection, gone) = (plan.connection, plan.gone);
        self.abandon(plan, actions);
        if !gone {
            actions.push(Action::NotOpened(connection));
        }
    }

    /// Notes that the client of the pending claim has gone: its sockets are
    /// closed as they arrive.
    pub(super) fn abandon_pending(&mut self, connection: ConnectionId) {
        if let Some(plan) = self.pending.get_mut(&connection) {
            plan.gone = true;
        }
    }

    /// Hands out what was claimed, unless the client has gone meanwhile.
    pub(super) fn grant(&mut self, now: Timestamp, plan: Pending<H>, actions: &mut Vec<Action<H>>) {
        if plan.gone {
            return self.abandon(plan, actions);
        }
        let base = plan.base;
        for (offset, (new, opened)) in plan.new.into_iter().zip(plan.opened).enumerate() {
            let id = ListenerId(base + offset as u64);
            if opened.bound != new.listener.address {
                self.index.occupy(id, new.key.bound(&opened.bound));
            }
            let held = Held::new(new.listener, opened, now, true);
            self.held.insert(id, Box::new(held));
        }
        for (id, name) in plan.named {
            if let Some(held) = self.held.get_mut(&id) {
                held.listener.name = Some(name);
                held.edition += 1;
            }
        }
        let Some(connection) = self.connections.get_mut(&plan.connection) else {
            return;
        };
        // New listeners are entered in order, so one is new to the client when
        // its id is the next.
        let mut next = base;
        let before = connection.leases.len();
        let mut leases = Vec::with_capacity(plan.entries.len());
        for (id, tentative) in plan.entries {
            let created = id.0 == next;
            if created {
                next += 1;
            }
            if let Some(held) = self.held.get_mut(&id) {
                if !tentative {
                    held.confirm();
                }
                if let Entry::Vacant(lease) = connection.leases.entry(id) {
                    lease.insert(now);
                    held.leases += 1;
                }
            }
            leases.push(Lease { listener: id, created });
        }
        self.leases.add(connection.peer.uid, connection.leases.len() - before);
        self.unpin(&plan.pinned);
        actions.push(Action::Grant(plan.connection, leases));
    }

    /// Gives back what was opened for a claim that came to nothing.
    fn abandon(&mut self, plan: Pending<H>, actions: &mut Vec<Action<H>>) {
        self.undo(&plan);
        self.unpin(&plan.pinned);
        for id in &plan.pinned {
            self.close_unconfirmed(*id, actions);
        }
        close_all(plan.opened, plan.new, actions);
    }

    /// Takes a plan's entries out of the index.
    fn undo(&mut self, plan: &Pending<H>) {
        for (offset, new) in plan.new.iter().enumerate() {
            let id = ListenerId(plan.base + offset as u64);
            self.index.remove(id, &new.key);
            if let Some(name) = &new.listener.name {
                self.index.remove_name(id, name);
            }
        }
        for (id, name) in &plan.named {
            self.index.remove_name(*id, name);
        }
    }
}

/// Gives back sockets of a claim that came to nothing. There may be fewer than
/// were asked for, or (a mistake of the shell) more.
fn close_all<H>(opened: Vec<Opened<H>>, asked: Vec<New>, actions: &mut Vec<Action<H>>) {
    let mut asked = asked.into_iter();
    for opened in opened {
        let listener = match asked.next() {
            Some(new) => new.listener,
            None => Listener { name: None, address: opened.bound, options: Options::default() },
        };
        actions.push(Action::Close(opened.handle, listener, Closing::NeverHeld));
    }
}
