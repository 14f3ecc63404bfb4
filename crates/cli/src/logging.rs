//! Log lines on standard error: for people on a terminal, JSON for machines.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::Globals;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Time, level, message, then name=value.
    Human,
    /// One JSON object a line, with the same words.
    Json,
}

/// Begins to log. Called by the commands that run on: a one-shot command prints
/// its result, and an error if there is one.
pub(crate) fn start(globals: &Globals) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&globals.log_level)
        .with_context(|| format!("--log-level {:?} is not understood", globals.log_level))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_timer(Rfc3339)
        .with_target(false);
    match globals.log_format {
        LogFormat::Human => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// RFC 3339 in UTC with milliseconds.
struct Rfc3339;

impl FormatTime for Rfc3339 {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        write!(writer, "{}", bindonce_core::time::Timestamp(millis))
    }
}
