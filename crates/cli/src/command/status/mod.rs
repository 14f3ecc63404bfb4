//! `bindonce status`: the broker, its listeners, and the services that use them.

mod snapshot;
mod watch;

pub(crate) use snapshot::{Snapshot, chain};

use std::time::Duration;

use bindonce_core::duration;

use crate::globals::Globals;
use crate::output;

const HELP: &str = "\
Examples:
  bindonce status
  bindonce status --json | jq '.supervisors[].generations'
  bindonce status --watch
      Again every second, even while the broker or a supervisor is down
  bindonce status --watch --interval 10s >>status.log

Exit codes:
  0  Printed; with --watch, the reader has closed the output
  1  No broker answers, or it denies the request; the status of the supervisors is still printed
  2  Wrong usage";

/// Show the broker, its listeners, and who uses them
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Print JSON; with --watch one object per line
    #[arg(long)]
    json: bool,
    /// Repeat until interrupted: in place on a terminal, else one below the other
    #[arg(long)]
    watch: bool,
    /// The time between two updates
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse, requires = "watch")]
    interval: Duration,
}

/// Prints the status of the broker and the supervisors, as text or as JSON.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let Args { json, watch, interval } = args;
    let socket = globals.socket_path();
    if watch {
        return watch::run(&socket, json, interval);
    }
    let snapshot = Snapshot::take(&socket);
    if json {
        output::print_json(&snapshot.json()?)?;
    } else {
        output::print(&snapshot.text())?;
    }
    snapshot.broker?;
    Ok(())
}
