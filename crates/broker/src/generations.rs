//! Generations of services: they join, and are told when they serve and when they must retire.
//!
//! The broker records what the next broker must know before it tells a client. Notifications go
//! only to connections that asked the broker to keep the order.

use std::cell::RefCell;
use std::rc::Rc;

use bindonce_core::event::Kind;
use bindonce_core::name::Name;
use bindonce_core::policy::Peer;
use bindonce_core::registry::{ConnectionId, Label, State};
use bindonce_core::succession::{self, Action, Cause, Event, Joining, Place};
use bindonce_daemon::Happening;
use bindonce_daemon::rpc::Caller;
use bindonce_wire::message::{Notification, Turn};
use bindonce_wire::result::JoinResult;
use bindonce_wire::{ErrorCode, RpcError};
use tokio::time::timeout_at;

use crate::broker::Broker;

/// Reports each deadline of the succession as it passes, for as long as the broker runs.
pub(crate) async fn keep(broker: &RefCell<Broker>) {
    let changed = Rc::clone(&broker.borrow().succession.changed);
    loop {
        let look = broker.borrow_mut().succession.next_look();
        let Some(look) = look else {
            changed.notified().await;
            continue;
        };
        if timeout_at(look.into(), changed.notified()).await.is_err() {
            let mut broker = broker.borrow_mut();
            if broker.succession.is_due() {
                let actions = broker.succession.on(Event::Tick);
                let _ = perform(&mut broker, actions);
            }
        }
    }
}

/// Whether the caller may join a service: one that it may have, or one that runs.
pub(crate) fn allow(broker: &Broker, caller: &Caller, service: &Name) -> Result<(), RpcError> {
    if broker.succession.is_joined(service) {
        return Ok(());
    }
    broker.access.allow_service(caller, service)
}

/// Joins a connection to a service as one of its generations, and returns the answer.
pub(crate) fn join(
    broker: &mut Broker,
    caller: &Caller,
    joining: Joining,
) -> Result<JoinResult, RpcError> {
    allow(broker, caller, &joining.service)?;
    let (ordered, state) = (joining.ordered, joining.state);
    let connection = caller.connection;
    let takes_back = broker.access.owns_names(caller);
    let privileged = takes_back || broker.access.is_admin(caller);
    let Peer { pid, uid, .. } = caller.peer;
    let speaker = succession::Speaker { connection, pid, uid, privileged, takes_back };
    let actions = broker.succession.on(Event::Join(speaker, joining));
    if let Some(refusal) = perform(broker, actions) {
        if let Some(left_out) = broker.reporter.refused(uid, "join") {
            tracing::warn!(pid, uid, left_out, "may not join: {refusal}");
        }
        let code = match refusal {
            succession::Refusal::OtherUser { .. } => ErrorCode::DENIED,
            succession::Refusal::Number { .. } => ErrorCode::INVALID_PARAMS,
            _ => ErrorCode::CONFLICT,
        };
        return Err(RpcError::new(code, refusal.to_string()).with_hint(refusal.hint()));
    }
    if state == State::Serving {
        // Before an older generation, told to retire, has stopped accepting.
        broker.listeners.show_hidden(connection);
    }
    let label = broker.listeners.registry.caller(connection).and_then(|(_, label)| label);
    let shown = label.filter(|_| ordered);
    Ok(JoinResult {
        joined: true,
        generation: shown.map(|label| label.generation),
        state: shown.map(|label| label.state),
    })
}

/// Resumes with the generations of the previous image.
pub(crate) fn resume(broker: &mut Broker, places: Vec<Place>) {
    let actions = broker.succession.on(Event::Resume(places));
    let _ = perform(broker, actions);
}

/// Gives up the place of an ended connection among the generations.
pub(crate) fn left(broker: &mut Broker, connection: ConnectionId) {
    let actions = broker.succession.on(Event::Gone(connection));
    let _ = perform(broker, actions);
}

/// Performs what the succession decides. Returns the refusal, if there is one.
#[must_use]
fn perform(broker: &mut Broker, actions: Vec<Action>) -> Option<succession::Refusal> {
    let mut refused = None;
    for action in actions {
        match action {
            Action::Record(record) => broker.record_service(&record),
            Action::Rewrite => broker.rewrite(),
            Action::Enter(connection, label) => enter(broker, connection, label),
            Action::Serve(connection, label) => {
                tracing::info!(
                    service = %label.service, generation = label.generation, pid = label.pid,
                    "generation serves: no older one accepts"
                );
                let text = "it serves: no older generation accepts any more";
                happened(broker, Kind::GenerationServing, &label, text);
                broker.clients.tell(connection, &Notification::Serve(turn(&label, None)));
            }
            Action::Retire(connection, label, successor) => {
                tracing::info!(
                    service = %label.service, generation = label.generation, pid = label.pid,
                    successor, "generation told to retire"
                );
                broker
                    .clients
                    .tell(connection, &Notification::Retire(turn(&label, Some(successor))));
            }
            Action::Stay(connection, label) => {
                tracing::info!(
                    service = %label.service, generation = label.generation, pid = label.pid,
                    "generation told to stay: the newer one ended before it was admitted"
                );
                broker.clients.tell(connection, &Notification::Stay(turn(&label, None)));
            }
            Action::Cut(connection, label, cause) => cut(broker, connection, &label, cause),
            Action::Missed(service, generation) => tracing::warn!(
                %service, generation,
                "the generation that served under the previous broker has not come back: the next \
                 one need not wait for it"
            ),
            Action::Refuse(_, refusal) => refused = Some(refusal),
        }
    }
    refused
}

/// Registers the generation of a connection.
fn enter(broker: &mut Broker, id: ConnectionId, label: Label) {
    tracing::debug!(
        service = %label.service, generation = label.generation, pid = label.pid,
        state = %label.state, "generation joined"
    );
    let serves = label.state == State::Serving;
    let who = format!("{} generation {}", label.service, label.generation);
    if let Some((peer, _)) = broker.listeners.registry.caller(id) {
        broker.outlived.joined(id, &peer, &label);
    }
    broker.listeners.join(id, label);
    if serves {
        broker.listeners.serves(id, &who);
    }
}

fn cut(broker: &Broker, connection: ConnectionId, label: &Label, cause: Cause) {
    let (service, generation, pid) = (&label.service, label.generation, label.pid);
    let hint =
        format!("pid {pid} may still accept: check with `bindonce doctor`, and end it if so");
    match cause {
        Cause::Overdue => tracing::error!(
            %service, generation, pid, hint,
            "cut off: it was told to retire and did not report in time that it has stopped accepting"
        ),
        Cause::TakenBack => tracing::warn!(
            %service, generation, pid, hint,
            "cut off: root or the broker's user has taken the name of the service back"
        ),
        Cause::Replaced => tracing::info!(
            %service, generation, pid, "generation connected anew: its old connection ends"
        ),
    }
    if cause == Cause::Overdue {
        let text = "cut off: told to retire, it did not confirm its soft stop within retire_time";
        happened(broker, Kind::LimitReached, label, text);
    }
    broker.clients.cut(connection);
}

fn happened(broker: &Broker, kind: Kind, label: &Label, text: &str) {
    let happening = Happening::new(kind, text)
        .service(Some(label.service.as_str()))
        .generation(label.generation)
        .pid(i32::try_from(label.pid).ok());
    broker.reporter.record(happening);
}

/// Ends a connection.
pub(crate) fn disconnect(broker: &mut Broker, id: ConnectionId) {
    left(broker, id);
    while broker.listeners.end_leases(id) {}
}

fn turn(label: &Label, successor: Option<u64>) -> Turn {
    Turn { service: label.service.to_string(), generation: label.generation, successor }
}
