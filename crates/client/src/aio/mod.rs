//! The client and the generation for tokio: the same calls, awaited.
//!
//! A call of [`Client`] that is dropped before it is done leaves the connection half-way: its
//! descriptors are closed, and the next call returns
//! [`Error::Interrupted`](crate::Error::Interrupted).

mod client;
mod generation;
pub(crate) mod patience;

pub use client::Client;
pub use generation::Generation;
