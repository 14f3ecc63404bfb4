//! `bindonce reload`: a new generation on the files as they are now.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use bindonce::Client;
use bindonce_core::duration;
use bindonce_core::name::Name;
use bindonce_supervisor::control_socket;
use serde::Deserialize;

use super::print;
use super::supervisors::missing;
use crate::Globals;

/// Start a new generation and wait until it serves and no older one accepts
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::RELOAD)]
pub(crate) struct Args {
    /// The service
    #[arg(long, value_name = "SERVICE", default_value = "haproxy")]
    name: Name,
    /// How long to wait; the reload goes on if this passes
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration::parse)]
    timeout: Duration,
    /// Take over also with a configuration that has nothing for clients to connect to, and close
    /// every listener that serves
    #[arg(long)]
    allow_empty: bool,
}

/// What the supervisor answers.
#[derive(Debug, Deserialize)]
struct Reloaded {
    generation: u64,
    pid: Option<i32>,
    ended: Vec<u64>,
    #[serde(default)]
    left: Vec<String>,
    #[serde(default)]
    none_kept: bool,
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
                "reload of \"{name}\": its supervisor did not answer to the end ({}); what serves goes on \
                 serving\nhint: see `bindonce status` and the supervisor's log; if it is gone, start it \
                 again with `bindonce run --name {name}`, which takes over what serves",
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
