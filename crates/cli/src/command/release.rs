//! `bindonce release`: has the broker close listeners.

use bindonce::Client;
use bindonce_core::listener::Wanted;

use crate::globals::Globals;
use crate::output;

const HELP: &str = "\
Examples:
  bindonce release web 127.0.0.1:8000
      Closes both or none

Exit codes:
  0  Closed
  1  A listener is unknown or in use, so none was closed
  2  Wrong usage";

/// Close listeners that are not in use
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Names or addresses, as `bindonce list` shows them
    #[arg(required = true, value_name = "NAME|ADDR")]
    listeners: Vec<Wanted>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Closes all of them or none, and prints their names.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let Args { listeners, json } = args;
    let names: Vec<String> = listeners.iter().map(ToString::to_string).collect();
    let released = Client::connect(&globals.socket_path())?.release(&names)?;
    if json {
        let result = serde_json::json!({ "released": released });
        return output::print_json(&result);
    }
    let text: String = released.iter().map(|name| format!("{name} released\n")).collect();
    output::print(&text)
}
