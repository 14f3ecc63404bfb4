//! The parts of every finding's text.

use serde::Serialize;

/// The text of a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Words {
    /// The condition in one sentence, with its numbers, pids and times.
    pub(crate) summary: String,
    /// The cause.
    pub(crate) cause: String,
    /// The remedies in order: commands that run as they are, or advice that begins with `#`.
    pub(crate) remedy: Vec<String>,
}

impl Words {
    /// A text with one remedy.
    pub(super) fn new(summary: String, cause: impl Into<String>, remedy: String) -> Self {
        Self { summary, cause: cause.into(), remedy: vec![remedy] }
    }
}
