//! `release`: closes listeners that nobody else uses.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bindonce_core::listener::{ListenSpec, Wanted};
use bindonce_core::policy::Verb;
use bindonce_core::registry::{ListenerId, Refusal, Releasing};
use bindonce_daemon::rpc::Caller;
use bindonce_wire::RpcError;
use tokio::task::yield_now;

use super::text::{READ_AT_ONCE, invalid};
use crate::answer;
use crate::broker::Broker;
use crate::start;

/// How long to wait for connections that have ended to give back what they had.
const LEAVING: Duration = Duration::from_secs(5);

/// Closes all of these, or none.
pub(super) async fn release(
    broker: &RefCell<Broker>,
    caller: &Caller,
    names: &[String],
) -> Result<Vec<String>, RpcError> {
    let mut wanted = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        if index % READ_AT_ONCE == READ_AT_ONCE - 1 {
            yield_now().await;
        }
        let name: Wanted = name.parse().map_err(|error| invalid(&error))?;
        let Broker { access, listeners, .. } = &*broker.borrow();
        match &name {
            Wanted::Named(name) => {
                let held = listeners.registry.by_name(name);
                let spec = held.map(|held| ListenSpec::from(held.listener.clone()));
                access.allow(caller, Verb::Release, spec.as_ref())?;
            }
            Wanted::Listen(spec) => access.allow(caller, Verb::Release, Some(spec))?,
        }
        wanted.push(name);
    }
    let mut decided = decide(broker, caller, &wanted).await;
    // A holder that has hung up may not have been heard yet: give every task
    // whose connection has something to say a turn before refusing. One with many leases ends them
    // in many turns.
    let until = Instant::now() + LEAVING;
    for _ in 0..2 {
        if !matches!(decided, Err(Refusal::InUse { .. })) {
            break;
        }
        yield_now().await;
        while broker.borrow().clients.some_leave() && Instant::now() < until {
            yield_now().await;
        }
        decided = decide(broker, caller, &wanted).await;
    }
    let mut rest = decided.map_err(|refusal| answer::refused(&refusal))?;
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

/// Which listeners these are, all of them or none; many in many turns.
async fn decide(
    broker: &RefCell<Broker>,
    caller: &Caller,
    wanted: &[Wanted],
) -> Result<Vec<ListenerId>, Refusal> {
    let mut releasing = Releasing::default();
    loop {
        let done = {
            let registry = &broker.borrow().listeners.registry;
            registry.decide_release(caller.connection, wanted, &mut releasing)?
        };
        if done {
            return Ok(releasing.ids);
        }
        yield_now().await;
    }
}
