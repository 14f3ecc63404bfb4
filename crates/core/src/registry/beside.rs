//! Who may have a listener that overlaps another: only one owner may have both.
//!
//! Listeners overlap if one is a wildcard and the other a specific address at its port, or if they
//! are the wildcards of the two families. The kernel gives a connection to the more specific one,
//! so its client takes connections from the other. Therefore both must have one owner: a claim that
//! asks for both, or a service whose generations have the other or had it last. Other claims are
//! refused.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::sync::Arc;

use super::Registry;
use super::connection::{Connection, Holder, State};
use super::event::{Neighbour, Overlap};
use super::ids::{ConnectionId, ListenerId, MAX_CLAIM};
use super::plan::{Crowd, Pending, Phase, Stop, overlap};
use super::refusal::Refusal;
use crate::listener::Listener;
use crate::name::Name;

/// How many pairs of overlapping listeners one claim may have: each wildcard makes one with each
/// address at its port.
const MAX_OVERLAPS: usize = 2 * MAX_CLAIM;

impl<H> Registry<H> {
    /// Held listeners that overlap a listener that will be bound.
    pub fn neighbours(&self, listener: &Listener) -> Vec<ListenerId> {
        let (key, none) = (listener.key(), ListenerId(u64::MAX));
        let pairs =
            self.index.neighbours([(none, &key)], usize::MAX).unwrap_or_default().into_iter();
        let own = self.index.same_place(&key);
        let others = pairs.map(|(_, id)| id).filter(|id| Some(*id) != own);
        others.filter(|id| self.held.contains_key(id)).collect()
    }

    /// Decides which listeners of a planned claim may overlap others, and enters those pairs in the
    /// plan.
    pub(super) fn check_beside(&mut self, plan: &mut Pending<H>) -> Result<(), Stop> {
        let crowd = std::mem::take(&mut plan.crowd);
        if crowd.new.is_empty() && crowd.narrow.is_empty() {
            return Ok(());
        }
        let checked = self.check_crowd(plan, &crowd);
        if checked.is_err() {
            plan.opening.overlaps.clear();
            plan.crowd = crowd;
        }
        checked
    }

    fn check_crowd(&mut self, plan: &mut Pending<H>, crowd: &Crowd) -> Result<(), Stop> {
        let asked: HashSet<ListenerId> = plan.entries.iter().map(|(id, _)| *id).collect();
        let firm: HashSet<ListenerId> =
            plan.entries.iter().filter(|(_, tentative)| !tentative).map(|(id, _)| *id).collect();
        for (listener, id) in &crowd.narrow {
            let ipv4 = listener.key().ipv4_wildcard().and_then(|key| self.index.key(&key));
            if !ipv4.is_some_and(|id| asked.contains(&id)) {
                if let Some(who) = self.who(plan, *id) {
                    return Err(overlap(listener.clone(), who).into());
                }
            }
        }
        for id in &crowd.new {
            self.narrow(plan, *id, &asked);
        }
        let new = crowd.new.iter().filter_map(|id| Some((*id, &plan.opening.planned(*id)?.key)));
        let Some(pairs) = self.index.neighbours(new, MAX_OVERLAPS) else {
            return Err(Refusal::TooManyOverlaps { limit: MAX_OVERLAPS }.into());
        };
        for (id, other) in pairs {
            let Some(asked_for) = plan.opening.planned(id).map(|new| Arc::clone(&new.listener))
            else {
                continue;
            };
            let other_new = plan.opening.place(other);
            if self.is_undecided(plan, other) {
                return Err(self.wait_for(other));
            }
            if other_new.is_none()
                && !asked.contains(&other)
                && !self.is_of_service(plan.connection, other)
            {
                if let Some(who) = self.who(plan, other) {
                    return Err(overlap(asked_for, who).into());
                }
            }
            let Some(new) = plan.opening.place(id) else { continue };
            let neighbour = other_new.map_or(Neighbour::Held(other), Neighbour::New);
            let tentative = !firm.contains(&id);
            plan.opening.overlaps.push(Overlap { new, other: neighbour, tentative });
            // When the first of the two was entered, the other was not there.
            plan.opening.overlaps.extend(other_new.map(|place| Overlap {
                new: place,
                other: Neighbour::New(new),
                tentative: !firm.contains(&other),
            }));
        }
        plan.opening.overlaps.sort_unstable();
        plan.opening.overlaps.dedup();
        Ok(())
    }

    /// No listener of a planned claim may belong to another service whose generation accepts from
    /// it or is about to: each service would answer some clients of both. A draining generation has
    /// stopped accepting.
    pub(super) fn check_services(&self, plan: &Pending<H>) -> Result<(), Stop> {
        let Some((_, Some(label))) = self.caller(plan.connection) else { return Ok(()) };
        let entries = || plan.entries.iter().map(|(listener, _)| *listener);
        // There may be thousands of connections: each costs no more than it has.
        let asked = OnceCell::new();
        let is_asked =
            |id: &ListenerId| asked.get_or_init(|| entries().collect::<HashSet<_>>()).contains(id);
        for (id, other) in self.of_other_services(&label.service) {
            let used = if other.leases.len() < plan.entries.len() {
                other.leases.keys().copied().find(is_asked)
            } else {
                entries().find(|listener| other.leases.contains_key(listener))
            };
            let refusal = used.and_then(|used| self.used_by(other, used, &label.service));
            if let Some(refusal) = refusal {
                return Err(refusal.into());
            }
            // A claim whose planning is done never waits, so no two wait for each other. A claim
            // that is being given up may wait for this one.
            let wanted = self.about_to_get(*id);
            if wanted.iter().any(is_asked) {
                return Err(Stop::Wait(Some(*id)));
            }
        }
        Ok(())
    }

    /// Checks that a connection may join a service in this state: like one that it claims later, a
    /// listener that it has already may not be used by another service.
    ///
    /// # Errors
    /// [`Refusal::OtherService`].
    pub fn check_join(
        &self,
        id: ConnectionId,
        service: &Name,
        state: State,
    ) -> Result<(), Refusal> {
        let Some(connection) = self.connections.get(&id) else { return Ok(()) };
        // What a generation that may accept has was checked before, and is refused to others.
        let is_checked = connection
            .label
            .as_ref()
            .is_some_and(|(label, _)| label.service == *service && label.state != State::Draining);
        if is_checked || state == State::Draining {
            return Ok(());
        }
        let own = || connection.leases.keys().copied().chain(self.about_to_get(id));
        for (other_id, other) in self.of_other_services(service) {
            let theirs = self.about_to_get(*other_id);
            let is_used = |it: &ListenerId| other.leases.contains_key(it) || theirs.contains(it);
            let used = own().find(is_used);
            if let Some(refusal) = used.and_then(|used| self.used_by(other, used, service)) {
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// The generations of other services that accept or are about to. A draining one has stopped
    /// accepting.
    fn of_other_services<'a>(
        &'a self,
        service: &'a Name,
    ) -> impl Iterator<Item = (&'a ConnectionId, &'a Connection)> {
        self.connections.iter().filter(move |(_, connection)| {
            connection.label.as_ref().is_some_and(|(other, _)| {
                other.service != *service && other.state != State::Draining
            })
        })
    }

    /// The listeners of a connection's claim that is planned and not granted as a whole.
    fn about_to_get(&self, id: ConnectionId) -> HashSet<ListenerId> {
        let planned =
            |claim: &&Pending<H>| matches!(claim.phase, Phase::Performing | Phase::Granting);
        let claim = self.pending.get(&id).filter(planned);
        claim.into_iter().flat_map(|claim| claim.entries.iter().map(|(id, _)| *id)).collect()
    }

    /// The refusal of a listener to a service, because this connection's generation uses it.
    fn used_by(&self, user: &Connection, listener: ListenerId, service: &Name) -> Option<Refusal> {
        let held = self.held.get(&listener)?;
        let since = user.leases.get(&listener).copied().unwrap_or(held.since);
        let label = user.label.as_ref().map(|(label, _)| label.clone());
        let holder = Box::new(Holder { peer: user.peer, label, since });
        Some(Refusal::OtherService { service: service.clone(), held: held.described(), holder })
    }

    /// Narrows a dual-stack wildcard to IPv6 if the IPv4 wildcard is held and stays: no IPv4
    /// connection would reach it, and without IPv4 it overlaps nothing. (The other way round, or
    /// with both new, it gets IPv4 as soon as the other is gone.)
    fn narrow(&mut self, plan: &mut Pending<H>, id: ListenerId, asked: &HashSet<ListenerId>) {
        let Some(key) = plan.opening.planned(id).map(|new| new.key.clone()) else { return };
        let held = key.ipv4_wildcard().and_then(|ipv4| self.index.key(&ipv4));
        if let Some(narrowed) = key.narrowed() {
            if held.is_some_and(|id| self.held.contains_key(&id) && asked.contains(&id)) {
                if let Some(new) = plan.opening.planned_mut(id) {
                    self.index.remove(id, &key);
                    self.index.insert(id, &narrowed);
                    Arc::make_mut(&mut new.listener).options.v6only = true;
                    new.key = narrowed;
                    let listener = Arc::clone(&new.listener);
                    let place = plan
                        .opening
                        .place(id)
                        .and_then(|place| plan.opening.to_open.get_mut(place));
                    place.into_iter().for_each(|it| *it = Arc::clone(&listener));
                }
            }
        }
    }

    /// Whether all users of a listener, or else its last user, are of the same service and user as
    /// a connection.
    fn is_of_service(&self, id: ConnectionId, listener: ListenerId) -> bool {
        let Some((peer, Some(label))) = self.caller(id) else { return false };
        let ours = |service: &Name, uid| *service == label.service && uid == peer.uid;
        let mut holders = self.holders(listener).peekable();
        if holders.peek().is_none() {
            let last = self.held.get(&listener).and_then(|held| held.last_user.as_deref());
            return last.is_some_and(|(service, uid)| ours(service, *uid));
        }
        holders.all(|(_, holder)| {
            holder.label.is_some_and(|other| ours(&other.service, holder.peer.uid))
        })
    }
}
