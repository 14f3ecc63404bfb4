//! What the two long-lived processes, broker and supervisor, have in common: the last things that
//! happened ([`Journal`]), metrics ([`openmetrics`], [`scrape`]), and serving clients ([`rpc`]).
//!
//! Both use it in the same way, from their one thread. A disk that is full or a client that does not
//! read costs events or that client's connection, and never the service.

#![forbid(unsafe_code)]

mod follow;
mod journal;
mod kept;
pub mod openmetrics;
mod reporter;
pub mod rpc;
pub mod scrape;
mod self_metrics;

pub use journal::{Happening, Journal};
pub use kept::{parse, read};
pub use reporter::Reporter;
pub use self_metrics::{events, self_metrics};
