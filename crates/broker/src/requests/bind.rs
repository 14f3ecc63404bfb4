//! `bind`: hands out listeners, and opens those that nobody has yet.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use bindonce_core::address::Address;
use bindonce_core::error::Invalid;
use bindonce_core::listener::{ListenSpec, Listener, Options, Wanted};
use bindonce_core::policy::Verb;
use bindonce_core::registry::{MAX_CLAIM, Refusal, State, Want, Wants};
use bindonce_daemon::rpc::{Caller, Reply, unwritten};
use bindonce_wire::call::Decoding;
use bindonce_wire::message::{BindReply, Request};
use bindonce_wire::params::{Bind, Target};
use bindonce_wire::{ErrorCode, RpcError};
use tokio::task::yield_now;

use super::home::Home;
use super::text::{READ_AT_ONCE, invalid};
use crate::answer;
use crate::broker::Broker;
use crate::claims;
use crate::large::Turn;
use crate::listeners::{self, TakenName};

/// Listeners of a reply that are written in one turn, at about a microsecond each.
const ANSWERED_AT_ONCE: usize = 256;

/// Hands out listeners, all or none, with their descriptors. Returns None for a large claim whose
/// turn has not come: many requests may wait for theirs, and nothing built from them is kept until
/// then.
pub(super) async fn bind(
    broker: &RefCell<Broker>,
    caller: &Caller,
    request: &Request<'_>,
    decoding: Decoding<'_>,
    turn: &mut Turn,
) -> Result<Option<Reply>, RpcError> {
    let wants = read(broker, caller, decoding).await?;
    if wants.count() > ANSWERED_AT_ONCE
        && !turn.has_come(&broker.borrow().answering.large, caller.peer.uid)
    {
        drop(wants);
        broker.borrow().listeners.guard.unsettled.notify_one();
        return Ok(None);
    }
    claim(broker, caller, request, wants).await.map(Some)
}

/// Reads the wanted listeners, and checks that the caller may have them as things are; what their
/// names stand for is judged again when they are claimed. Reads some elements per turn, and keeps
/// none once it is understood.
async fn read(
    broker: &RefCell<Broker>,
    caller: &Caller,
    mut decoding: Decoding<'_>,
) -> Result<Wants, RpcError> {
    let mut wants = Wants::new(&broker.borrow().answering.spent);
    let mut home = None;
    loop {
        let more = decoding.read(READ_AT_ONCE)?;
        let elements = decoding.take_bind();
        for Bind { target, tentative, change } in elements {
            let mut wanted = wanted(broker, target, change).map_err(|mut error| {
                error.message = format!("params[{}]: {}", wants.len(), error.message);
                error
            })?;
            if let Wanted::Listen(spec) = &mut wanted {
                let home = match &home {
                    Some(home) => home,
                    None => home.insert(Home::of(broker, caller).await?),
                };
                home.place(Arc::make_mut(&mut spec.first))?;
            }
            let mut want = Want { wanted, tentative, change, held: true };
            {
                let broker = broker.borrow();
                if let Wanted::Listen(spec) = &want.wanted {
                    want.held = broker.access.may_claim(caller, spec, change)?;
                    allow_name(&broker, caller, spec)?;
                } else {
                    allow(&broker, caller, &want, 0..1)?;
                }
            }
            wants.push(want);
            let count = wants.count();
            if count > MAX_CLAIM {
                return Err(answer::refused(&Refusal::TooMany { count, limit: MAX_CLAIM }));
            }
        }
        if !more {
            return Ok(wants);
        }
        yield_now().await;
    }
}

/// Claims the allowed listeners and builds the reply.
async fn claim(
    broker: &RefCell<Broker>,
    caller: &Caller,
    request: &Request<'_>,
    wants: Wants,
) -> Result<Reply, RpcError> {
    let taken = take_back_names(&mut broker.borrow_mut(), caller, &wants);
    let allow =
        |broker: &Broker, want: &Want, some: Range<usize>| allow(broker, caller, want, some);
    let claimed = claims::claim_unsettled(broker, caller.connection, wants, allow).await;
    let leases = match claimed {
        Ok(leases) => {
            taken.iter().for_each(|name| broker.borrow().listeners.tell_taken(name));
            leases
        }
        Err(failure) => {
            taken.into_iter().for_each(|name| broker.borrow_mut().listeners.give_back(name));
            // Other tasks run during the inquiry.
            claims::settle(broker).await;
            let inquiry = Rc::clone(&broker.borrow().inquiry);
            return Err(answer::claim_failed(&inquiry, failure).await);
        }
    };
    let ledger = Rc::clone(&broker.borrow().persistence.ledger);
    if ledger.store().is_some() && leases.iter().any(|lease| lease.created) {
        claims::settle(broker).await;
        ledger.settled().await;
    }
    let mut descriptors = Vec::with_capacity(leases.len());
    let reply = BindReply::new(&request.id, leases.len());
    let mut reply = reply.map_err(|error| unwritten(&error))?;
    for some in leases.chunks(ANSWERED_AT_ONCE) {
        if leases.len() > ANSWERED_AT_ONCE {
            yield_now().await;
        }
        let registry = &broker.borrow().listeners.registry;
        let label = registry.caller(caller.connection).and_then(|(_, label)| label);
        let drains = label.is_some_and(|label| label.state == State::Draining);
        for lease in some {
            let Some(held) = registry.held(lease.listener) else { continue };
            let fd = &held.opened.handle.fd;
            // A handover may have left the listener hidden: its supervisor died, or its generation
            // is ready but may not show the listener itself. A generation that drains does not
            // accept from it.
            let asks = lease.first || held.opened.handle.hidden.get();
            if asks && !lease.created && !drains {
                listeners::show(held);
            }
            descriptors.push(Rc::clone(fd));
            let told = answer::push(&mut reply, held, lease.created);
            told.map_err(|error| unwritten(&error))?;
        }
    }
    Ok(Reply { text: reply.finish(), descriptors })
}

/// Whether the caller may have what an element asks for, and name these of its listeners so.
fn allow(
    broker: &Broker,
    caller: &Caller,
    want: &Want,
    some: Range<usize>,
) -> Result<(), RpcError> {
    let Broker { access, listeners, .. } = broker;
    let registry = &listeners.registry;
    match &want.wanted {
        Wanted::Named(name) => {
            let held = registry.by_name(name);
            let spec = held.map(|held| ListenSpec::from(held.listener.clone()));
            access.allow(caller, Verb::Use, spec.as_ref())
        }
        Wanted::Listen(spec) => {
            let verb = if want.held { Verb::Use } else { Verb::Bind };
            access.allow(caller, verb, Some(spec))?;
            allow_names(broker, caller, spec, some)
        }
    }
}

/// Root and the broker's user get back every name that they ask for.
fn take_back_names(broker: &mut Broker, caller: &Caller, wants: &Wants) -> Vec<TakenName> {
    let mut taken = Vec::new();
    if !broker.access.owns_names(caller) {
        return taken;
    }
    for want in wants.iter() {
        let Wanted::Listen(spec) = &want.wanted else { continue };
        if spec.first.name.is_some() {
            let all = spec.expand_from(0);
            taken.extend(all.filter_map(|it| broker.listeners.take_back(&it)));
        }
    }
    taken
}

/// Whether the caller may give a listener the name in its request; for a range, the first one.
pub(super) fn allow_name(
    broker: &Broker,
    caller: &Caller,
    spec: &ListenSpec,
) -> Result<(), RpcError> {
    allow_names(broker, caller, spec, 0..1)
}

/// Whether the caller may give these listeners the names that they get by its request. A listener
/// that has the name already keeps it.
fn allow_names(
    broker: &Broker,
    caller: &Caller,
    spec: &ListenSpec,
    some: Range<usize>,
) -> Result<(), RpcError> {
    let Broker { access, listeners, .. } = broker;
    let Some(base) = &spec.first.name else { return Ok(()) };
    if access.owns_names(caller) {
        return Ok(());
    }
    for (asked, _) in spec.expand_from(some.start).zip(some) {
        let Some(name) = &asked.name else { continue };
        let held = listeners.registry.by_key(&asked);
        let has_it = held.is_some_and(|held| held.listener.name.as_ref() == Some(name));
        if !has_it && !access.may_name(caller, name) {
            let all = if spec.is_range() { format!("{base}-*") } else { base.to_string() };
            return Err(access.name_denied(caller, name, &all));
        }
    }
    Ok(())
}

/// Parses an element of `bind`.
fn wanted(broker: &RefCell<Broker>, target: Target, change: bool) -> Result<Wanted, RpcError> {
    match target {
        Target::Listen { listen } => listen.parse().map_err(|error| invalid(&error)),
        Target::Name { name } => {
            let name = name.parse().map_err(|error| invalid(&Invalid::Name(error)))?;
            Ok(Wanted::Named(name))
        }
        Target::Tcp { address, port, backlog } => {
            let at = SocketAddr::new(ip(&address)?, port);
            let options = Options { backlog, ..Options::default() };
            let listener = Listener::new(None, Address::Tcp(at), options);
            let mut listener = listener.map_err(|error| invalid(&error))?;
            // multibinder's clients always give a backlog, and multibinder heeds it when it binds.
            if !change && broker.borrow().listeners.registry.by_key(&listener).is_some() {
                listener.options.backlog = None;
            }
            Ok(Wanted::Listen(listener.into()))
        }
    }
}

/// Parses the address that multibinder's client names. Host names are not looked up: that takes as
/// long as a name server likes, and its answer would decide what is bound.
fn ip(address: &str) -> Result<IpAddr, RpcError> {
    let bare = address.strip_prefix('[').and_then(|inside| inside.strip_suffix(']'));
    match bare.unwrap_or(address) {
        "" | "*" => Ok(Ipv4Addr::UNSPECIFIED.into()),
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        text => text.parse().map_err(|_| {
            let shown: String = address.chars().take(120).collect();
            let message =
                format!("{shown:?} is no IP address, and names of hosts are not looked up");
            RpcError::new(ErrorCode::INVALID_PARAMS, message)
                .with_hint("give the address as a number, such as 127.0.0.1 or ::1")
        }),
    }
}

#[cfg(test)]
mod tests;
