//! The broker: binds every listen address once, keeps the sockets, and hands
//! them to the clients that a rule allows.
//!
//! [`bindonce_core::registry`] decides what is bound and who uses it; this crate performs the
//! decisions. One thread serves all clients: each connection is a task that reads a request,
//! decides and performs it without yielding, and writes the reply. So two requests never
//! interleave, and a peer that does not read or does not finish its request delays only itself, for
//! at most the limit `request_time`.
//!
//! The caller owns the runtime (a current-thread one) and the signals:
//! [`run`] serves until its `shutdown` future is ready.

#![forbid(unsafe_code)]

mod access;
mod accounts;
mod answer;
mod answering;
mod aside;
mod broker;
mod claims;
mod config;
mod control;
mod error;
mod generations;
mod guard;
mod handler;
mod inquiry;
mod large;
mod listeners;
mod metrics;
mod notify;
mod outlived;
mod pages;
mod parting;
mod persistence;
mod problems;
mod recovery;
mod requests;
mod server;
mod start;
mod status_page;
mod succession;
mod upgrade;

pub use config::{Config, File, Limits, Orders, WrittenRule};
pub use error::Error;
pub use server::{events_file, run};
pub use upgrade::{CHECK, Inherited, check, inherited};
