//! Generations of services: joined, entered, told when they serve and when they must retire.
//!
//! [`bindonce_core::succession`] decides; here it is performed. What the next broker must know
//! is written down before anybody hears of it, and a notification goes only to a connection
//! that has asked for the order to be kept.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use bindonce_core::event::Kind;
use bindonce_core::generation::Moment;
use bindonce_core::name::Name;
use bindonce_core::policy::{Verb, Verdict};
use bindonce_core::registry::{ConnectionId, Event as Entered, Label, Phase};
use bindonce_core::succession::{self, Action, Cause, Event, Joining, Place, Progress, Record};
use bindonce_observe::Happening;
use bindonce_wire::manifest::{LinkTurn, Service};
use bindonce_wire::message::{Notification, Turn};
use bindonce_wire::params::Joining as Said;
use bindonce_wire::result::JoinResult;
use bindonce_wire::{ErrorCode, RpcError};
use tokio::sync::Notify;
use tokio::time::timeout_at;

use crate::answer;
use crate::guard;
use crate::requests::Caller;
use crate::rights::allow_service;
use crate::state::{State, now};

/// The succession of every service, and when to look at it again.
#[derive(Debug)]
pub(crate) struct Succession {
    inner: succession::Succession,
    epoch: Instant,
    /// Rung when the deadline may be another.
    changed: Rc<Notify>,
}

impl Default for Succession {
    fn default() -> Self {
        Self { inner: Default::default(), epoch: Instant::now(), changed: Rc::default() }
    }
}

impl Succession {
    fn on(&mut self, event: Event) -> Vec<Action> {
        let now: Moment = self.epoch.elapsed();
        let actions = self.inner.on(now, event);
        self.changed.notify_one();
        actions
    }

    /// How long a generation has to stop accepting once it is told to.
    pub(crate) fn set_patience(&mut self, patience: std::time::Duration) {
        self.inner.set_patience(patience);
    }

    /// Whether generations are there: then a join is refused to all but their user, and root.
    pub(crate) fn is_joined(&self, service: &Name) -> bool {
        self.inner.is_joined(service)
    }

    /// What the next broker must know, and the number that it must not go below.
    pub(crate) fn written(&self) -> (Vec<Service>, u64) {
        (self.inner.records().map(|record| written(&record)).collect(), self.inner.floor())
    }

    /// How far a connection's generation is, where the broker keeps the order.
    pub(crate) fn turns(&self) -> impl Iterator<Item = (ConnectionId, LinkTurn)> {
        self.inner.places().filter_map(|place| {
            let Progress { ready, told } = place.ordered?;
            Some((place.connection, LinkTurn { ready, told }))
        })
    }

    /// Goes on from what a broker before this one has written.
    pub(crate) fn recall(&mut self, services: Vec<Service>, floor: u64) {
        let record = |service: Service| {
            let Service { name, last, serving } = service;
            Some(Record { service: name.parse().ok()?, last, serving })
        };
        let records = services.into_iter().filter_map(record).collect();
        self.on(Event::Recall(records, floor));
    }
}

/// A record as the manifest has it.
pub(crate) fn written(record: &Record) -> Service {
    let Record { service, last, serving } = record;
    Service { name: service.to_string(), last: *last, serving: *serving }
}

/// How far a generation was in the image before.
pub(crate) fn progress(turn: LinkTurn) -> Progress {
    Progress { ready: turn.ready, told: turn.told }
}

/// Says that time has passed, when that means something; for as long as the broker runs.
pub(crate) async fn keep(state: &RefCell<State>) {
    let (changed, epoch) = {
        let state = state.borrow();
        (Rc::clone(&state.succession.changed), state.succession.epoch)
    };
    loop {
        let deadline = state.borrow().succession.inner.deadline();
        match deadline {
            None => changed.notified().await,
            Some(deadline) => {
                let until = tokio::time::Instant::from_std(epoch + deadline);
                if timeout_at(until, changed.notified()).await.is_err() {
                    let mut state = state.borrow_mut();
                    let actions = state.succession.on(Event::Tick);
                    let _ = state.succeed(actions);
                }
            }
        }
    }
}

impl State {
    /// Says which generation a connection stands for; gives the answer.
    pub(crate) fn join(&mut self, caller: &Caller, said: Said) -> Result<JoinResult, RpcError> {
        let Said { service, generation, pid, state, handover, successor } = said;
        allow_service(self, caller, &service)?;
        let pid = pid.unwrap_or(caller.peer.pid);
        let phase = answer::phase(state);
        let joining = Joining { service, generation, pid, phase, ordered: handover, successor };
        let connection = caller.connection;
        let admin = self.policy.judge(caller.peer, &caller.groups, Verb::Admin, None);
        let takes_back = self.policy.owns_names(caller.peer.uid);
        let privileged = takes_back || admin == Verdict::Allow;
        let speaker =
            succession::Speaker { connection, uid: caller.peer.uid, privileged, takes_back };
        let actions = self.succession.on(Event::Join(speaker, joining));
        if let Some(refusal) = self.succeed(actions) {
            let (pid, uid) = (caller.peer.pid, caller.peer.uid);
            if let Some(left_out) = self.told.refused(uid, "join") {
                tracing::warn!(pid, uid, left_out, "may not join: {refusal}");
            }
            let code = match refusal {
                succession::Refusal::OtherUser { .. } => ErrorCode::DENIED,
                succession::Refusal::Number { .. } => ErrorCode::INVALID_PARAMS,
                _ => ErrorCode::CONFLICT,
            };
            return Err(RpcError::new(code, refusal.to_string()).with_hint(refusal.hint()));
        }
        let label = self.registry.caller(connection).and_then(|(_, label)| label);
        let told = label.filter(|_| handover);
        Ok(JoinResult {
            joined: true,
            generation: told.map(|label| label.generation),
            state: told.map(|label| answer::wire_state(label.phase)),
        })
    }

    /// Goes on with the generations of the image before.
    pub(crate) fn resume(&mut self, places: Vec<Place>) {
        let actions = self.succession.on(Event::Resume(places));
        let _ = self.succeed(actions);
    }

    /// A connection has ended, and with it its generation.
    pub(crate) fn left(&mut self, connection: ConnectionId) {
        let actions = self.succession.on(Event::Gone(connection));
        let _ = self.succeed(actions);
    }

    /// Performs what the succession decides. Gives the refusal, if that is what it decides.
    #[must_use]
    fn succeed(&mut self, actions: Vec<Action>) -> Option<succession::Refusal> {
        let mut refused = None;
        for action in actions {
            match action {
                Action::Record(record) => self.record_service(&written(&record)),
                Action::Rewrite => {
                    self.write_manifest();
                    self.rewrite_records();
                }
                Action::Enter(connection, label) => self.enter(connection, label),
                Action::Serve(connection, label) => {
                    tracing::info!(
                        service = %label.service, generation = label.generation, pid = label.pid,
                        "generation serves: no older one accepts"
                    );
                    let text = "it serves: no older generation accepts any more";
                    self.happened(Kind::GenerationServing, &label, text);
                    self.tell(connection, &Notification::Serve(turn(&label, None)));
                }
                Action::Retire(connection, label, successor) => {
                    tracing::info!(
                        service = %label.service, generation = label.generation, pid = label.pid,
                        successor, "generation told to retire"
                    );
                    self.tell(connection, &Notification::Retire(turn(&label, Some(successor))));
                }
                Action::Stay(connection, label) => {
                    tracing::info!(
                        service = %label.service, generation = label.generation, pid = label.pid,
                        "generation told to stay: the newer one has gone before it was let in"
                    );
                    self.tell(connection, &Notification::Stay(turn(&label, None)));
                }
                Action::Cut(connection, label, cause) => self.cut(connection, &label, cause),
                Action::Missed(service, generation) => tracing::warn!(
                    %service, generation,
                    "the generation that served under the broker before has not come back: the next \
                     one need not wait for it"
                ),
                Action::Refuse(_, refusal) => refused = Some(refusal),
            }
        }
        refused
    }

    /// Enters in the registry which generation a connection stands for.
    fn enter(&mut self, id: ConnectionId, label: Label) {
        tracing::debug!(
            service = %label.service, generation = label.generation, pid = label.pid,
            phase = ?label.phase, "generation joined"
        );
        let serves = label.phase == Phase::Serving;
        let who = format!("{} generation {}", label.service, label.generation);
        let actions = self.registry.on(now(), Entered::Join(id, label));
        self.perform(actions);
        if serves {
            self.registry.leased(id).for_each(|held| {
                guard::notice(&self.journal, held, &who);
                self.record(held);
            });
        }
    }

    fn tell(&self, connection: ConnectionId, notification: &Notification) {
        if let Some(link) = self.links.get(&connection) {
            link.tell(notification.encode());
        }
    }

    fn cut(&self, connection: ConnectionId, label: &Label, cause: Cause) {
        let (service, generation, pid) = (&label.service, label.generation, label.pid);
        match cause {
            Cause::Overdue => tracing::error!(
                %service, generation, pid,
                hint = "it may still accept: `bindonce doctor` tells; end it if it does",
                "cut off: it was told to retire and has not said in time that it stopped accepting"
            ),
            Cause::TakenBack => tracing::warn!(
                %service, generation, pid,
                hint = "it may still accept: `bindonce doctor` tells; end it if it does",
                "cut off: root or the broker's user has taken the name of the service back"
            ),
            Cause::Replaced => tracing::info!(
                %service, generation, pid, "generation connected anew: its old connection ends"
            ),
        }
        if cause == Cause::Overdue {
            let text = "cut off: told to retire, it has not said in time that it stopped accepting";
            self.happened(Kind::LimitReached, label, text);
        }
        if let Some(link) = self.links.get(&connection) {
            link.cut();
        }
    }

    fn happened(&self, kind: Kind, label: &Label, text: &str) {
        let happening = Happening::new(kind, text)
            .service(Some(label.service.as_str()))
            .generation(label.generation)
            .pid(i32::try_from(label.pid).ok());
        self.journal.record(happening);
    }
}

fn turn(label: &Label, successor: Option<u64>) -> Turn {
    Turn { service: label.service.to_string(), generation: label.generation, successor }
}
