//! Requests: each is decoded, has its rights checked and is performed, in a file for each method.

mod bind;
mod home;
mod join;
pub(crate) mod list;
mod release;
mod store;
mod text;

use std::cell::RefCell;
use std::rc::Rc;

use bindonce_core::policy::Verb;
use bindonce_daemon::rpc::{self, Link, Reply, encode};
use bindonce_wire::call::Call;
use bindonce_wire::message::Request;
use bindonce_wire::result::{PingResult, ReleaseResult};
use bindonce_wire::{ErrorCode, RpcError};

use crate::broker::{Broker, VERSION};
use crate::large::Turn;
use crate::upgrade;

/// From so many bytes on a request waits for its turn among the large ones of its user before it is read: read, it takes ten
/// times as much.
const LARGE: usize = 16 * 1024;

/// Answers one request, and counts it.
pub(crate) async fn answer(
    broker: &RefCell<Broker>,
    link: &Rc<Link>,
    request: &Request<'_>,
) -> Result<Reply, RpcError> {
    let done = perform(broker, link, request).await;
    let failure = done.as_ref().err().map(|error| error.code);
    broker.borrow_mut().answered.request(&request.method, failure);
    done
}

async fn perform(
    broker: &RefCell<Broker>,
    link: &Rc<Link>,
    request: &Request<'_>,
) -> Result<Reply, RpcError> {
    let caller = &link.caller;
    let mut turn = Turn::default();
    if request.len() >= LARGE {
        let large = Rc::clone(&broker.borrow().large);
        turn.come(&large, caller.peer.uid).await;
    }
    // Most are in boxes: many connections may wait for an answer, and each would have room for the largest.
    let text = match Call::decode(request)? {
        Call::Bind(elements) => {
            recovered(broker).await;
            return bind::bind(broker, caller, request, elements, turn).await;
        }
        Call::Join(joining) => {
            encode(request, &Box::pin(join::join(broker, caller, joining)).await?)
        }
        Call::Release(names) => {
            recovered(broker).await;
            let released = Box::pin(release::release(broker, caller, &names)).await?;
            encode(request, &ReleaseResult { released })
        }
        Call::List => Box::pin(list::list(broker, caller, request, turn)).await,
        Call::Status => Box::pin(list::status(broker, caller, request, turn)).await,
        Call::Events(wanted) => {
            broker.borrow().access.allow_all(caller, Verb::List)?;
            let journal = Rc::clone(&broker.borrow().reporter.journal);
            rpc::events(&journal, link, request, wanted)
        }
        Call::Ping => {
            broker.borrow().access.known(caller)?;
            encode(request, &PingResult::new(VERSION))
        }
        Call::Store(gives) => encode(request, &Box::pin(store::store(broker, link, gives)).await?),
        Call::Upgrade => {
            broker.borrow().access.allow(caller, Verb::Admin, None)?;
            Err(Box::pin(upgrade::request(broker, link, &request.id)).await)
        }
        _ => {
            let message = format!("method {:?} is not served by this broker", request.method);
            Err(RpcError::new(ErrorCode::METHOD_NOT_FOUND, message))
        }
    };
    text.map(Reply::from)
}

/// Waits until the broker has recovered what it can of the one before.
async fn recovered(broker: &RefCell<Broker>) {
    let gate = Rc::clone(&broker.borrow().persistence.gate);
    gate.pass().await;
}
