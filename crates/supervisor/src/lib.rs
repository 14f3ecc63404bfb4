//! The supervisor of one service (`bindonce run`): it starts generations of haproxy, or of another program, hands
//! over from one to the next with proof, and lets each old one drain. What differs between haproxy and another
//! program is in [`Kind`].
//!
//! `bindonce_core::generation::Timeline` decides what is done. One loop (`main_loop`) on one thread owns the parts (`supervisor`):
//! everything that happens beside it, in signals, processes, admin connections and clients, reaches it as a
//! `message`, and `perform` does what the timeline says. So nothing happens between two steps of a
//! decision.

#![forbid(unsafe_code)]

mod admin;
pub mod adopt;
mod announce;
mod broker;
mod compare;
mod control;
mod directory;
mod elsewhere;
mod error;
mod family;
mod files;
mod foreign;
mod found;
mod generation;
mod ghosts;
mod handover;
mod kind;
mod lease;
mod listeners;
mod main_loop;
mod measured;
mod message;
mod metrics;
mod notifications;
mod outcome;
mod output;
mod own;
mod perform;
mod pid_file;
mod place;
mod process;
pub mod program;
mod promise;
mod proof;
mod readiness;
mod ready;
mod reaper;
mod report;
mod requests;
mod retire;
mod server_state;
mod sessions;
mod settings;
mod signals;
mod start;
mod starts;
mod status;
mod supervisor;
mod take_over;
mod tasks;
mod unused;
pub mod upgrade;
mod upgrades;
mod version;
pub mod watchdog;
mod watching;

use tracing::Instrument as _;

pub use error::Error;
pub use kind::{Haproxy, Kind};
pub use place::{control_socket, events_file, service_directory, services};
pub use process::Ended;
pub use settings::{Ghosts, Settings};

/// Supervises one service until it is told to stop. Call it within a
/// [`tokio::task::LocalSet`], in a process that has started no thread.
///
/// # Errors
/// Whatever keeps it from beginning; later failures are logged and answered.
pub async fn run(settings: Settings) -> Result<Ended, Error> {
    let span = tracing::info_span!("run", service = %settings.service);
    main_loop::begin(settings).instrument(span).await
}
