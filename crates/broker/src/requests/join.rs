//! `join`: a client says which generation of which service it is.

use std::cell::RefCell;
use std::rc::Rc;

use bindonce_daemon::rpc::Caller;
use bindonce_wire::RpcError;
use bindonce_wire::params::Joining;
use bindonce_wire::result::JoinResult;

use crate::answer;
use crate::broker::Broker;
use crate::generations;
use crate::listeners::Denied;

/// Registers a generation. Its number is returned once it is recorded.
pub(super) async fn join(
    broker: &RefCell<Broker>,
    caller: &Caller,
    joining: Joining,
) -> Result<JoinResult, RpcError> {
    broker.borrow().access.known(caller)?;
    generations::allow(&broker.borrow(), caller, &joining.service)?;
    check(broker, caller, &joining).await?;
    let joined = generations::join(&mut broker.borrow_mut(), caller, joining)?;
    if joined.generation.is_some() {
        let ledger = Rc::clone(&broker.borrow().persistence.ledger);
        ledger.settled().await;
    }
    Ok(joined)
}

/// Whether no listener that the caller has is used by another service.
async fn check(
    broker: &RefCell<Broker>,
    caller: &Caller,
    joining: &Joining,
) -> Result<(), RpcError> {
    let refused = {
        let listeners = &broker.borrow().listeners;
        let Joining { service, state, .. } = joining;
        let checked = listeners.registry.check_join(caller.connection, service, *state);
        checked.map_err(|refusal| listeners.denied(caller.connection, Denied::Refused(refusal)))
    };
    let Err(denied) = refused else { return Ok(()) };
    let inquiry = Rc::clone(&broker.borrow().inquiry);
    Err(answer::claim_failed(&inquiry, denied).await)
}
