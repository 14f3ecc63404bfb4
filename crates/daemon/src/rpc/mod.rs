//! Serving JSON-RPC on a UNIX socket: one [`Server`], and a [`Handler`] for each daemon.
//!
//! One thread serves everybody. A connection is a task that reads a request, has it answered, and writes
//! the reply; requests of one connection are answered in their order. What a client may cost is bounded:
//! each request has a time to be complete and each reply a time to be read, what is kept in memory has a budget
//! for each user and for all, and turns are fair by user, however many connections a user has.
//!
//! [`Server`] accepts connections and ends them; [`Clients`] knows every [`Link`], which is one connection
//! as far as it is.

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
