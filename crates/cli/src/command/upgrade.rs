//! `bindonce upgrade`: the broker, or with `--name` the supervisor of a service, becomes the
//! binary that is installed now, in place.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bindonce::{Client, Error};
use bindonce_core::name::Name;
use bindonce_supervisor::control_socket;
use bindonce_supervisor::replies::Status;
use bindonce_wire::result::UpgradeResult;

use super::supervisors::missing;
use crate::globals::Globals;
use crate::output::print;
use crate::unanswered::Unanswered;

/// How long a supervisor may take to begin. It first ends what is in progress: a start without
/// progress takes 30 s (`--ready-timeout`). The script of the packages allows a minute.
const BEGINS: Duration = Duration::from_secs(50);

const HELP: &str = "\
Examples:
  bindonce upgrade
      The broker, after a new binary was installed
  bindonce upgrade --name haproxy
      The supervisor of a service

Exit codes:
  0  The process runs the new binary
  1  The process still runs the old binary; the message says why, or where to look
  2  Wrong usage";

/// Replace the binary of the running broker or supervisor in place: same pid, no socket is closed
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Upgrade the supervisor of this service instead; its generations keep running
    #[arg(long, value_name = "SERVICE")]
    name: Option<Name>,
}

/// Asks for the upgrade, and verifies it.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    match args.name {
        Some(name) => supervisor(&name, globals),
        None => broker(globals),
    }
}

fn broker(globals: &Globals) -> anyhow::Result<()> {
    let mut client = Client::connect(&globals.socket_path())?;
    let result = client.call("upgrade", &[0; 0])?;
    let UpgradeResult { pid, version, .. } = serde_json::from_value(result)?;
    print(&format!("the broker, pid {pid}, was upgraded and is bindonce {version} now\n"))
}

fn supervisor(name: &Name, globals: &Globals) -> anyhow::Result<()> {
    let socket = globals.socket_path();
    let path = control_socket(&socket, name);
    let before = status(&socket, name)?;
    let mut client = Client::connect(&path).map_err(Unanswered)?;
    client.set_timeout(BEGINS).map_err(Unanswered)?;
    let unanswered = match client.call("upgrade", &serde_json::json!([])) {
        Ok(_) => None,
        Err(error) if error.refusal().is_some() => {
            return Err(error).with_context(|| format!("service \"{name}\""));
        }
        Err(Error::TimedOut { .. }) => bail!(
            "service \"{name}\" is not upgraded yet: its supervisor first ends what is in \
             progress, such as a reload, or the start of a haproxy that died\nhint: see `bindonce status`; the upgrade follows, and \
             need not be asked for again"
        ),
        // The new image does not know this connection: it has ended.
        Err(error) => Some(Unanswered(error)),
    };
    let after = status(&socket, name)?;
    if after.upgrades == before.upgrades || after.pid != before.pid {
        let reason = unanswered.map(|error| format!(": {error}")).unwrap_or_default();
        bail!(
            "service \"{name}\" was not upgraded{reason}\nhint: the supervisor's log and \
             `bindonce events --name {name}` say why"
        );
    }
    print(&format!("the supervisor of \"{name}\", pid {}, was upgraded\n", after.pid))
}

fn status(socket: &Path, name: &Name) -> anyhow::Result<Status> {
    let mut client = Client::connect(&control_socket(socket, name))
        .map_err(|error| missing(socket, name, error))?;
    let status = client.call("status", &serde_json::json!([])).map_err(Unanswered)?;
    Ok(serde_json::from_value(status)?)
}
