//! The supervisors' half of `bindonce status`: asked at the control sockets beside the broker's.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use bindonce::Client;
use bindonce_core::duration;
use bindonce_core::name::Name;
use bindonce_supervisor as supervisor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::list;

/// How long a supervisor may take to answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(3);

/// What one supervisor tells, or why it tells nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Supervisor {
    pub(crate) service: String,
    #[serde(default)]
    pub(crate) pid: Option<u32>,
    #[serde(default)]
    pub(crate) generations: Vec<Generation>,
    /// Why it could not be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Everything else that it tells.
    #[serde(flatten)]
    pub(crate) more: serde_json::Map<String, Value>,
}

/// One generation, as its supervisor tells it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Generation {
    pub(crate) generation: u64,
    pub(crate) state: String,
    pub(crate) pid: Option<i32>,
    /// Seconds since its process was started.
    pub(crate) age: Option<u64>,
    pub(crate) version: Option<String>,
    pub(crate) connections: Option<u64>,
    /// Resident memory in bytes.
    pub(crate) memory: Option<u64>,
    #[serde(default)]
    pub(crate) oldest_sessions: Vec<Session>,
    #[serde(flatten)]
    pub(crate) more: serde_json::Map<String, Value>,
}

/// A session that keeps a generation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) source: String,
    pub(crate) frontend: String,
    pub(crate) server: String,
    /// Seconds.
    pub(crate) age: u64,
}

/// Why the supervisor of a service cannot be asked. What could not be connected to is no broker, and
/// the error must not say so.
pub(crate) fn missing(name: &Name, error: bindonce::Error) -> anyhow::Error {
    match &error {
        bindonce::Error::Connect { .. } if error.is_absence() => anyhow::anyhow!(
            "service \"{name}\" has no supervisor; start one with `bindonce run --name {name}`"
        ),
        bindonce::Error::Connect { path, source, .. } => anyhow::anyhow!(
            "the supervisor of \"{name}\" cannot be asked at {}: {source}",
            path.display()
        ),
        _ => anyhow::Error::new(error)
            .context(format!("the supervisor of \"{name}\" does not answer")),
    }
}

/// Asks every supervisor whose broker is, or was, at `socket`.
pub(crate) fn all(socket: &Path) -> Vec<Supervisor> {
    let places = supervisor::services(socket).into_iter().map(|service| {
        let control = supervisor::control_socket(socket, &service);
        (service.to_string(), control)
    });
    let running = places.filter(|(_, control)| control.exists());
    running.map(|(service, control)| ask(service, &control)).collect()
}

fn ask(service: String, control: &Path) -> Supervisor {
    let answer = || -> anyhow::Result<Supervisor> {
        let mut client = Client::connect_within(control, ANSWER)?;
        Ok(serde_json::from_value(client.call("status", &[0; 0])?)?)
    };
    answer().unwrap_or_else(|error| Supervisor {
        service,
        pid: None,
        generations: Vec::new(),
        error: Some(format!("{error:#}")),
        more: serde_json::Map::new(),
    })
}

/// What they tell, for people.
pub(crate) fn text(supervisors: &[Supervisor]) -> String {
    let mut text = String::new();
    for supervisor in supervisors {
        let name = &supervisor.service;
        // Writing to a String does not fail.
        let _ = match (&supervisor.error, supervisor.pid) {
            (Some(error), _) => {
                writeln!(text, "\nservice {name}: its supervisor does not answer: {error}")
            }
            (None, pid) => {
                let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
                writeln!(text, "\nservice {name}, supervisor pid {pid}")
            }
        };
        if supervisor.generations.is_empty() {
            continue;
        }
        let header = ["GENERATION", "PID", "STATE", "AGE", "CONNECTIONS", "MEMORY", "VERSION"];
        let mut rows = vec![header.map(str::to_owned)];
        rows.extend(supervisor.generations.iter().map(row));
        text.push_str(&list::columns(&rows));
        for generation in &supervisor.generations {
            for session in &generation.oldest_sessions {
                let age = duration::format(Duration::from_secs(session.age));
                let _ = writeln!(
                    text,
                    "generation {} is kept by {} on {} to {}, {age} old",
                    generation.generation, session.source, session.frontend, session.server
                );
            }
        }
    }
    text
}

fn row(generation: &Generation) -> [String; 7] {
    fn or_dash<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(|| "-".to_owned(), |value| value.to_string())
    }
    [
        generation.generation.to_string(),
        or_dash(generation.pid),
        generation.state.clone(),
        or_dash(generation.age.map(|age| duration::format(Duration::from_secs(age)))),
        or_dash(generation.connections),
        or_dash(generation.memory.map(|bytes| format!("{}K", bytes / 1024))),
        or_dash(generation.version.clone()),
    ]
}
