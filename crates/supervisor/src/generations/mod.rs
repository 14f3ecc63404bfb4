//! Generations: how one is started, what is known of its processes and listeners, and whether it
//! listens. [`start`] makes the process, [`process`] a [`generation::Generation`] of it, and
//! [`watching`] finds out whether it has stopped. Taking over from an older one is in `handover`.

pub(crate) mod admin;
pub(crate) mod changes;
pub(crate) mod counting;
pub(crate) mod drain;
pub(crate) mod family;
pub(crate) mod first;
pub(crate) mod foreign;
pub(crate) mod generation;
mod hanging;
pub(crate) mod idle;
pub(crate) mod learning;
pub(crate) mod listeners;
pub(crate) mod notifications;
pub(crate) mod output;
pub(crate) mod own_addresses;
pub(crate) mod paused;
pub(crate) mod process;
pub(crate) mod progress;
pub(crate) mod reaper;
pub(crate) mod server_state;
mod set;
pub(crate) mod since;
pub(crate) mod spares;
pub(crate) mod start;
pub(crate) mod starts;
mod stats_file;
mod steps;
pub(crate) mod unprivileged;
pub(crate) mod watching;

pub(crate) use set::Generations;
