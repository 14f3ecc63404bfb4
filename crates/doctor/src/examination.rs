//! The input of a report: the facts and the findings.

use std::time::Duration;

use crate::diagnosis::{Finding, Severity, Target};
use crate::facts::Look;

/// The outcome of [`crate::examine`].
#[derive(Debug)]
pub struct Examination {
    pub(crate) look: Look,
    /// The worst first.
    pub(crate) found: Vec<Finding>,
    /// The target of the report; None for the whole host.
    pub(crate) target: Option<Target>,
    pub(crate) spent: Duration,
}

impl Examination {
    /// Whether nothing is wrong; notes do not count.
    pub fn is_healthy(&self) -> bool {
        self.found.iter().all(|finding| finding.severity == Severity::Note)
    }
}
