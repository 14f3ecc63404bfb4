//! haproxy's languages: its configuration and command line ([`config`]), its admin CLI ([`cli`]), and its limits and
//! counts on a stats socket ([`stats`]), its counters over generations ([`counters`]), and how it names UNIX sockets ([`names`]). Text goes in and values come out; generations are started by
//! `bindonce-supervisor`.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod counters;
pub mod names;
pub mod stats;
