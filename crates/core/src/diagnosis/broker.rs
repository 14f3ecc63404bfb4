//! What the broker says that it cannot do.

use super::facts::Look;
use super::finding::{Finding, Kind, Severity};

pub(super) fn problems(look: &Look, found: &mut Vec<Finding>) {
    found.extend(look.problems.iter().map(|problem| {
        // Clients suffer now.
        let unserved =
            ["listener-not-bound", "listener-unreachable"].contains(&problem.kind.as_str());
        Finding {
            kind: Kind::Broker,
            severity: if unserved { Severity::Error } else { Severity::Warning },
            network: None,
            address: None,
            also: Vec::new(),
            service: None,
            culprits: Vec::new(),
            summary: problem.message.clone(),
            evidence: vec![
                ("problem", problem.kind.clone().into()),
                ("subject", problem.subject.clone().into()),
            ],
            cause: "the broker goes on with what it holds, and tries again".to_owned(),
            remedy: problem.hint.iter().map(|hint| format!("# {hint}")).collect(),
        }
    }));
}
