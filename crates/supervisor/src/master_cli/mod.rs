//! The master CLI (haproxy's `-S`): the language of haproxy's own master, served by the supervisor, so that a reload that is asked
//! for there is one of ours.
//!
//! Each connection is a task ([`conversation`]). It asks the loop for what it must know, and for a reload; commands for a generation
//! go to that haproxy by a connection of their own ([`generation`]). [`Master`] is what the loop keeps.

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
