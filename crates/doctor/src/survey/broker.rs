//! What the broker reports, where there is one.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use bindonce::{Client, StatusResult};

use crate::facts::{Broker, Unseen};

/// How long it may take to answer; one that hangs must not hide everything else.
const ANSWER: Duration = Duration::from_secs(1);

/// Asks the broker; none if there is none.
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

/// An error with everything that it came from.
fn with_sources(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What the broker reported, asked before and after everything else was looked at: a service whose
/// generations are not the same in both was in the middle of something.
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
