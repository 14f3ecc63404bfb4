//! haproxy's languages: configuration and command line ([`config`]), admin CLI ([`cli`]), limits
//! and counts on a stats socket ([`stats`]), counters summed over generations ([`counters`]), and
//! names of UNIX sockets ([`names`]). Text goes in and values come out. `bindonce-supervisor`
//! starts the generations.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod counters;
pub mod names;
pub mod stats;
