//! The supervisor of one service (`bindonce run`). It starts generations of haproxy, or of another
//! program, hands over from one to the next with proof, and lets each old generation drain.
//! [`Kind`] holds the differences between haproxy and other programs.
//!
//! `bindonce_core::generation::Timeline` makes the decisions. One loop (`main_loop`) on one thread
//! owns the parts (`supervisor`). Signals, processes, admin connections and clients reach the loop
//! as a `message`, and `perform` carries out the timeline's decisions. So nothing happens between
//! two steps of a decision. Code that changes together shares a folder: `generations`, `handover`,
//! `disk`, `control`, `master_cli`, `report`, `broker`, `adopt`, `program`, `intercept`.

#![forbid(unsafe_code)]

pub mod adopt;
mod broker;
mod context;
mod control;
mod disk;
mod error;
mod generations;
mod handover;
mod inbox;
mod intercept;
mod kind;
mod main_loop;
mod master_cli;
mod message;
mod origin;
mod passed;
mod perform;
pub mod program;
pub mod replies;
mod report;
mod settings;
mod supervisor;
mod tasks;

use tracing::Instrument as _;

pub use control::ending::Ended;
pub use control::upgrade;
pub use disk::place::{control_socket, events_file, service_directory, services};
pub use disk::secret::whole as whole_secret;
pub use error::Error;
pub use generations::start::moved::own_sockets;
pub use generations::start::rendered::rewritten as rewritten_preparation;
pub use handover::watchdog;
pub use kind::{Haproxy, Kind};
pub use origin::{Origin, Text};
pub use report::starter::{BACKGROUND, SERVES};
pub use settings::{
    BrokerSettings, FirstSettings, Ghosts, HandoverSettings, MetricsSettings, Settings,
};

/// Supervises one service until a signal ends it. Call this within a [`tokio::task::LocalSet`], in
/// a process that has started no thread.
///
/// # Errors
/// Errors that prevent the supervisor from starting. Later failures are logged and answered.
pub async fn run(settings: Settings) -> Result<Ended, Error> {
    let span = tracing::info_span!("run", service = %settings.service);
    main_loop::begin(settings).instrument(span).await
}
