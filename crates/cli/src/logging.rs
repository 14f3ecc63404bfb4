//! Log lines on standard error: for people on a terminal, JSON for machines. No line waits for a
//! reader ([`bindonce_sys::log`]).

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal as _};
use std::str::FromStr;

use bindonce_sys::clock::now;
use bindonce_sys::log;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Time, level, message, then name=value.
    Human,
    /// One JSON object per line, with the same content.
    Json,
}

/// Log levels, for everything and for single modules. There are no regular expressions over spans
/// and fields: their matcher alone would take a tenth of the broker's memory.
#[derive(Debug, Clone)]
pub(crate) struct LogLevel(Targets);

impl FromStr for LogLevel {
    type Err = String;

    /// Parses `info`, or `warn,bindonce_supervisor=debug`: the last level for a module counts.
    fn from_str(text: &str) -> Result<Self, String> {
        let level = |name: &str| {
            // An empty name would parse as "error".
            let level = Some(name).filter(|name| !name.is_empty());
            level.and_then(|name| name.parse::<LevelFilter>().ok()).ok_or_else(|| {
                format!("{name:?} is no level: error, warn, info, debug, trace or off")
            })
        };
        let mut targets = Targets::new();
        for word in text.split(',').map(str::trim) {
            targets = match word.split_once('=') {
                Some((module, name)) => targets.with_target(module, level(name)?),
                None => targets.with_default(level(word)?),
            };
        }
        Ok(Self(targets))
    }
}

/// Sets up logging. Lines are kept until [`log::start`] is called. Only commands that keep running
/// call this: a one-shot command prints its result, and an error if there is one.
pub(crate) fn start(format: LogFormat, level: &LogLevel) {
    log::keep(match format {
        LogFormat::Human => |dropped| format!("{} WARN {}\n", now(), lost(dropped)),
        LogFormat::Json => |dropped| {
            let (at, text) = (now(), lost(dropped));
            format!("{{\"timestamp\":\"{at}\",\"level\":\"WARN\",\"message\":\"{text}\"}}\n")
        },
    });
    std::panic::set_hook(Box::new(|panic| {
        let trace = Backtrace::capture();
        let trace = if trace.status() == BacktraceStatus::Captured {
            format!("{trace}\n")
        } else {
            String::new()
        };
        log::write(format!("{} ERROR {panic}\n{trace}", now()).as_bytes());
    }));
    let lines = fmt::layer().with_writer(|| Line).with_timer(Rfc3339).with_target(false);
    let registry = tracing_subscriber::registry().with(level.0.clone());
    match format {
        LogFormat::Human => {
            registry.with(lines.with_ansi(std::io::stderr().is_terminal())).init();
        }
        LogFormat::Json => {
            registry.with(lines.json().flatten_event(true).with_span_list(false)).init();
        }
    }
}

fn lost(dropped: u64) -> String {
    format!("{dropped} lines of the log were dropped: standard error was not read")
}

/// The destination of log lines. Each line arrives in one piece.
struct Line;

impl io::Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        log::write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// RFC 3339 in UTC with milliseconds.
struct Rfc3339;

impl FormatTime for Rfc3339 {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        write!(writer, "{}", now())
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_level_is_for_everything_or_for_a_module() {
        let LogLevel(said) =
            "warn, bindonce_supervisor=debug,bindonce_sys=off".parse().expect("good");
        let enabled = |module, level| said.would_enable(module, &level);
        assert!(enabled("bindonce_broker", Level::WARN));
        assert!(!enabled("bindonce_broker", Level::INFO));
        assert!(enabled("bindonce_supervisor::handover", Level::DEBUG));
        assert!(!enabled("bindonce_supervisor", Level::TRACE));
        assert!(!enabled("bindonce_sys", Level::ERROR));
        for bad in ["", "loud", "bindonce_sys=", "bindonce_sys=loud", "info,"] {
            assert!(bad.parse::<LogLevel>().is_err(), "{bad:?}");
        }
    }
}
