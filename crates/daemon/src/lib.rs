//! What the two long-lived processes, broker and supervisor, have in common: the last things that
//! happened ([`Journal`]), metrics ([`openmetrics`], [`scrape`]), serving clients ([`rpc`]),
//! the service manager ([`notify`]), being the only one ([`exclusive`]), files that outlive the process ([`state`]), and becoming a newer binary
//! ([`reexec`]).
//!
//! Both use it in the same way, from their one thread. A disk that is full or a client that does not
//! read costs events or that client's connection, and never the service.

#![forbid(unsafe_code)]

mod event_file;
pub mod exclusive;
mod follow;
mod journal;
pub mod notify;
pub mod openmetrics;
pub mod paced;
pub mod reexec;
mod reporter;
pub mod rpc;
pub mod scrape;
mod self_metrics;
pub mod state;
pub mod status_page;
#[cfg(test)]
mod testing;
mod when_woken;

pub use event_file::{parse, read};
pub use journal::{Happening, Journal};
pub use reporter::Reporter;
pub use self_metrics::{events, self_metrics};
pub use when_woken::WhenWoken;
