//! `bindonce check-config`: whether a broker would take this configuration.

use std::path::PathBuf;

use anyhow::Context as _;
use bindonce_broker::File;
use bindonce_core::text::count;

use crate::output::print;

const HELP: &str = "\
Examples:
  bindonce check-config /etc/bindonce/bindonce.toml && systemctl reload bindonce

Exit codes:
  0  The configuration is valid
  1  The configuration is invalid; the message says where and why
  2  Wrong usage";

/// Check a configuration file of `bindonce serve`
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// The configuration, as for `bindonce serve --config`
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Reads the configuration, and prints what it would do.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let file = File::read(&args.file)?;
    let rules = file.rules().with_context(|| args.file.display().to_string())?;
    let who = if rules.is_empty() {
        "no rules: root and the broker's own user may do everything, others nothing".to_owned()
    } else {
        count(rules.len(), "rule")
    };
    let listen = count(file.listen.len(), "listener");
    print(&format!("{}: good; {listen}, {who}\n", args.file.display()))?;
    Ok(())
}
