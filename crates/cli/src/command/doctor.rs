//! `bindonce doctor`: why clients see 503 or hang, on any host, in one screen.

use std::process::ExitCode;

use bindonce_doctor::{examine, json, screen};

use crate::command::supervisors;
use crate::globals::Globals;
use crate::output;

const HELP: &str = "\
Examples:
  bindonce doctor
      Every haproxy and every listener of this host
  bindonce doctor 443
      Only findings that concern this port

Exit codes:
  0  Healthy
  1  The host could not be examined, or nothing has the name that was given
  2  Wrong usage
  3  There are findings";

/// Find out why clients fail or hang, and what to do about it
///
/// Reads sockets, processes and limits, and changes nothing. Works with or without a broker. As root
/// it sees every process.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Show only what concerns this address (such as 80 or 10.0.0.1:443), service, listener or program
    #[arg(value_name = "ADDRESS|SERVICE")]
    target: Option<String>,
    /// Print the findings and all observations as JSON
    #[arg(long)]
    json: bool,
}

/// The exit code if there are findings.
const FOUND: u8 = 3;

/// Examines the host, and prints what is wrong.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let Args { target, json: as_json } = args;
    let socket = globals.socket_path();
    let examination = examine(target.as_deref(), &socket, || supervisors::answers(&socket))?;
    if as_json {
        output::print_json(&json(&examination))?;
    } else {
        output::print(&screen(&examination))?;
    }
    Ok(if examination.is_healthy() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}
