//! Plans a claim: resolves each listener that is asked for against held listeners and other claims.
//!
//! Every new listener enters the index at once, so a second part of the same request finds the
//! first like a held listener. A claim that fails takes its entries out again.

use std::ops::Range;
use std::sync::Arc;

use super::Registry;
use super::event::Event;
use super::ids::ListenerId;
use super::plan::{New, Pending, Phase, Stop, Who, overlap};
use super::refusal::Refusal;
use super::wants::{Want, Wants};
use crate::listener::{Listener, Wanted};
use crate::name::Name;

impl<H> Registry<H> {
    /// The elements with a name that this event plans, and which of their listeners. What a claim
    /// may have must be judged here: before and after, a name may be another listener's.
    pub fn named_in<'a>(
        &'a self,
        event: &'a Event<H>,
    ) -> impl Iterator<Item = (&'a Want, Range<usize>)> {
        let (wants, (place, mut from)) = match event {
            Event::Claim(_, wants) => (Some(wants), (0, 0)),
            Event::Retry(id) => (self.waiting(*id), (0, 0)),
            Event::More(id) => {
                let plan = self.pending.get(id);
                let plan = plan.filter(|plan| matches!(plan.phase, Phase::Planning));
                (plan.map(|plan| &plan.wants), plan.map_or((0, 0), |plan| plan.planned))
            }
            _ => (None, (0, 0)),
        };
        let mut room = self.at_once;
        let planned = (place..).map_while(move |place| {
            let want = wants?.get(place).filter(|_| room > 0)?;
            let first = std::mem::take(&mut from);
            let some = first..want.count().min(first.saturating_add(room));
            room -= some.len();
            Some((want, some))
        });
        planned.filter(|(want, _)| want.is_named())
    }

    /// Whether a listener is new in another claim that is not granted yet as a whole. Every other
    /// listener in the index is held.
    pub(super) fn is_undecided(&self, plan: &Pending<H>, id: ListenerId) -> bool {
        !plan.opening.is_own(id) && self.pending.values().any(|other| other.opening.is_own(id))
    }

    /// A wait for the claim that decides about a listener.
    pub(super) fn wait_for(&self, id: ListenerId) -> Stop {
        let other = self.pending.values().find(|other| other.opening.is_own(id) || other.names(id));
        Stop::Wait(other.map(|other| other.connection))
    }

    /// The listener with a name; an error if another claim decides who has the name.
    fn named(&self, plan: &Pending<H>, name: &Name) -> Result<Option<ListenerId>, Stop> {
        let Some(id) = self.index.name(name) else { return Ok(None) };
        let own = || plan.opening.is_own(id) || plan.named.get(&id) == Some(name);
        let held = self.held.get(&id).is_some_and(|held| held.listener.name.as_ref() == Some(name));
        if held && !self.is_undecided(plan, id) || own() {
            Ok(Some(id))
        } else {
            Err(self.wait_for(id))
        }
    }

    /// Plans more of the claim; true when all is planned. After a wait it can be called again.
    pub(super) fn plan_some(
        &mut self,
        plan: &mut Pending<H>,
        room: &mut usize,
    ) -> Result<bool, Stop> {
        let wants = std::mem::take(&mut plan.wants);
        let planned = self.plan_more(plan, &wants, room);
        plan.wants = wants;
        if planned? {
            self.check_services(plan)?;
            self.check_beside(plan)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn plan_more(
        &mut self,
        plan: &mut Pending<H>,
        wants: &Wants,
        room: &mut usize,
    ) -> Result<bool, Stop> {
        while let Some(want @ Want { wanted, tentative, .. }) = wants.get(plan.planned.0) {
            match wanted {
                Wanted::Named(name) => {
                    if *room == 0 {
                        return Ok(false);
                    }
                    *room -= 1;
                    let id = self.named(plan, name)?;
                    let id = id.ok_or_else(|| Refusal::NotFound { wanted: name.to_string() })?;
                    plan.entries.push((id, *tentative));
                }
                Wanted::Listen(spec) => {
                    for listener in spec.expand_from(plan.planned.1) {
                        if *room == 0 {
                            return Ok(false);
                        }
                        *room -= 1;
                        let id = self.plan_one(plan, &listener, want)?;
                        plan.entries.push((id, *tentative));
                        plan.planned.1 += 1;
                    }
                }
            }
            plan.planned = (plan.planned.0 + 1, 0);
        }
        Ok(true)
    }

    /// Finds a listener, or enters a new one.
    fn plan_one(
        &mut self,
        plan: &mut Pending<H>,
        asked: &Arc<Listener>,
        want: &Want,
    ) -> Result<ListenerId, Stop> {
        let key = asked.key();
        let found = self.index.key(&key);
        if want.held && found.is_none() {
            return Err(Refusal::NotHeld(Arc::clone(asked)).into());
        }
        let found = found.or_else(|| {
            let narrow = self.index.key(&key.narrowed()?)?;
            self.held.contains_key(&narrow).then(|| {
                plan.crowd.narrow.push((Arc::clone(asked), narrow));
                narrow
            })
        });
        if let Some(id) = found.filter(|id| self.is_undecided(plan, *id)) {
            return Err(self.wait_for(id));
        }
        if let Some(name) = &asked.name {
            if let Some(owner) = self.named(plan, name)?.filter(|owner| Some(*owner) != found) {
                if let Some(who) = self.who(plan, owner) {
                    let (name, asked) = (name.clone(), Arc::clone(asked));
                    return Err(match who {
                        Who::New(other) => Refusal::NameInRequest { name, asked, other },
                        Who::Held(held) => Refusal::Name { name, asked, held },
                    }
                    .into());
                }
            }
        }
        if let Some(id) = found {
            if let Some(name) = &asked.name {
                self.adopt(plan, id, name)?;
            }
            self.check_options(plan, id, asked, want.change)?;
            return Ok(id);
        }
        let id = plan.opening.next_id();
        let overlaps = self.index.overlapping(&key).next().is_some();
        if overlaps {
            if let Some(other) = self.index.same_place(&key) {
                let who = self.who(plan, other);
                return Err(who.map_or_else(
                    || self.wait_for(other),
                    |who| overlap(Arc::clone(asked), who).into(),
                ));
            }
            plan.crowd.new.push(id);
        }
        self.index.insert(id, &key);
        if let Some(name) = &asked.name {
            self.index.insert_name(id, name);
        }
        plan.opening.to_open.push(Arc::clone(asked));
        plan.opening.new.push_back(New { listener: Arc::clone(asked), key });
        Ok(id)
    }

    /// Gives an unnamed listener the first name that is asked for.
    fn adopt(&mut self, plan: &mut Pending<H>, id: ListenerId, name: &Name) -> Result<(), Stop> {
        let unnamed = match plan.opening.planned(id) {
            Some(new) => new.listener.name.is_none(),
            None => self.held.get(&id).is_some_and(|held| held.listener.name.is_none()),
        };
        // A second name in the same request has no effect, like that of a later request.
        if !unnamed || plan.names(id) {
            return Ok(());
        }
        if self.pending.values().any(|other| other.names(id)) {
            return Err(self.wait_for(id));
        }
        self.index.insert_name(id, name);
        plan.named.insert(id, name.clone());
        Ok(())
    }

    pub(super) fn who(&self, plan: &Pending<H>, id: ListenerId) -> Option<Who> {
        match self.held.get(&id) {
            Some(held) => Some(Who::Held(held.described())),
            None => plan.opening.planned(id).map(|new| Who::New(Arc::clone(&new.listener))),
        }
    }

    /// Counts a lease on held listeners, so that nobody can release them while the rest of the
    /// claim is decided.
    pub(super) fn pin(&mut self, plan: &mut Pending<H>) {
        for (id, _) in &plan.entries[plan.pinned..] {
            if !plan.opening.is_own(*id) {
                if let Some(held) = self.held.get_mut(id) {
                    held.leases += 1;
                }
            }
        }
        plan.pinned = plan.entries.len();
    }
}
