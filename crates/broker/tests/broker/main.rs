//! The broker with real sockets.

#![allow(missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod claims;
mod clients;
mod start;
