//! `bindonce ping`: whether the broker or a supervisor answers. For health checks: one exchange,
//! one line, one exit code.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bindonce::Client;
use bindonce_core::duration;
use bindonce_core::name::Name;
use bindonce_supervisor::control_socket;
use bindonce_supervisor::replies::Pong;

use super::supervisors::missing;
use crate::globals::Globals;
use crate::output::print;

const HELP: &str = "\
Examples:
  bindonce ping
      Whether the broker answers
  bindonce ping --name haproxy
      Whether the supervisor answers, even if no haproxy runs; for liveness probes
  bindonce ping --name haproxy --serving
      Whether one of its generations serves; for readiness probes

Exit codes:
  0  The broker or supervisor answers
  1  There is no answer, or no generation serves
  2  Wrong usage";

/// Check whether the broker, or the supervisor of a service, answers; for health checks
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Ask the supervisor of this service, not the broker
    #[arg(long, value_name = "SERVICE")]
    name: Option<Name>,
    /// Fail unless a generation of the service serves
    #[arg(long, requires = "name")]
    serving: bool,
    /// The time limit for the answer
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration::parse)]
    timeout: Duration,
}

/// Asks, and prints the answer.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let Args { name, serving, timeout } = args;
    let Some(name) = name else {
        let mut client = Client::connect_within(&globals.socket_path(), timeout)?;
        let version = client.ping().context("the broker does not answer")?.version;
        return print(&format!("broker {version} answers\n"));
    };
    let socket = globals.socket_path();
    let path = control_socket(&socket, &name);
    let asked = Client::connect_within(&path, timeout)
        .and_then(|mut client| client.call("ping", &[0; 0]))
        .map_err(|error| missing(&socket, &name, error))?;
    let Pong { version, serving: generation, .. } = serde_json::from_value(asked)?;
    let serves = match generation {
        Some(generation) => format!("generation {generation} serves"),
        None if serving => bail!(
            "no generation of \"{name}\" serves\nhint: see `bindonce status` and the supervisor's log"
        ),
        None => "no generation serves".to_owned(),
    };
    print(&format!("supervisor {version} of \"{name}\" answers, {serves}\n"))
}
