//! `bindonce reload`: a new generation on the files as they are now.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use bindonce::Client;
use bindonce_core::duration;
use bindonce_core::name::Name;
use bindonce_supervisor::control_socket;
use bindonce_supervisor::replies::Reloaded;

use super::supervisors::missing;
use crate::globals::Globals;
use crate::output::print;

const HELP: &str = "\
Examples:
  bindonce reload
      A new generation of the service \"haproxy\"
  bindonce reload --name edge --timeout 1m && deploy-next

Exit codes:
  0  The new generation serves, and no older one accepts any more
  1  It failed; the serving generation is unaffected, and haproxy's error is printed
  2  Wrong usage";

/// Start a new generation and wait until it serves and no older one accepts
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// The service
    #[arg(long, value_name = "SERVICE", default_value = "haproxy")]
    name: Name,
    /// How long to wait; after that the reload continues without this command
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration::parse)]
    timeout: Duration,
    /// Accept a configuration without listeners, and close every listener that serves
    #[arg(long)]
    allow_empty: bool,
}

/// Asks the supervisor of the service, and tells what it answers.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let Args { name, timeout, allow_empty } = args;
    print(&ask(&globals.socket_path(), &name, timeout, allow_empty)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Has it reloaded, and says what serves then.
pub(crate) fn ask(
    socket: &Path,
    name: &Name,
    timeout: Duration,
    allow_empty: bool,
) -> anyhow::Result<String> {
    let path = control_socket(socket, name);
    let mut client = Client::connect(&path).map_err(|error| missing(name, error))?;
    client.set_timeout(timeout)?;
    // Nothing where it says nothing: an older supervisor takes no parameters.
    let wanted = match allow_empty {
        true => serde_json::json!({ "allow_empty": true }),
        false => serde_json::json!([]),
    };
    let answer = match client.call("reload", &wanted) {
        Ok(answer) => answer,
        Err(error) => match error.refusal() {
            // haproxy's own words come first, as they are.
            Some(refusal) => {
                let hint = refusal.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
                bail!("reload of \"{name}\" failed: {}{hint}", refusal.message)
            }
            None => bail!(
                "reload of \"{name}\": lost the connection to its supervisor ({}); the serving generation \
                 is unaffected\nhint: see `bindonce status` and the supervisor's log; if it is gone, start it \
                 again with `bindonce run --name {name}`, which takes over the serving generation",
                std::error::Error::source(&error)
                    .map_or_else(|| error.to_string(), ToString::to_string)
            ),
        },
    };
    let Reloaded { generation, pid, ended, left, none_kept } = serde_json::from_value(answer)?;
    let pid = pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    let mut text = format!("generation {generation} serves{pid}\n");
    if !ended.is_empty() {
        let ended: Vec<_> = ended.iter().map(u64::to_string).collect();
        text.push_str(&format!(
            "generation {} went on accepting and had to be ended; its connections are lost\n",
            ended.join(", ")
        ));
    }
    if none_kept {
        text.push_str(&format!(
            "none of the listeners that served before is in the configuration any more: {}\n",
            left.join(", ")
        ));
    }
    Ok(text)
}
