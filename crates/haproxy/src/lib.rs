//! haproxy's languages: its configuration and command line ([`config`]), and what a running one
//! tells of itself ([`stats`]). Text goes in and values come out; generations are started by
//! `bindonce-supervisor`.

#![forbid(unsafe_code)]

pub mod config;
pub mod stats;
