//! `bindonce status`: the broker, its listeners, and the services that use them.

mod watch;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bindonce::{Client, StatusResult};
use bindonce_core::duration;

use super::{list, supervisors};
use crate::Globals;
use supervisors::Supervisor;

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
    /// The time between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse, requires = "watch")]
    interval: Duration,
}

/// Prints the broker's state, as text or as JSON.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let Args { json, watch, interval } = args;
    let socket = globals.socket_path();
    if watch {
        watch::run(&socket, json, interval)?;
        return Ok(ExitCode::SUCCESS);
    }
    let snapshot = Snapshot::take(&socket);
    if json {
        super::print_json(&serde_json::to_string_pretty(&snapshot.json()?)?)?;
    } else {
        super::print(&snapshot.text())?;
    }
    snapshot.broker?;
    Ok(ExitCode::SUCCESS)
}

/// What the broker and the supervisors told at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Where the broker should be.
    pub(crate) socket: PathBuf,
    /// A broker that is gone is when the supervisors' half matters most.
    pub(crate) broker: Result<StatusResult, bindonce::Error>,
    /// Everyone whose broker is, or was, there.
    pub(crate) supervisors: Vec<Supervisor>,
}

impl Snapshot {
    /// Asks them all. It takes seconds if one hangs.
    pub(crate) fn take(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            supervisors: supervisors::all(socket),
            broker: Client::connect_within(socket, supervisors::ANSWER)
                .and_then(|mut client| client.status()),
        }
    }

    /// Why there is no broker's half, if so.
    pub(crate) fn no_broker(&self) -> Option<String> {
        let error = self.broker.as_ref().err()?;
        let socket = self.socket.display();
        Some(match error.is_absence() {
            true => format!("no broker answers at {socket}, waiting"),
            false => format!("the broker at {socket} does not tell: {}, waiting", chain(error)),
        })
    }

    fn json(&self) -> anyhow::Result<serde_json::Value> {
        let mut all = match &self.broker {
            Ok(status) => serde_json::to_value(status)?,
            Err(_) => serde_json::json!({}),
        };
        all["supervisors"] = serde_json::to_value(&self.supervisors)?;
        Ok(all)
    }

    fn text(&self) -> String {
        let broker = self.broker.as_ref().map(text).unwrap_or_default();
        broker + &supervisors::text(&self.supervisors)
    }
}

/// An error with its reasons.
pub(crate) fn chain(error: &bindonce::Error) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
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
    text += &list::problems(&status.problems);
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
