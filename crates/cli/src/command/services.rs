//! `bindonce services`: the names of services, one per line, for shell completions.

use bindonce_supervisor as supervisor;

use crate::globals::Globals;
use crate::output;

/// Print the names of the services that have, or had, a supervisor
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Args {}

/// Prints the names. It asks no process, because a shell waits for it while the user types.
pub(crate) fn run(_: Args, globals: &Globals) -> anyhow::Result<()> {
    let names = supervisor::services(&globals.socket_path());
    output::print(&names.iter().map(|name| format!("{name}\n")).collect::<String>())
}
