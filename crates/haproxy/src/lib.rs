//! haproxy and other programs under bindonce: what they are told on the command line and in their
//! configuration, and the generations of them.

#![forbid(unsafe_code)]

pub mod adopt;
pub mod config;
pub mod program;
pub mod stats;
pub mod supervisor;
