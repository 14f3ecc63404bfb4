//! The parts that every finding has.

use serde::Serialize;

/// A finding for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Words {
    /// What it is, in one sentence, with its numbers, pids and times.
    pub(crate) summary: String,
    /// Why it is so.
    pub(crate) cause: String,
    /// What to do, in order: commands to run as they are, or advice that begins with `#`.
    pub(crate) remedy: Vec<String>,
}

impl Words {
    /// Summary, cause, and one remedy.
    pub(super) fn new(summary: String, cause: impl Into<String>, remedy: String) -> Self {
        Self { summary, cause: cause.into(), remedy: vec![remedy] }
    }
}
