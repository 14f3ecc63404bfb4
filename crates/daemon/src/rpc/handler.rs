//! What a daemon decides about its clients.

use std::rc::Rc;

use bindonce_core::registry::ConnectionId;
use bindonce_wire::RpcError;
use bindonce_wire::message::Request;

use super::caller::Caller;
use super::link::{Admission, Link};
use super::sending::Reply;

/// The daemon's side of a [`Server`](super::Server): who may connect, and what requests do.
pub trait Handler: 'static {
    /// How a connection is treated.
    fn admission(&self, caller: &Caller) -> Admission;

    /// Answers one request.
    fn answer(
        &self,
        link: &Rc<Link>,
        request: &Request<'_>,
    ) -> impl Future<Output = Result<Reply, RpcError>>;

    /// The error for a client that has, or wants, more than its limits allow.
    fn refusal(&self, excess: Excess) -> RpcError;

    /// Called when a client has connected.
    fn connected(&self, _caller: &Caller) {}

    /// Called after a reply was handed to the kernel, as far as there was room for it, and before
    /// any other task runs.
    fn replied(&self) {}

    /// Whether a connection stays open although it has been idle for long.
    fn is_used(&self, _connection: ConnectionId) -> bool {
        false
    }

    /// Releases what a connection had that has ended, in as many turns as that needs.
    fn disconnected(&self, _connection: ConnectionId) -> impl Future<Output = ()> {
        std::future::ready(())
    }

    /// Releases at once what a connection had whose task has panicked.
    fn lost(&self, _connection: ConnectionId) {}
}

/// What a client has too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// Connections: the limit of this name, which has this value, is reached.
    Connections(&'static str, usize),
    /// Requests that are not finished or not answered yet.
    Buffered,
}
