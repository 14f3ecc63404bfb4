//! haproxy under bindonce: reading its configuration, and the generations of it.

#![forbid(unsafe_code)]

pub mod config;
pub mod stats;
pub mod supervisor;
