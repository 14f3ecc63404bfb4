//! `bindonce doctor`: why clients see 503 or hang, on any host, in one screen.

use std::process::ExitCode;

use bindonce_doctor::{examine, json, screen};

use crate::Globals;

/// What stands below the options in `--help` and in the manual page; the form is that of help.rs.
const HELP: &str = "\
Examples:
  bindonce doctor
      Every haproxy and every listener of this host
  bindonce doctor 443
      Only what concerns this port

Exit codes:
  0  All is well
  1  It could not look
  2  Wrong usage
  3  Something was found";

/// Find out why clients fail or hang, and say what to do about it
///
/// Reads sockets, processes and limits; changes nothing. Works with or without a broker, and
/// as root sees every process. Exits with 0 if all is well, with 3 if something was found,
/// with 1 if it could not look.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Only what concerns this address (as 80 or 10.0.0.1:443), service or listener
    #[arg(value_name = "ADDRESS|SERVICE")]
    target: Option<String>,
    /// Print findings and everything that was seen as JSON
    #[arg(long)]
    json: bool,
}

/// The exit code that says that something was found.
const FOUND: u8 = 3;

/// Looks, and prints what is wrong.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let Args { target, json: as_json } = args;
    let examination = examine(target.as_deref(), globals.socket_path())?;
    if as_json {
        super::print_json(&serde_json::to_string_pretty(&json(&examination))?)?;
    } else {
        super::print(&screen(&examination))?;
    }
    Ok(if examination.is_healthy() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}
