//! The client for tokio: the same verbs, awaited.
//!
//! A call that is dropped before it is done leaves the connection half-way, and
//! the next call says [`Error::Interrupted`](crate::Error::Interrupted); its descriptors are closed.

mod client;
mod generation;

pub use client::Client;
pub use generation::Generation;
