//! Findings from the problems that the broker reports.

use super::condition::Condition;
use super::finding::Finding;
use super::kind::Severity;
use crate::facts::Look;

pub(super) fn problems(look: &Look, found: &mut Vec<Finding>) {
    for problem in look.broker.iter().flat_map(|broker| &broker.status.problems) {
        // Clients suffer now.
        let serious = matches!(
            problem.kind.as_str(),
            "listener-not-bound" | "listener-broken" | "listener-unreachable" | "listener-hidden"
        );
        let severity = if serious { Severity::Error } else { Severity::Warning };
        found.push(Finding::at(None, severity, Condition::Broker(problem.clone())));
    }
}
