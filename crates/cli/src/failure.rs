//! The one place that reports a failure to the user.

use std::process::ExitCode;

use bindonce_core::text::printable_lines;
use bindonce_supervisor::{self as supervisor, adopt};
use bindonce_sys::log;

use crate::unanswered::Unanswered;

/// Prints an error with its hint, and returns the exit code: 2 for wrong usage, else 1.
pub(crate) fn print(error: &anyhow::Error) -> ExitCode {
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        // If it cannot be printed, there is no one to tell.
        let _ = usage.print();
        return ExitCode::from(2);
    }
    log::write(format!("bindonce: {}", text(error)).as_bytes());
    ExitCode::FAILURE
}

/// An error with its causes, and its hint on a line of its own.
pub(crate) fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for reason in error.chain().map(ToString::to_string) {
        // Some errors name their cause themselves.
        if !text.ends_with(&reason) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&reason);
        }
    }
    text.push('\n');
    if let Some(hint) = error.chain().find_map(hint) {
        text.push_str(&format!("hint: {hint}\n"));
    }
    // Causes may quote a peer or another process.
    printable_lines(&text).into_owned()
}

fn hint(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let of_client = error.downcast_ref().and_then(bindonce::Error::hint);
    of_client
        .or_else(|| error.downcast_ref::<Unanswered>()?.hint())
        .or_else(|| error.downcast_ref::<supervisor::Error>()?.hint())
        .or_else(|| error.downcast_ref::<adopt::Error>()?.hint())
        .or_else(|| error.downcast_ref::<bindonce_broker::Error>()?.hint())
        .or_else(|| error.downcast_ref::<bindonce_sys::Error>()?.hint())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_reason_is_given_once() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let above = anyhow::Error::new(denied()).context("start the watchdog");
        assert_eq!(text(&above), "start the watchdog: permission denied\n");
        let twice = anyhow::Error::new(denied()).context("start it: permission denied");
        assert_eq!(text(&twice), "start it: permission denied\n");
    }
}
