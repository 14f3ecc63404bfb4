//! The broker: binds every listen address once, keeps the sockets, and hands
//! them to whoever may have them.
//!
//! What is bound and who uses it is decided by [`bindonce_core::registry`]; this
//! crate performs the decisions. One thread serves everybody: a connection is a
//! task that reads a request, has it decided and performed without giving way,
//! and writes the reply. So two requests never interleave, and a peer that does
//! not read or does not finish its request delays only itself, for at most
//! [`Limits::request_time`].
//!
//! The caller owns the runtime (a current-thread one) and the signals:
//! [`run`] serves until its `shutdown` future is ready.

#![forbid(unsafe_code)]

mod answer;
mod budgets;
mod claiming;
mod closing;
mod config;
mod connection;
mod control;
mod error;
mod file;
mod giving;
mod guard;
mod inquiry;
mod metrics;
mod recording;
mod records;
mod recovery;
mod requests;
mod restore;
mod rights;
mod sending;
mod server;
mod service;
mod settings;
mod socket;
mod start;
mod state;
mod store;
mod succession;
mod turns;
mod upgrade;

pub use config::{Config, Limits, Orders};
pub use error::Error;
pub use file::File;
pub use server::{events_file, run};
pub use settings::WrittenRule;
pub use upgrade::{CHECK, Inherited, check, inherited};
