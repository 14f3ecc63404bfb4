//! What the broker knows, where there is one.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use bindonce::{Client, State, StatusResult};
use bindonce_core::diagnosis::{Generation, Held, Life, Look};
use bindonce_core::time::Timestamp;

/// How long it may take to answer; one that hangs must not hide everything else.
const ANSWER: Duration = Duration::from_secs(1);

/// Asks the broker and adds what it says. Without one there is nothing to add.
pub(super) fn ask(socket: &Path, look: &mut Look) {
    let status = Client::connect_within(socket, ANSWER).and_then(|mut client| client.status());
    match status {
        Ok(status) => add(&status, look),
        Err(bindonce::Error::Connect { source, .. })
            if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
        Err(error) => {
            let error = anyhow::Error::from(error);
            look.unseen.push(format!("what the broker at {} knows: {error:#}", socket.display()));
        }
    }
}

fn add(status: &StatusResult, look: &mut Look) {
    look.broker = i32::try_from(status.broker.pid).ok();
    look.held = status
        .listeners
        .iter()
        .map(|listener| Held {
            inode: listener.inode,
            name: listener.name.clone(),
            exclusive: listener.exclusive,
            listening: listener.listening,
            backlog: listener.options.get("backlog").and_then(serde_json::Value::as_u64),
        })
        .collect();
    for service in &status.services {
        look.generations.extend(service.generations.iter().map(|one| Generation {
            service: service.name.clone(),
            id: one.generation,
            pid: i32::try_from(one.pid).unwrap_or(0),
            life: match one.state {
                State::Starting => Life::Starting,
                State::Serving => Life::Serving,
                _ => Life::Draining,
            },
            since: Timestamp::parse(&one.since),
        }));
    }
}
