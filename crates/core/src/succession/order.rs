//! Who serves: joins, departures, and what follows for the other generations.

use super::{
    Action, Cause, Joining, LARGEST_BROUGHT, Member, REMEMBERED, Record, Refusal, Service, Speaker,
    Stage, Succession,
};
use crate::generation::Moment;
use crate::name::Name;
use crate::registry::{ConnectionId, State};

impl Member {
    /// When it must have stopped accepting, if it still has to.
    pub(super) fn overdue(&self) -> Option<Moment> {
        self.retire_by.filter(|_| self.stage != Stage::Draining)
    }
}

/// Whether a generation of another user blocks a peer that may take names back, and so loses its
/// place.
fn in_the_way(member: &Member, speaker: Speaker, ordered: bool) -> bool {
    let other = member.uid != speaker.uid && member.uid != 0;
    speaker.takes_back && other && member.ordered != ordered
}

impl Service {
    pub(super) fn record(&self, name: &Name) -> Record {
        Record { name: name.clone(), last: self.last, serving: self.serving() }
    }

    /// The serving generation, as far as known.
    fn serving(&self) -> Option<u64> {
        let serves = |member: &&Member| member.ordered && member.stage == Stage::Serving;
        let here = self.members.values().find(serves).map(|member| member.generation);
        here.or(self.absent.map(|(generation, _)| generation))
    }

    /// Whether a newer generation is, or was, ready.
    fn has_successor(&self, generation: u64) -> bool {
        let newer = |member: &Member| member.ordered && member.generation > generation;
        self.members.values().any(|member| newer(member) && member.stage != Stage::Starting)
    }

    /// The newest generation that serves or waits to be let in.
    fn newest(&self) -> Option<u64> {
        let waits_or_serves = |member: &&Member| {
            member.ordered && matches!(member.stage, Stage::Ready | Stage::Serving)
        };
        self.members.values().filter(waits_or_serves).map(|member| member.generation).max()
    }

    /// Tells the older generations to retire once a newer one is ready, or to stay if that one is
    /// gone, and lets the newest in when none serves. The `caller` learns this from the answer to
    /// its request.
    pub(super) fn advance(
        &mut self,
        name: &Name,
        until: Moment,
        caller: Option<ConnectionId>,
        actions: &mut Vec<Action>,
    ) {
        let newest = self.newest();
        let mut serves = self.absent.is_some();
        let undecided =
            |(_, member): &(_, &mut Member)| member.ordered && member.stage != Stage::Draining;
        for (connection, member) in self.members.iter_mut().filter(undecided) {
            let newer = newest.filter(|newest| member.generation < *newest);
            match (newer, member.retire_by) {
                (Some(newer), None) => {
                    member.retire_by = Some(until);
                    actions.push(Action::Retire(*connection, member.label(name), newer));
                }
                (None, Some(_)) => {
                    member.retire_by = None;
                    actions.push(Action::Stay(*connection, member.label(name)));
                }
                _ => {}
            }
            serves |= member.stage == Stage::Serving;
        }
        let mut waiting = self.members.iter_mut().filter(|(_, member)| {
            member.ordered && Some(member.generation) == newest && member.stage == Stage::Ready
        });
        if let Some((connection, member)) = waiting.next() {
            if !serves {
                member.stage = Stage::Serving;
                if caller != Some(*connection) {
                    actions.push(Action::Enter(*connection, member.label(name)));
                    actions.push(Action::Serve(*connection, member.label(name)));
                }
            }
        }
    }

    /// Ends the generations whose name is taken back; returns their connections.
    fn take_back(
        &mut self,
        name: &Name,
        speaker: Speaker,
        ordered: bool,
        actions: &mut Vec<Action>,
    ) -> Vec<ConnectionId> {
        let members = self.members.iter();
        let ended = members.filter(|(_, member)| in_the_way(member, speaker, ordered));
        let ended: Vec<ConnectionId> = ended.map(|(connection, _)| *connection).collect();
        for connection in &ended {
            let Some(mut member) = self.members.remove(connection) else { continue };
            member.stage = Stage::Draining;
            actions.push(Action::Enter(*connection, member.label(name)));
            actions.push(Action::Cut(*connection, member.label(name), Cause::TakenBack));
        }
        ended
    }

    /// Has a changed record written before anything else is done.
    pub(super) fn write_down(&mut self, name: &Name, actions: &mut Vec<Action>) {
        let now = (self.last, self.serving());
        if self.last != 0 && self.written != now {
            self.written = now;
            actions.insert(0, Action::Record(self.record(name)));
        }
    }
}

impl Succession {
    pub(super) fn join(
        &mut self,
        now: Moment,
        speaker: Speaker,
        joining: Joining,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let connection = speaker.connection;
        self.check(speaker, &joining)?;
        let Joining { service: name, generation, pid, state, ordered, successor } = joining;
        if self.places.get(&connection).is_some_and(|place| *place != name) {
            self.leave(now, connection, actions);
        }
        let until = now + self.patience;
        self.places.insert(connection, name.clone());
        let service = self.services.entry(name.clone()).or_default();
        for connection in service.take_back(&name, speaker, ordered, actions) {
            self.places.remove(&connection);
        }
        let here = service.members.remove(&connection);
        let mut member = Member {
            uid: speaker.uid,
            pid: pid.unwrap_or(speaker.pid),
            generation: generation.unwrap_or(0),
            stage: Stage::of(state),
            ordered,
            retire_by: None,
        };
        if ordered {
            let next = service.last.max(self.floor) + 1;
            let before = here.as_ref().map(|here| here.generation).or(generation);
            member.generation = before.unwrap_or(next);
            service.last = service.last.max(member.generation);
            let replaced = service.replaced(&name, member.generation, actions);
            if let Some((connection, _)) = &replaced {
                self.places.remove(connection);
            }
            let before = here.or(replaced.map(|(_, member)| member));
            member.retire_by = before.as_ref().and_then(|before| before.retire_by);
            let stage = before.map(|before| before.stage);
            let served = service.absent.take_if(|(absent, _)| *absent == member.generation);
            let served = served.is_some() || stage == Some(Stage::Serving);
            let newest = service.newest();
            // It made room for a generation that is gone, and no other waits: it serves on.
            let stays = served && successor.is_some() && newest <= Some(member.generation);
            member.stage = match (state, stage) {
                (State::Draining, _) if stays => Stage::Serving,
                (State::Draining, _) | (_, Some(Stage::Draining)) => Stage::Draining,
                (_, Some(Stage::Serving)) => Stage::Serving,
                // It served under the previous broker.
                (State::Serving, _) if served => Stage::Serving,
                _ if member.retire_by.is_some() => Stage::Draining,
                _ if service.has_successor(member.generation) => Stage::Draining,
                (State::Serving, _) => Stage::Ready,
                (State::Starting, _) => Stage::Starting,
            };
        }
        let label = member.label(&name);
        service.members.insert(connection, member);
        let place = actions.len();
        actions.push(Action::Enter(connection, label));
        if ordered {
            service.advance(&name, until, Some(connection), actions);
            if let Some(member) = service.members.get(&connection) {
                actions[place] = Action::Enter(connection, member.label(&name));
            }
            service.write_down(&name, actions);
        }
        self.forget(actions);
        Ok(())
    }

    /// Checks whether this connection may join the service in this way.
    fn check(&self, speaker: Speaker, joining: &Joining) -> Result<(), Refusal> {
        let service = &joining.service;
        let found = self.services.get(service);
        let members = found.into_iter().flat_map(|service| &service.members);
        for (connection, member) in members {
            let (service, generation, pid) = (service.clone(), member.generation, member.pid);
            if *connection == speaker.connection {
                if joining.ordered && joining.generation.is_some_and(|wanted| wanted != generation)
                {
                    return Err(Refusal::Fixed { service, generation });
                }
            } else if member.uid != speaker.uid && !speaker.privileged {
                return Err(Refusal::OtherUser { service, uid: member.uid, generation, pid });
            }
            if in_the_way(member, speaker, joining.ordered) {
                continue;
            }
            if member.ordered && !joining.ordered {
                return Err(Refusal::Ordered { service, generation, pid });
            }
            if joining.ordered && !member.ordered {
                return Err(Refusal::Supervised { service, generation, pid });
            }
        }
        let elsewhere = self.places.get(&speaker.connection).filter(|place| *place != service);
        let elsewhere = elsewhere.and_then(|name| Some((name, self.services.get(name)?)));
        if let Some((name, place)) = elsewhere {
            if let Some(member) = place.members.get(&speaker.connection) {
                if member.ordered || joining.ordered {
                    let (service, generation) = (name.clone(), member.generation);
                    return Err(Refusal::Fixed { service, generation });
                }
            }
        }
        let last = found.map_or(0, |service| service.last).max(LARGEST_BROUGHT);
        match joining.generation {
            Some(generation) if joining.ordered && (generation == 0 || generation > last) => {
                Err(Refusal::Number { service: service.clone(), generation })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn leave(
        &mut self,
        now: Moment,
        connection: ConnectionId,
        actions: &mut Vec<Action>,
    ) {
        let Some(name) = self.places.remove(&connection) else { return };
        let Some(service) = self.services.get_mut(&name) else { return };
        service.members.remove(&connection);
        service.idle = now;
        service.advance(&name, now + self.patience, None, actions);
        service.write_down(&name, actions);
        if service.members.is_empty() && service.last == 0 {
            self.services.remove(&name);
        }
    }

    pub(super) fn tick(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for (name, service) in &mut self.services {
            let missed = service.absent.take_if(|(_, until)| *until <= now);
            let is_late = |member: &Member| member.overdue().is_some_and(|until| until <= now);
            let late = service.members.iter().filter(|(_, member)| is_late(member));
            let late: Vec<ConnectionId> = late.map(|(connection, _)| *connection).collect();
            if missed.is_none() && late.is_empty() {
                continue;
            }
            let mut own = Vec::new();
            if let Some((generation, _)) = missed {
                own.push(Action::Missed(name.clone(), generation));
            }
            for connection in late {
                self.places.remove(&connection);
                let Some(mut member) = service.members.remove(&connection) else { continue };
                member.stage = Stage::Draining;
                own.push(Action::Enter(connection, member.label(name)));
                own.push(Action::Cut(connection, member.label(name), Cause::Overdue));
            }
            service.advance(name, now + self.patience, None, &mut own);
            service.write_down(name, &mut own);
            actions.append(&mut own);
        }
    }

    /// Forgets the services that ended first, if there are too many.
    fn forget(&mut self, actions: &mut Vec<Action>) {
        let idle = |service: &Service| service.members.is_empty() && service.absent.is_none();
        let mut ended: Vec<(Moment, Name)> = self
            .services
            .iter()
            .filter(|(_, service)| idle(service))
            .map(|(name, service)| (service.idle, name.clone()))
            .collect();
        if ended.len() <= REMEMBERED {
            return;
        }
        ended.sort_unstable();
        for (_, name) in ended.into_iter().take(REMEMBERED / 2) {
            if let Some(service) = self.services.remove(&name) {
                self.floor = self.floor.max(service.last);
            }
        }
        actions.insert(0, Action::Rewrite);
    }
}

impl Service {
    /// Removes the connection that stood for the same generation until now.
    fn replaced(
        &mut self,
        name: &Name,
        generation: u64,
        actions: &mut Vec<Action>,
    ) -> Option<(ConnectionId, Member)> {
        let same = |member: &Member| member.generation == generation;
        let connection = *self.members.iter().find(|(_, member)| same(member))?.0;
        let member = self.members.remove(&connection)?;
        let mut label = member.label(name);
        label.state = State::Draining;
        actions.push(Action::Enter(connection, label.clone()));
        actions.push(Action::Cut(connection, label, Cause::Replaced));
        Some((connection, member))
    }
}
