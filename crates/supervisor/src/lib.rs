//! The supervisor of one service (`bindonce run`): it starts generations of haproxy, or of another program, hands
//! over from one to the next with proof, and lets each old one drain. What differs between haproxy and another
//! program is in [`Kind`].
//!
//! `bindonce_core::generation::Timeline` decides what is done. One loop (`main_loop`) on one thread owns the parts
//! (`supervisor`). Everything that happens beside it, in signals, processes, admin connections and clients, reaches it
//! as a `message`, and `perform` does what the timeline says. So nothing happens between two steps of a decision.
//! What changes together lies in one folder: `generations`, `handover`, `disk`, `control`, `report`, `broker`.

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

/// Supervises one service until it is told to stop. Call it within a
/// [`tokio::task::LocalSet`], in a process that has started no thread.
///
/// # Errors
/// Whatever keeps it from beginning; later failures are logged and answered.
pub async fn run(settings: Settings) -> Result<Ended, Error> {
    let span = tracing::info_span!("run", service = %settings.service);
    main_loop::begin(settings).instrument(span).await
}
