//! The master CLI (haproxy's `-S`): the protocol of haproxy's own master, served by the supervisor,
//! so that a reload requested there is one of ours.
//!
//! Each connection is a task ([`conversation`]). It asks the loop for information and for reloads.
//! Commands for a generation go to that haproxy on a connection of their own ([`generation`]).
//! [`Master`] is the loop's state for the master CLI.

mod answers;
mod ask;
mod client;
mod conversation;
mod generation;
mod seats;
mod sockets;
mod state;

pub(crate) use ask::Ask;
pub(crate) use state::Master;
