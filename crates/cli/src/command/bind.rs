//! `bindonce bind`: has the broker bind addresses and keep them.

use std::fmt::Write as _;

use bindonce::{Claim, Client, Lease};
use bindonce_core::listener::ListenSpec;

use crate::globals::Globals;
use crate::output;

const HELP: &str = "\
Examples:
  bindonce bind web=0.0.0.0:80,backlog=4096
      Binding the address again succeeds and prints \"held already\"
  bindonce bind 127.0.0.1:8000-8010 unix@/run/app.sock,mode=0660
      Binds all of them or none

Exit codes:
  0  The broker holds every listener
  1  An address could not be bound, so none was; the message names the holder of the address
  2  Wrong usage";

/// Bind addresses and hold them for later use
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// What to bind, as in web=0.0.0.0:80,backlog=4096 or 127.0.0.1:8000-8010
    #[arg(required = true, value_name = "[NAME=]ADDR[,OPT]...")]
    listen: Vec<ListenSpec>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Binds all addresses or none, and prints each with the address that it got.
pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let Args { listen, json } = args;
    let claims: Vec<Claim> = listen.iter().map(|spec| Claim::listen(spec.to_string())).collect();
    let leases = Client::connect(&globals.socket_path())?.claim(&claims)?;
    if json {
        let listeners: Vec<_> = leases.iter().map(entry).collect();
        let result = serde_json::json!({ "listeners": listeners });
        return output::print_json(&result);
    }
    let mut text = String::new();
    for lease in leases {
        let what = if lease.created() { "bound" } else { "held already" };
        // Writing to a String does not fail.
        let _ = match lease.name() {
            name if name == lease.bound() => writeln!(text, "{name} {what}"),
            name => writeln!(text, "{name} {what} at {}", lease.bound()),
        };
    }
    output::print(&text)
}

/// One listener, with the member names of the protocol.
fn entry(lease: &Lease) -> serde_json::Value {
    serde_json::json!({
        "name": lease.name(),
        "address": lease.address(),
        "bound": lease.bound(),
        "created": lease.created(),
        "inode": lease.inode(),
    })
}
