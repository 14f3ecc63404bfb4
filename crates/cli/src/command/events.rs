//! `bindonce events`: recent events, and new ones as they happen.

use anyhow::bail;
use bindonce::Event;
use bindonce_core::name::Name;
use serde::Serialize;

use crate::events::{self, Source, SourcedEvent};
use crate::globals::Globals;
use crate::output;
use crate::unanswered::Unanswered;

const HELP: &str = "\
Examples:
  bindonce events
      The last thousand events of the broker and of each service
  bindonce events --name web --follow
      One service, then each new event as it happens, even across restarts
  bindonce events --json | jq 'select(.kind == \"reload-failed\")'
      One kind of event; docs/operations.md lists all kinds

Files:
  /run/bindonce/bindonce.sock.events
      The broker's events, kept for the next broker
  /run/bindonce/SERVICE.d/events.jsonl
      A service's events; read from here when its supervisor does not run

Exit codes:
  0  Done
  1  A broker or supervisor did not answer; the events of the others are printed
  2  Wrong usage";

/// Show the events of the broker, its listeners, and every generation of each service
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Show only the events of this service
    #[arg(long, value_name = "SERVICE")]
    name: Option<Name>,
    /// Continue with each event as it happens, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Print each event as one line of JSON
    #[arg(long)]
    json: bool,
}

/// Prints events, oldest first.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let Args { name, follow, json } = args;
    let socket = globals.socket_path();
    let recent = events::recent(&socket, name.as_ref());
    for sourced in &recent.events {
        print(sourced, json)?;
    }
    if follow {
        for sourced in events::follow(&socket, name, recent.last) {
            print(&sourced, json)?;
        }
        return Ok(());
    }
    match (recent.silent.into_iter().next(), name) {
        // A part is better than nothing, but must not pass for the whole.
        (Some((Source::Broker, error)), _) => Err(error.into()),
        (Some((Source::Service(_), error)), _) => Err(Unanswered(error).into()),
        (None, Some(name)) if recent.events.is_empty() => bail!(
            "service \"{name}\" has no events; start it with `bindonce run --name {name}`, or see \
             `bindonce status` for those that there are"
        ),
        (None, _) => Ok(()),
    }
}

fn print(sourced: &SourcedEvent, json: bool) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        from: String,
        #[serde(flatten)]
        event: &'a Event,
    }
    if json {
        let line = Line { from: sourced.source.to_string(), event: &sourced.event };
        return output::print_json_line(&line);
    }
    output::print(&(text(sourced) + "\n"))
}

/// One event for people: time, source, subject, pid, kind and text.
pub(crate) fn text(sourced: &SourcedEvent) -> String {
    let Event { time, kind, service, generation, pid, text, .. } = &sourced.event;
    let about = match (service, generation) {
        (Some(service), Some(generation)) => format!("{service}/{generation}"),
        (Some(service), None) => service.to_string(),
        (None, _) => "-".to_owned(),
    };
    let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    format!("{time}  {:8}  {about:12}  {pid:>7}  {kind:18}  {text}", sourced.source.to_string())
}

#[cfg(test)]
mod tests {
    use bindonce_core::time::Timestamp;

    use super::*;

    #[test]
    fn a_line_says_when_who_what_and_why() {
        let time = Timestamp(1_767_225_600_250);
        let mut event = Event::new(7, time, "generation-serving", "serving");
        event.service = Some("web".into());
        (event.generation, event.pid) = (Some(3), Some(812));
        let sourced = SourcedEvent { source: Source::Service("web".into()), event };
        insta::assert_snapshot!("event", text(&sourced));
    }
}
