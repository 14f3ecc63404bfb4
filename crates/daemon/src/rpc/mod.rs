//! Serves JSON-RPC on a UNIX socket: one [`Server`], and a [`Handler`] for each daemon.
//!
//! One thread serves all clients. A connection is a task that reads a request, has the handler
//! answer it, and writes the reply; requests of one connection are answered in their order. The
//! cost of a client is bounded: each request must be complete, and each reply read, within a time
//! limit; memory has a budget for each user and for all; and turns are fair by user, however many
//! connections a user has.
//!
//! [`Server`] accepts connections and ends them. [`Clients`] has every [`Link`], which is one
//! connection and its state.

mod caller;
mod clients;
mod connection;
mod end;
mod handler;
mod limits;
mod link;
mod receiving;
mod result;
mod sending;
mod server;
mod share;
mod turns;
mod unreceived;

#[cfg(test)]
mod tests;

pub use caller::Caller;
pub use clients::Clients;
pub use handler::{Excess, Handler};
pub use limits::Limits;
pub use link::{Admission, Link};
pub use result::{encode, events, unwritten};
pub use sending::Reply;
pub use server::Server;
pub use turns::runtime;
