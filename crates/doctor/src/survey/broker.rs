//! Asks the broker for its status, if there is one.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use bindonce::{Client, StatusResult};

use crate::facts::{Broker, Unseen};

/// Time limit for the answer: a hanging broker must not hide everything else.
const ANSWER: Duration = Duration::from_secs(1);

/// Asks the broker; None if no broker is there.
pub(super) fn ask(socket: &Path) -> Result<Option<StatusResult>, Unseen> {
    let status = Client::connect_within(socket, ANSWER).and_then(|mut client| client.status());
    match status {
        Ok(status) => Ok(Some(status)),
        Err(bindonce::Error::Connect { source, .. })
            if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(error) => {
            Err(Unseen::Broker { socket: socket.to_owned(), error: with_sources(&error) })
        }
    }
}

/// An error with all its causes.
fn with_sources(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The broker's report, asked before and after everything else was looked at: a service whose
/// generations differ between the two was in the middle of a change.
pub(super) fn between(before: Option<&StatusResult>, status: StatusResult) -> Broker {
    let generations = |status: &StatusResult, name: &str| {
        let known = status.services.iter().find(|service| service.name == name)?;
        let states = known.generations.iter().map(|one| (one.generation, one.state));
        Some(states.collect::<Vec<_>>())
    };
    let names = status.services.iter().map(|service| &service.name);
    let changing: BTreeSet<String> = names
        .filter(|name| {
            before.is_none_or(|old| generations(old, name) != generations(&status, name))
        })
        .cloned()
        .collect();
    Broker { status, changing }
}
