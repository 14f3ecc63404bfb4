//! `join`: a client says which generation of which service it is.

use std::cell::RefCell;
use std::rc::Rc;

use bindonce_daemon::rpc::Caller;
use bindonce_wire::RpcError;
use bindonce_wire::params::Joining;
use bindonce_wire::result::JoinResult;

use crate::broker::Broker;
use crate::generations;

/// Registers a generation. Its number is returned once it is recorded.
pub(super) async fn join(
    broker: &RefCell<Broker>,
    caller: &Caller,
    joining: Joining,
) -> Result<JoinResult, RpcError> {
    broker.borrow().access.known(caller)?;
    let joined = generations::join(&mut broker.borrow_mut(), caller, joining)?;
    if joined.generation.is_some() {
        let ledger = Rc::clone(&broker.borrow().persistence.ledger);
        ledger.settled().await;
    }
    Ok(joined)
}
