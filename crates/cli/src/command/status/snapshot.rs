//! The status of the broker and the supervisors, as text and as JSON.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bindonce::{Client, StatusResult};
use bindonce_core::text::count;

use crate::command::list;
use crate::command::supervisors::{self, Supervisor};

/// What the broker and the supervisors reported at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Where the broker should be.
    pub(crate) socket: PathBuf,
    /// Kept as a result: the supervisors' half matters most when the broker is gone.
    pub(crate) broker: Result<StatusResult, bindonce::Error>,
    /// Every supervisor whose broker is, or was, there.
    pub(crate) supervisors: Vec<Supervisor>,
}

impl Snapshot {
    /// Asks the broker and all supervisors. Takes seconds if one hangs.
    pub(crate) fn take(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            supervisors: supervisors::all(socket),
            broker: Client::connect_within(socket, supervisors::ANSWER)
                .and_then(|mut client| client.status()),
        }
    }

    /// Why the broker's half is missing, if it is.
    pub(crate) fn no_broker(&self) -> Option<String> {
        let error = self.broker.as_ref().err()?;
        let socket = self.socket.display();
        Some(match error.is_absence() {
            true => format!("no broker answers at {socket}, waiting"),
            false => format!("the broker at {socket} does not answer: {}, waiting", chain(error)),
        })
    }

    pub(super) fn json(&self) -> anyhow::Result<serde_json::Value> {
        let mut all = match &self.broker {
            Ok(status) => serde_json::to_value(status)?,
            Err(_) => serde_json::json!({}),
        };
        all["supervisors"] = serde_json::to_value(&self.supervisors)?;
        Ok(all)
    }

    pub(super) fn text(&self) -> String {
        let broker = self.broker.as_ref().map(text).unwrap_or_default();
        broker + &supervisors::text(&self.supervisors)
    }
}

/// An error with its cause.
pub(crate) fn chain(error: &bindonce::Error) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// The broker's half of the status, for people.
pub(crate) fn text(status: &StatusResult) -> String {
    let broker = &status.broker;
    let mut text = format!(
        "broker {} pid {} on {} since {}\n{}, {}, at most {} descriptors\n",
        broker.version,
        broker.pid,
        broker.socket,
        list::seconds(&broker.since),
        count(broker.listeners, "listener"),
        count(broker.connections, "connection"),
        broker.descriptor_limit,
    );
    if !status.listeners.is_empty() {
        // Writing to a String does not fail.
        let _ = write!(text, "\n{}", list::table(&status.listeners));
    }
    text += &list::problems(&status.problems);
    let header = ["SERVICE", "GENERATION", "PID", "STATE", "LISTENERS", "SINCE"];
    let mut rows = vec![header.map(str::to_owned)];
    for service in &status.services {
        rows.extend(service.generations.iter().map(|generation| {
            [
                service.name.clone(),
                generation.generation.to_string(),
                generation.pid.to_string(),
                generation.state.to_string(),
                generation.listeners.len().to_string(),
                list::seconds(&generation.since),
            ]
        }));
    }
    if rows.len() > 1 {
        let _ = write!(text, "\n{}", list::columns(&rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_people_see() {
        let at = "2026-01-02T03:04:05.678Z";
        let broker = json!({
            "broker": {"pid": 700, "version": "0.2.0", "since": at, "socket": "/run/bindonce/bindonce.sock",
                       "listeners": 1, "connections": 3, "descriptor_limit": 524_288},
            "listeners": [{"name": "web", "address": "0.0.0.0:80", "bound": "0.0.0.0:80", "options": {},
                "backlog": 128, "queue": 0, "listening": true, "inode": 7, "since": at,
                "holders": [{"service": "edge", "generation": 1, "pid": 10, "uid": 0, "since": at}]}],
            "services": [{"name": "edge", "generations": [{"generation": 1, "pid": 10,
                "state": "serving", "since": at, "listeners": ["web"]}]}],
        });
        let supervisor = json!({
            "service": "haproxy", "pid": 8, "reloads_waiting": 2, "generations": [
                {"generation": 2, "state": "draining", "pid": 11, "age": 3700, "version": "2.6.12",
                 "connections": 1, "requests_after": 70, "bytes_after": 9100, "memory": 8_388_608,
                 "oldest_sessions": [{"source": "192.0.2.1:4711", "frontend": "web", "server": "app1", "age": 61}]},
                {"generation": 3, "state": "serving", "pid": 12, "start_ms": 61_500},
            ],
        });
        let error = "the supervisor did not finish `status` within 3s";
        let silent = json!({ "service": "mail", "error": error });
        let mut snapshot = Snapshot {
            socket: "/run/bindonce/bindonce.sock".into(),
            broker: Ok(serde_json::from_value(broker).expect("a status")),
            supervisors: serde_json::from_value(json!([supervisor, silent])).expect("supervisors"),
        };
        insta::assert_snapshot!("status", snapshot.text());
        snapshot.broker = Err(bindonce::Error::Protocol("nonsense".to_owned()));
        let missing = snapshot.no_broker().unwrap_or_default();
        insta::assert_snapshot!("status-without-broker", format!("{missing}\n{}", snapshot.text()));
    }
}
