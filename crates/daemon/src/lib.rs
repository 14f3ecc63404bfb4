//! What the two long-lived processes, broker and supervisor, have in common: recent events
//! ([`Journal`]), metrics ([`openmetrics`], [`scrape`]), serving clients ([`rpc`]), the service
//! manager ([`notify`]), one daemon per control socket ([`exclusive`]), files that outlive the
//! process ([`state`]), and upgrades in place ([`reexec`]).
//!
//! Both use it in the same way, from their one thread. A full disk costs events, a client that does
//! not read costs its connection, and neither costs the service.

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
