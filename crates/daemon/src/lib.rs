//! What the two long-lived processes, broker and supervisor, have in common: the last things that
//! happened ([`Journal`]), and metrics ([`openmetrics`], [`scrape`]).
//!
//! Both use it in the same way, from their one thread. Nothing here can fail towards its
//! user: a disk that is full or a reader that does not read costs what was to be told, and
//! never the service.

#![forbid(unsafe_code)]

mod follow;
mod journal;
mod kept;
pub mod openmetrics;
pub mod scrape;
mod self_metrics;

pub use follow::{Follower, follow};
pub use journal::{Happening, Journal};
pub use kept::{parse, read};
pub use self_metrics::{events, self_metrics};
