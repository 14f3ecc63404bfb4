//! What the broker knows, where there is one.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use bindonce::{Client, HolderInfo, State, StatusResult};
use bindonce_core::diagnosis::{Generation, Held, Life, Look, Problem, User};
use bindonce_core::time::Timestamp;

/// How long it may take to answer; one that hangs must not hide everything else.
const ANSWER: Duration = Duration::from_secs(1);

/// Asks the broker. Without one there is nothing to know.
pub(super) fn ask(socket: &Path) -> Result<Option<StatusResult>, String> {
    let status = Client::connect_within(socket, ANSWER).and_then(|mut client| client.status());
    match status {
        Ok(status) => Ok(Some(status)),
        Err(bindonce::Error::Connect { source, .. })
            if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(error) => {
            let error = anyhow::Error::from(error);
            Err(format!("what the broker at {} knows: {error:#}", socket.display()))
        }
    }
}

/// Adds what it said, asked before and after everything else was looked at: a service whose
/// generations are not the same in both was in the middle of something.
pub(super) fn tell(
    before: Option<&StatusResult>,
    after: Result<Option<StatusResult>, String>,
    look: &mut Look,
) {
    match after {
        Ok(Some(status)) => {
            add(&status, look);
            let generations = |status: &StatusResult, name: &str| {
                let known = status.services.iter().find(|service| service.name == name);
                known.map(|service| {
                    let lives = service.generations.iter().map(|one| (one.generation, one.state));
                    lives.collect::<Vec<_>>()
                })
            };
            let names = status.services.iter().map(|service| &service.name);
            let changed = names.filter(|name| {
                before.is_none_or(|old| generations(old, name) != generations(&status, name))
            });
            look.changing = changed.cloned().collect();
        }
        Ok(None) => {}
        Err(unseen) => look.unseen.push(unseen),
    }
}

fn user(holder: &HolderInfo) -> User {
    let generation = holder.service.clone().zip(holder.generation);
    User { pid: holder.pid, generation }
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
            users: listener.holders.iter().map(user).collect(),
        })
        .collect();
    look.problems = status
        .problems
        .iter()
        .map(|one| Problem {
            kind: one.kind.clone(),
            subject: one.subject.clone(),
            message: one.message.clone(),
            hint: one.hint.clone(),
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
            listeners: one.listeners.clone(),
            since: Timestamp::parse(&one.since),
        }));
    }
}
