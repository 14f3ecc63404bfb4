//! `bindonce status`: the broker, its listeners, and the services that use them.

use std::fmt::Write as _;
use std::process::ExitCode;

use bindonce::{Client, StatusResult};

use super::{list, supervisors};
use crate::Globals;

/// Show the broker, its listeners, and who uses them
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(after_long_help = crate::help::STATUS)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the broker's state, as text or as JSON.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let Args { json } = args;
    let socket = globals.socket_path();
    let supervisors = supervisors::all(&socket);
    // A broker that is gone is when the supervisors' half matters most.
    let status = Client::connect(&socket).and_then(|mut client| client.status());
    if json {
        let mut all = match &status {
            Ok(status) => serde_json::to_value(status)?,
            Err(_) => serde_json::json!({}),
        };
        all["supervisors"] = serde_json::to_value(&supervisors)?;
        super::print(&format!("{}\n", serde_json::to_string_pretty(&all)?))?;
    } else {
        let broker = status.as_ref().map(text).unwrap_or_default();
        super::print(&(broker + &supervisors::text(&supervisors)))?;
    }
    status?;
    Ok(ExitCode::SUCCESS)
}

/// The broker's half of the status, for people.
pub(crate) fn text(status: &StatusResult) -> String {
    let broker = &status.broker;
    let mut text = format!(
        "broker {} pid {} on {} since {}\n{} listener{}, {} connection{}, at most {} descriptors\n",
        broker.version,
        broker.pid,
        broker.socket,
        list::seconds(&broker.since),
        broker.listeners,
        plural(broker.listeners),
        broker.connections,
        plural(broker.connections),
        broker.descriptor_limit,
    );
    if !status.listeners.is_empty() {
        // Writing to a String does not fail.
        let _ = write!(text, "\n{}", list::table(&status.listeners));
    }
    let header = ["SERVICE", "GENERATION", "PID", "STATE", "LISTENERS", "SINCE"];
    let mut rows = vec![header.map(str::to_owned)];
    for service in &status.services {
        rows.extend(service.generations.iter().map(|generation| {
            [
                service.name.clone(),
                generation.generation.to_string(),
                generation.pid.to_string(),
                generation.state.to_string(),
                generation.listeners.len().to_string(),
                list::seconds(&generation.since),
            ]
        }));
    }
    if rows.len() > 1 {
        let _ = write!(text, "\n{}", list::columns(&rows));
    }
    text
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
