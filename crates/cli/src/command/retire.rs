//! `bindonce retire`: ends a replaced generation now, with its connections.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use bindonce::Client;
use bindonce_core::name::Name;
use bindonce_core::text::count;
use bindonce_supervisor::control_socket;
use bindonce_supervisor::replies::Retired;

use super::supervisors::missing;
use crate::globals::Globals;
use crate::output::print;
use crate::unanswered::Unanswered;

/// Time limit for the answer. SIGKILL follows SIGTERM after a second.
const PATIENCE: Duration = Duration::from_secs(30);

const HELP: &str = "\
Examples:
  bindonce retire
      Ends the oldest draining generation of the service \"haproxy\"
  bindonce retire --name edge 41

Exit codes:
  0  The generation has ended
  1  There is no such draining generation, or the supervisor does not answer
  2  Wrong usage";

/// End a draining generation together with its connections
///
/// A replaced generation ends by itself with its last connection, or after `run --drain-timeout`. Use this command to end it earlier.
/// `bindonce status` shows the connections that each generation still serves.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// The service
    #[arg(long, value_name = "SERVICE", default_value = "haproxy")]
    name: Name,
    /// The generation [default: the oldest one that drains]
    #[arg(value_name = "GENERATION")]
    generation: Option<u64>,
}

/// Asks the supervisor of the service, and prints its answer.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let Args { name, generation } = args;
    print(&ask(&globals.socket_path(), &name, generation)?)
}

/// Has the supervisor end the generation, and returns what to print.
pub(crate) fn ask(socket: &Path, name: &Name, generation: Option<u64>) -> anyhow::Result<String> {
    let mut client = Client::connect_within(&control_socket(socket, name), PATIENCE)
        .map_err(|error| missing(socket, name, error))?;
    let params: Vec<u64> = generation.into_iter().collect();
    let answer = match client.call("retire", &params) {
        Ok(answer) => answer,
        Err(error) => match error.refusal() {
            Some(refusal) => {
                let hint = refusal.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
                bail!("{}{hint}", refusal.message)
            }
            None => return Err(Unanswered(error).into()),
        },
    };
    Ok(text(&serde_json::from_value(answer)?))
}

fn text(retired: &Retired) -> String {
    let Retired { generation, pid, connections } = retired;
    let pid = pid.map(|pid| format!(", pid {pid},")).unwrap_or_default();
    let lost = match connections {
        Some(connections) => format!(" with {}", count(*connections, "connection")),
        None => String::new(),
    };
    format!("generation {generation}{pid} was ended{lost}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_ended_with_its_connections() {
        let all = [(None, None), (Some(1234), Some(1)), (Some(1234), Some(250))];
        let texts =
            all.map(|(pid, connections)| text(&Retired { generation: 41, pid, connections }));
        insta::assert_snapshot!("retired", texts.concat());
    }
}
