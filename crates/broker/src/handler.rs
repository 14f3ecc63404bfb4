//! The broker's part in serving clients: admission, answers, and the end of connections.

use std::cell::RefCell;
use std::rc::Rc;

use bindonce_core::registry::ConnectionId;
use bindonce_daemon::rpc::{self, Admission, Caller, Excess, Link, Reply};
use bindonce_wire::message::Request;
use bindonce_wire::{ErrorCode, RpcError};

use crate::broker::Broker;
use crate::generations;
use crate::parting;
use crate::requests;

/// Answers the requests of clients.
pub(crate) struct Handler(pub(crate) Rc<RefCell<Broker>>);

impl rpc::Handler for Handler {
    fn admission(&self, caller: &Caller) -> Admission {
        self.0.borrow().access.admission(caller)
    }

    fn connected(&self, caller: &Caller) {
        self.0.borrow_mut().listeners.connect(caller.connection, caller.peer);
    }

    async fn answer(&self, link: &Rc<Link>, request: &Request<'_>) -> Result<Reply, RpcError> {
        requests::answer(&self.0, link, request).await
    }

    fn replied(&self) {
        self.0.borrow_mut().replied();
    }

    fn is_used(&self, connection: ConnectionId) -> bool {
        self.0.borrow().listeners.registry.is_used(connection)
    }

    async fn disconnected(&self, connection: ConnectionId) {
        parting::disconnect_in_turns(&self.0, connection).await;
    }

    fn lost(&self, connection: ConnectionId) {
        if let Ok(mut broker) = self.0.try_borrow_mut() {
            generations::disconnect(&mut broker, connection);
        }
    }

    fn refusal(&self, excess: Excess) -> RpcError {
        match excess {
            Excess::Connections(limit, most) => {
                let message = format!("the broker has {most} connections, the limit `{limit}`");
                RpcError::new(ErrorCode::LIMIT, message).with_hint(
                    "close some, or raise it in [limits] of the broker's configuration",
                )
            }
            Excess::Buffered => RpcError::new(
                ErrorCode::LIMIT,
                "more requests wait, or are not finished, than the broker keeps for one user or for all",
            )
            .with_hint(
                "finish one before the next, on fewer connections, or raise buffered_bytes in \
                 [limits] of the broker's configuration",
            ),
        }
    }
}
