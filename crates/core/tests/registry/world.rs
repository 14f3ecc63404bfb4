//! A registry, a shell around it that may fail at any socket, and random steps of both; the
//! invariants are checked after each step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bindonce_core::listener::{Listener, Options, Wanted};
use bindonce_core::policy::Peer;
use bindonce_core::registry::{
    Action, Closing, ConnectionId, Event, Holder, Label, Neighbour, Opened, Overlap, Process,
    Registry, State, Want,
};
use bindonce_core::time::Timestamp;
use proptest::prelude::*;

/// Addresses that are equal, overlap, conflict or stand apart.
pub(crate) const WANTED: [&str; 27] = [
    ":80",
    "web=:80",
    "web=:80,backlog=64",
    ":80,backlog=32,freebind",
    "/run/a,mode=0660",
    "10.0.0.1:80",
    "a=10.0.0.1:80",
    "10.0.0.2:80",
    "[::]:80",
    "[::]:80,v6only",
    "[::1]:80",
    ":80,interface=eth0",
    ":80,interface=eth1",
    ":80,netns=blue",
    "udp@:80",
    "quic4@:80",
    ":90-93",
    "r=:91-92",
    ":0",
    "web=:0",
    "a=127.0.0.1:0",
    "/run/a",
    "a=/run/a,mode=0600",
    "abns@a",
    "web",
    "a",
    "r-91",
];

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Connect(u8),
    /// The elements: the place in `WANTED`, whether tentative, whether changing.
    Claim(u8, Vec<(usize, bool, bool)>),
    /// The shell answers the outstanding action; the number says how many sockets it opens before
    /// one fails, if that is fewer than all.
    Answer(usize),
    Join(u8, State),
    Release(u8, Vec<usize>),
    Gone(u8),
    /// Like `Gone`, but its generation lives on with its listeners.
    Outlived(u8),
    /// A generation that lives on ends.
    Ended(u8),
    /// The listener at this place, in the order of creation, loses its name.
    Unname(usize),
    /// It gets this name back: a place in `NAMES`.
    Rename(usize, usize),
}

const NAMES: [&str; 3] = ["web", "a", "lost"];

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let client = 0_u8..4;
    let wants = prop::collection::vec((0..WANTED.len(), any::<bool>(), any::<bool>()), 1..4);
    let state = prop_oneof![Just(State::Starting), Just(State::Serving), Just(State::Draining)];
    prop_oneof![
        2 => client.clone().prop_map(Step::Connect),
        6 => (client.clone(), wants).prop_map(|(id, wants)| Step::Claim(id, wants)),
        8 => prop_oneof![4 => Just(usize::MAX), 1 => 0..4_usize].prop_map(Step::Answer),
        1 => (client.clone(), state).prop_map(|(id, state)| Step::Join(id, state)),
        3 => (client.clone(), prop::collection::vec(0..WANTED.len(), 1..3))
            .prop_map(|(id, wanted)| Step::Release(id, wanted)),
        2 => client.clone().prop_map(Step::Gone),
        1 => client.clone().prop_map(Step::Outlived),
        1 => client.prop_map(Step::Ended),
        1 => (0..8_usize).prop_map(Step::Unname),
        1 => (0..8_usize, 0..NAMES.len()).prop_map(|(place, name)| Step::Rename(place, name)),
    ]
}

/// The world around the registry, and its history.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) registry: Registry<u32>,
    now: u64,
    /// The connection of each client, if it is connected.
    pub(crate) clients: BTreeMap<u8, ConnectionId>,
    connections: u64,
    /// Processes of generations whose connections are gone.
    outlived: BTreeMap<u8, Process>,
    /// All elements that each connection has claimed.
    wants: BTreeMap<ConnectionId, Vec<Want>>,
    outstanding: VecDeque<(ConnectionId, Outstanding)>,
    pub(crate) opened: u32,
    pub(crate) closed: BTreeSet<u32>,
    /// Handles opened for claims that are not decided yet.
    in_hand: BTreeMap<ConnectionId, BTreeSet<u32>>,
}

/// An answer that the registry waits for.
#[derive(Debug)]
enum Outstanding {
    Open(Vec<Arc<Listener>>),
    /// The number of listeners to change.
    Change(usize),
    /// Another step of a claim.
    More,
}

/// A part of the held listeners, to compare before and after.
pub(crate) type Picture = Vec<(u32, Arc<Listener>, bool, usize)>;

/// How many listeners of a claim are planned or granted in one step: all of them, or few.
pub(crate) fn at_once() -> impl Strategy<Value = usize> {
    prop_oneof![Just(256), 1..4_usize]
}

impl World {
    pub(crate) fn in_steps_of(at_once: usize) -> Self {
        Self { registry: Registry::in_steps_of(at_once), ..Self::default() }
    }

    pub(crate) fn on(&mut self, event: Event<u32>) -> Result<Vec<Action<u32>>, TestCaseError> {
        self.now += 1;
        let live: BTreeSet<ConnectionId> = match &event {
            Event::Gone(gone) => self.clients.values().copied().filter(|id| id != gone).collect(),
            _ => self.clients.values().copied().collect(),
        };
        let leased: BTreeMap<u32, usize> = self
            .registry
            .list()
            .iter()
            .map(|view| (view.held.opened.handle, view.holders.len()))
            .collect();
        if let Event::Claim(id, wants) = &event {
            // The claim may be decided later, after an earlier one.
            self.wants.entry(*id).or_default().extend(wants.iter().cloned());
        }
        let releaser = match &event {
            Event::Release(id, _) => Some(*id),
            _ => None,
        };
        let actions = self.registry.on(Timestamp(self.now), event);
        for action in &actions {
            match action {
                Action::Open(id, listeners, overlaps) => {
                    prop_assert!(live.contains(id));
                    self.all_overlaps(*id, listeners, overlaps)?;
                    self.stands_apart(*id, listeners)?;
                    self.outstanding.push_back((*id, Outstanding::Open(listeners.clone())));
                }
                Action::Change(id, changes) => {
                    prop_assert!(live.contains(id));
                    let mut ids = changes.iter().map(|change| change.listener);
                    let all_held = ids.all(|id| self.registry.held(id).is_some());
                    prop_assert!(all_held);
                    self.outstanding.push_back((*id, Outstanding::Change(changes.len())));
                }
                Action::Close(handle, _, why) => {
                    prop_assert!(self.closed.insert(*handle), "{handle} is closed twice");
                    self.in_hand.values_mut().for_each(|handles| {
                        handles.remove(handle);
                    });
                    if *why == Closing::Released {
                        // 4: closed by an explicit release, while nobody else uses it.
                        prop_assert!(releaser.is_some());
                        prop_assert!(leased.get(handle).is_some_and(|leases| *leases <= 1));
                    }
                }
                Action::Leaving(_) | Action::Closing(_) => {
                    prop_assert!(false, "so many leases are not tried here");
                }
                Action::More(id) => self.outstanding.push_back((*id, Outstanding::More)),
                Action::Retry(id)
                | Action::Granting(id, _)
                | Action::Grant(id, _)
                | Action::NotOpened(id)
                | Action::Released(id, ..)
                | Action::Refuse(id, _) => {
                    prop_assert!(live.contains(id), "{id:?} has gone");
                }
            }
        }
        let mut all = Vec::new();
        for action in actions {
            match action {
                Action::Retry(id) => all.extend(self.on(Event::Retry(id))?),
                other => all.push(other),
            }
        }
        Ok(all)
    }

    /// 1: listeners being opened for two claims at once do not overlap, and share no name.
    fn stands_apart(&self, id: ConnectionId, new: &[Arc<Listener>]) -> Result<(), TestCaseError> {
        for (other, outstanding) in &self.outstanding {
            let Outstanding::Open(others) = outstanding else { continue };
            prop_assert!(*other != id, "one claim of a connection is opened at a time");
            for (one, other) in new.iter().flat_map(|one| others.iter().map(move |it| (one, it))) {
                prop_assert!(!one.key().overlaps(&other.key()), "{one} and {other}");
                prop_assert!(one.name.is_none() || one.name != other.name, "{one} and {other}");
            }
        }
        Ok(())
    }

    /// The held listeners that one element of a claim names, by handle.
    fn asks_for(&self, want: &Want) -> Vec<u32> {
        let handle = |held: &bindonce_core::registry::Held<u32>| held.opened.handle;
        match &want.wanted {
            Wanted::Named(name) => self.registry.by_name(name).map(handle).into_iter().collect(),
            Wanted::Listen(spec) => {
                // Beside an IPv4 wildcard, the dual-stack one may be for IPv6 alone.
                let narrowed = |one: &Listener| {
                    let options = Options { v6only: true, ..one.options.clone() };
                    self.registry.by_key(&Listener { options, ..one.clone() })
                };
                let find = |one: Listener| self.registry.by_key(&one).or_else(|| narrowed(&one));
                spec.expand().filter_map(|one| find(one).map(handle)).collect()
            }
        }
    }

    /// 1: every overlap of a new listener is reported with it, and the other listener has the same
    /// owner: the same request, or the same service.
    fn all_overlaps(
        &self,
        id: ConnectionId,
        new: &[Arc<Listener>],
        told: &[Overlap],
    ) -> Result<(), TestCaseError> {
        let views = self.registry.list();
        let told: Vec<_> = told.iter().map(|overlap| (overlap.new, overlap.other)).collect();
        let asked: Vec<u32> = self.wants[&id].iter().flat_map(|want| self.asks_for(want)).collect();
        for (index, listener) in new.iter().enumerate() {
            let key = listener.key();
            for (other, beside) in new.iter().enumerate() {
                let overlap = (index, Neighbour::New(other));
                let overlaps = index != other && key.overlaps(&beside.key());
                prop_assert_eq!(told.contains(&overlap), overlaps, "{} and {}", key, beside);
            }
            for view in &views {
                let held = view.held.listener.key().bound(&view.held.opened.bound);
                let overlap = (index, Neighbour::Held(view.id));
                prop_assert_eq!(
                    told.contains(&overlap),
                    key.overlaps(&held),
                    "{} and {}",
                    key,
                    held
                );
                if key.overlaps(&held) {
                    let service = self.registry.caller(id).and_then(|(_, label)| label).cloned();
                    let same = |holder: &Holder| {
                        let theirs = holder.label.as_ref().map(|label| &label.service);
                        theirs.is_some() && theirs == service.as_ref().map(|label| &label.service)
                    };
                    // Without a holder, the last user counts, which is not shown.
                    let ours = view.holders.iter().all(same);
                    prop_assert!(asked.contains(&view.held.opened.handle) || ours);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn answer(&mut self, fail_at: usize) -> Result<(), TestCaseError> {
        let Some((id, outstanding)) = self.outstanding.pop_front() else { return Ok(()) };
        self.answer_one(id, outstanding, fail_at)?;
        // A decided claim has no handle in hand.
        if !self.outstanding.iter().any(|(other, _)| *other == id) {
            self.in_hand.remove(&id);
        }
        Ok(())
    }

    /// Answers until nothing is outstanding: claims do not wait for each other forever.
    pub(crate) fn answer_all(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..10_000 {
            if self.outstanding.is_empty() {
                return Ok(());
            }
            self.answer(usize::MAX)?;
        }
        Err(TestCaseError::fail(format!("never decided: {:?}", self.outstanding)))
    }

    fn answer_one(
        &mut self,
        id: ConnectionId,
        outstanding: Outstanding,
        fail_at: usize,
    ) -> Result<(), TestCaseError> {
        let listeners = match outstanding {
            Outstanding::More => return self.on(Event::More(id)).map(drop),
            Outstanding::Open(listeners) => listeners,
            Outstanding::Change(count) if fail_at < count => {
                let before = self.picture();
                self.on(Event::ChangeFailed(id))?;
                // No remaining listener has other options than before. (A claim that waited for
                // this one may have given it a name.)
                let same = |one: &(u32, Arc<Listener>, bool, usize)| {
                    let is = |other: &&(u32, Arc<Listener>, bool, usize)| one.0 == other.0;
                    before.iter().find(is).is_some_and(|other| one.1.options == other.1.options)
                };
                prop_assert!(self.picture().iter().all(same));
                return Ok(());
            }
            Outstanding::Change(count) => {
                return self.on(Event::Changed(id, vec![7; count])).map(drop);
            }
        };
        let mut opened = Vec::new();
        for listener in listeners.iter().take(fail_at) {
            self.opened += 1;
            let bound = match listener.address.port() {
                Some(0) => listener.address.with_port(40_000 + self.opened as u16),
                _ => listener.address.clone(),
            };
            opened.push(Opened {
                handle: self.opened,
                bound,
                inode: u64::from(self.opened),
                cookie: 0,
                backlog: listener.options.backlog.unwrap_or(128),
                exclusive: true,
            });
        }
        let opened_count = opened.len() as u32;
        let event = if opened.len() < listeners.len() {
            Event::OpenFailed(id, opened)
        } else {
            Event::Opened(id, opened)
        };
        let first = self.opened - opened_count;
        self.in_hand.insert(id, (first + 1..=first + opened_count).collect());
        self.on(event).map(drop)
    }

    pub(crate) fn picture(&self) -> Picture {
        let list = self.registry.list();
        let part = |view: &bindonce_core::registry::View<'_, u32>| {
            let held = view.held;
            (held.opened.handle, held.listener.clone(), held.tentative, view.holders.len())
        };
        list.iter().map(part).collect()
    }

    pub(crate) fn invariants(&self) -> Result<(), TestCaseError> {
        let held = self.registry.list();
        // 7: opened = held + given back to be closed.
        let handles: BTreeSet<u32> = held.iter().map(|view| view.held.opened.handle).collect();
        prop_assert_eq!(handles.len(), held.len());
        prop_assert!(handles.is_disjoint(&self.closed));
        let in_hand: BTreeSet<u32> =
            self.in_hand.values().flatten().filter(|it| !handles.contains(it)).copied().collect();
        prop_assert!(in_hand.is_disjoint(&self.closed));
        let count = handles.len() + in_hand.len() + self.closed.len();
        prop_assert_eq!(count, self.opened as usize);
        // 1: no two sockets for the same connections, and no name twice.
        let keys: Vec<_> = held
            .iter()
            .map(|view| view.held.listener.key().bound(&view.held.opened.bound))
            .collect();
        for (index, key) in keys.iter().enumerate() {
            for other in &keys[..index] {
                prop_assert!(!key.is_same_place(other), "{key} and {other}");
            }
        }
        let names: Vec<_> =
            held.iter().filter_map(|view| view.held.listener.name.clone()).collect();
        prop_assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        for view in &held {
            // Each is found by what tells it from all others.
            let handle = view.held.opened.handle;
            let found = self.registry.by_key(&view.held.listener).map(|held| held.opened.handle);
            prop_assert_eq!(found, Some(handle));
            let named = view.held.listener.name.as_ref();
            let found = named.and_then(|name| self.registry.with_name(name)).map(|(id, _)| id);
            prop_assert_eq!(found, named.map(|_| view.id));
            // 1: no two services accept from it.
            let labels = view.holders.iter().filter_map(|holder| holder.label.as_ref());
            let accept = labels.filter(|label| label.state != State::Draining);
            let services: BTreeSet<_> = accept.map(|label| &label.service).collect();
            prop_assert!(services.len() <= 1, "{handle} is used by {services:?}");
        }
        // The count of each user's leases is right, however they came and went.
        if self.outstanding.is_empty() {
            for uid in 0..2 {
                let holders = held.iter().flat_map(|view| &view.holders);
                let leases = holders.filter(|holder| holder.peer.uid == uid).count();
                prop_assert_eq!(self.registry.leases_of(uid), leases);
            }
        }
        // A tentative listener lives by its leases or an undecided claim. No claim waits for one
        // that is not there.
        if self.outstanding.is_empty() {
            prop_assert!(self.clients.values().all(|id| self.registry.waiting(*id).is_none()));
            for view in &held {
                prop_assert!(!view.held.tentative || !view.holders.is_empty());
            }
        }
        Ok(())
    }

    pub(crate) fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let wanted = |index: &usize| -> Wanted { WANTED[*index].parse().expect("wanted") };
        match step {
            Step::Connect(client) => {
                if !self.clients.contains_key(client) {
                    self.connections += 1;
                    let id = ConnectionId(self.connections);
                    self.clients.insert(*client, id);
                    let uid = u32::from(*client % 2);
                    self.on(Event::Connected(id, Peer { pid: 1, uid, gid: 0 }))?;
                }
            }
            Step::Claim(client, wants) => {
                let Some(id) = self.clients.get(client).copied() else { return Ok(()) };
                let want = |(index, tentative, change): &(usize, bool, bool)| Want {
                    held: false,
                    wanted: wanted(index),
                    tentative: *tentative,
                    change: *change,
                };
                let before = self.picture();
                let actions = self.on(Event::Claim(id, wants.iter().map(want).collect()))?;
                if matches!(&actions[..], [Action::Refuse(..)]) {
                    // All or nothing.
                    prop_assert_eq!(self.picture(), before);
                }
            }
            Step::Answer(fail_at) => self.answer(*fail_at)?,
            Step::Join(client, state) => {
                let Some(id) = self.clients.get(client).copied() else { return Ok(()) };
                let service = ["edge", "web"][usize::from(client % 2)].parse().expect("name");
                let label =
                    Label { service, generation: u64::from(*client), pid: 2, state: *state };
                if self.registry.check_join(id, &label.service, *state).is_ok() {
                    self.on(Event::Join(id, label))?;
                }
            }
            Step::Release(client, which) => {
                let Some(id) = self.clients.get(client).copied() else { return Ok(()) };
                let before = self.picture();
                let actions = self.on(Event::Release(id, which.iter().map(wanted).collect()))?;
                if matches!(&actions[..], [Action::Refuse(..)]) {
                    prop_assert_eq!(self.picture(), before);
                }
            }
            Step::Outlived(client) => {
                if let Some(id) = self.clients.get(client).copied() {
                    let held = self.registry.leased(id).map(|held| held.opened.handle);
                    let held: BTreeSet<u32> = held.collect();
                    let process = Process { pid: u32::from(*client), start: id.0 };
                    self.on(Event::Outlived(id, process))?;
                    self.on(Event::Gone(id))?;
                    prop_assert!(held.is_disjoint(&self.closed), "4: a generation uses them");
                    self.clients.remove(client);
                    self.outlived.insert(*client, process);
                }
            }
            // A claim that is planned meanwhile may have looked up the name before.
            Step::Unname(place) | Step::Rename(place, _) if self.outstanding.is_empty() => {
                let Some((id, _)) = self.registry.iter().nth(*place) else { return Ok(()) };
                self.on(match step {
                    Step::Rename(_, name) => Event::Rename(id, NAMES[*name].parse().expect("name")),
                    _ => Event::Unname(id),
                })?;
            }
            Step::Unname(_) | Step::Rename(..) => {}
            Step::Ended(client) => {
                if let Some(process) = self.outlived.remove(client) {
                    self.on(Event::Ended(process))?;
                }
            }
            Step::Gone(client) => {
                if let Some(id) = self.clients.get(client).copied() {
                    self.on(Event::Gone(id))?;
                    self.clients.remove(client);
                }
            }
        }
        self.invariants()
    }
}
