//! `release`: closes listeners that nobody else uses.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bindonce_core::listener::{ListenSpec, Wanted};
use bindonce_core::policy::Verb;
use bindonce_core::registry::{ListenerId, Releasing};
use bindonce_daemon::rpc::Caller;
use bindonce_wire::call::Decoding;
use bindonce_wire::message::Request;
use bindonce_wire::{ErrorCode, RpcError};
use tokio::task::yield_now;

use super::home::Home;
use super::text::{READ_AT_ONCE, invalid};
use crate::answer;
use crate::broker::Broker;
use crate::start;

/// How long to wait for ended connections to give back their leases.
const LEAVING: Duration = Duration::from_secs(5);

/// Closes every listener that a request names, or none.
pub(super) async fn release(
    broker: &RefCell<Broker>,
    caller: &Caller,
    request: &Request<'_>,
) -> Result<Vec<String>, RpcError> {
    let mut decided = decide(broker, caller, request).await;
    // A holder that hung up may not have been heard yet. Before refusing, give every task whose
    // connection has something to say a turn. A connection with many leases ends them in many
    // turns.
    let until = Instant::now() + LEAVING;
    for _ in 0..2 {
        if !decided.as_ref().is_err_and(|error| error.code == ErrorCode::IN_USE) {
            break;
        }
        yield_now().await;
        while broker.borrow().clients.some_leave() && Instant::now() < until {
            yield_now().await;
        }
        decided = decide(broker, caller, request).await;
    }
    let mut rest = decided?;
    let mut names = Vec::with_capacity(rest.len());
    while !rest.is_empty() {
        if !names.is_empty() {
            yield_now().await;
        }
        let some = broker.borrow_mut().listeners.release(caller.connection, rest);
        let (more, left) = some.map_err(|refusal| answer::refused(&refusal))?;
        names.extend(more);
        rest = left;
    }
    broker.borrow().listeners.tell_released(caller.connection, &names);
    start::bind_rest(broker).await;
    Ok(names)
}

/// Finds the named listeners, all of them or none. Reads some elements per turn and keeps none: a
/// request may name many more listeners than are held.
async fn decide(
    broker: &RefCell<Broker>,
    caller: &Caller,
    request: &Request<'_>,
) -> Result<Vec<ListenerId>, RpcError> {
    let mut decoding = Decoding::new(request)?;
    let mut releasing = Releasing::default();
    let mut home = None;
    loop {
        let more = decoding.read(READ_AT_ONCE)?;
        let mut wanted = parsed(&decoding.take_release())?;
        for one in &mut wanted {
            if let Wanted::Listen(spec) = one {
                let home = match &home {
                    Some(home) => home,
                    None => home.insert(Home::of(broker, caller).await?),
                };
                home.place(Arc::make_mut(&mut spec.first))?;
            }
        }
        loop {
            let decided = {
                let broker = broker.borrow();
                // Until the turn that looks it up, a name may come to another listener.
                allow(&broker, caller, &wanted)?;
                let registry = &broker.listeners.registry;
                registry.decide_release(caller.connection, &wanted, &mut releasing)
            };
            if decided.map_err(|refusal| answer::refused(&refusal))? {
                break;
            }
            yield_now().await;
        }
        if !more {
            return Ok(releasing.ids);
        }
        yield_now().await;
    }
}

fn parsed(names: &[String]) -> Result<Vec<Wanted>, RpcError> {
    names.iter().map(|name| name.parse::<Wanted>().map_err(|error| invalid(&error))).collect()
}

/// Whether the caller may release these listeners as things are.
fn allow(broker: &Broker, caller: &Caller, wanted: &[Wanted]) -> Result<(), RpcError> {
    let Broker { access, listeners, .. } = broker;
    wanted.iter().try_for_each(|wanted| match wanted {
        Wanted::Named(name) => {
            let held = listeners.registry.by_name(name);
            let spec = held.map(|held| ListenSpec::from(held.listener.clone()));
            access.allow(caller, Verb::Release, spec.as_ref())
        }
        Wanted::Listen(spec) => access.allow(caller, Verb::Release, Some(spec)),
    })
}
