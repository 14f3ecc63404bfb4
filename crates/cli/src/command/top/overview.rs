//! What the screen shows of a snapshot: the broker, its listeners, and every service with its
//! generations, from the supervisor or from the broker.

use std::collections::BTreeMap;

use bindonce::{BrokerInfo, ListenerInfo, ServiceInfo, StatusResult};
use bindonce_core::time::Timestamp;
use bindonce_supervisor::replies::GenerationStatus;

use crate::command::status::{self, Snapshot};
use crate::command::supervisors::{Silent, Supervisor};

/// What was reported at one moment.
#[derive(Debug)]
pub(super) struct Overview {
    /// The broker and its listeners, or why it does not answer.
    pub(super) broker: Result<(BrokerInfo, Vec<ListenerInfo>), String>,
    /// Sorted by name.
    pub(super) services: Vec<Service>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) supervision: Supervision,
    /// Oldest first.
    pub(super) generations: Vec<Generation>,
}

/// Which supervisor a service has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Supervision {
    /// A supervisor, with its own counts.
    By { pid: u32, program: String, reloads: u64, failed: u64, draining: u64 },
    /// A supervisor that does not answer, and why.
    Silent(String),
    /// None: the program has joined the broker itself.
    Nobody,
}

/// One start of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) state: String,
    pub(super) pid: Option<i64>,
    pub(super) started: Option<Timestamp>,
    pub(super) connections: Option<u64>,
    /// Resident memory in bytes.
    pub(super) memory: Option<u64>,
    pub(super) version: Option<String>,
    /// The sessions that keep it draining, oldest first.
    pub(super) kept_by: Vec<String>,
}

impl From<Snapshot> for Overview {
    fn from(snapshot: Snapshot) -> Self {
        let Snapshot { broker, supervisors, .. } = snapshot;
        let (broker, joined) = match broker {
            Ok(StatusResult { broker, listeners, services, .. }) => {
                (Ok((broker, listeners)), services)
            }
            Err(error) => (Err(status::chain(&error)), Vec::new()),
        };
        let mut services: BTreeMap<String, Service> =
            joined.iter().map(|service| (service.name.clone(), Service::joined(service))).collect();
        for supervisor in supervisors {
            let known = services.remove(supervisor.service());
            let service = Service::supervised(supervisor, known);
            services.insert(service.name.clone(), service);
        }
        Self { broker, services: services.into_values().collect() }
    }
}

impl Service {
    /// As its supervisor reports; if that does not answer, with what the broker knows.
    fn supervised(supervisor: Supervisor, known: Option<Self>) -> Self {
        match supervisor {
            Supervisor::Silent(Silent { service: name, error, .. }) => {
                let generations = known.map(|known| known.generations).unwrap_or_default();
                Self { name, supervision: Supervision::Silent(error), generations }
            }
            Supervisor::Answers(status) => Self {
                name: status.service,
                supervision: Supervision::By {
                    pid: status.pid,
                    program: status.program,
                    reloads: status.counts.reloads,
                    failed: status.counts.failed_reloads,
                    draining: status.lately.draining_percent(),
                },
                generations: status.generations.into_iter().map(Generation::from).collect(),
            },
        }
    }

    fn joined(service: &ServiceInfo) -> Self {
        let generations = service.generations.iter().map(|generation| Generation {
            number: generation.generation,
            state: generation.state.to_string(),
            pid: Some(i64::from(generation.pid)),
            started: Timestamp::parse(&generation.since),
            ..Generation::default()
        });
        Self {
            name: service.name.clone(),
            supervision: Supervision::Nobody,
            generations: generations.collect(),
        }
    }
}

impl From<GenerationStatus> for Generation {
    fn from(reported: GenerationStatus) -> Self {
        let kept_by = reported.drain.oldest_sessions.iter().map(|session| {
            format!("{} on {} to {}", session.source, session.frontend, session.server)
        });
        Self {
            number: reported.generation,
            started: reported.since.as_deref().and_then(Timestamp::parse),
            kept_by: kept_by.collect(),
            state: reported.state,
            pid: reported.pid.map(i64::from),
            connections: reported.drain.connections,
            memory: reported.memory,
            version: reported.version,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bindonce::Error;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_is_told_by_its_supervisor_else_by_the_broker() {
        let broker = json!({
            "broker": {"pid": 7, "version": "1", "since": "2026-01-01T00:00:00Z", "socket": "/s",
                       "listeners": 0, "connections": 2, "descriptor_limit": 1024},
            "listeners": [],
            "services": [
                {"name": "silent", "generations": [{"generation": 3, "pid": 30, "state": "serving",
                    "since": "2026-01-01T00:00:01Z", "listeners": []}]},
                {"name": "web", "generations": [{"generation": 1, "pid": 10, "state": "serving",
                    "since": "2026-01-01T00:00:01Z", "listeners": []}]},
                {"name": "joined", "generations": []},
            ],
        });
        let web = json!({
            "service": "web", "pid": 8, "program": "haproxy", "reloads": 4, "failed_reloads": 1, "lately": {"requests": 100, "draining_requests": 7},
            "generations": [{"generation": 2, "state": "draining", "pid": 11, "age": 60,
                "since": "2026-01-01T00:00:01Z", "version": "2.6.12", "connections": 1, "memory": 1024,
                "oldest_sessions": [{"source": "::1:9", "frontend": "f", "server": "s", "age": 3}]}],
        });
        let silent = json!({ "service": "silent", "error": "no answer" });
        let snapshot = Snapshot {
            socket: PathBuf::from("/s"),
            broker: Ok(serde_json::from_value(broker).expect("a status")),
            supervisors: vec![
                serde_json::from_value(web).expect("a supervisor"),
                serde_json::from_value(silent).expect("a supervisor"),
            ],
        };
        let services = Overview::from(snapshot).services;
        let names: Vec<_> = services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["joined", "silent", "web"]);
        assert_eq!(services[0].supervision, Supervision::Nobody);
        assert_eq!(services[1].supervision, Supervision::Silent("no answer".to_owned()));
        assert_eq!(services[1].generations[0].number, 3);
        let by = Supervision::By {
            pid: 8,
            program: "haproxy".into(),
            reloads: 4,
            failed: 1,
            draining: 7,
        };
        assert_eq!(services[2].supervision, by);
        let generation = &services[2].generations[0];
        assert_eq!(
            (generation.number, generation.started),
            (2, Some(Timestamp(1_767_225_601_000)))
        );
        assert_eq!(generation.kept_by, ["::1:9 on f to s"]);
    }

    #[test]
    fn without_a_broker_the_supervisors_half_is_there() {
        let web = json!({ "service": "web", "pid": 8, "generations": [] });
        let seen = Overview::from(Snapshot {
            socket: PathBuf::from("/s"),
            broker: Err(Error::Protocol("nonsense".to_owned())),
            supervisors: vec![serde_json::from_value(web).expect("a supervisor")],
        });
        assert!(seen.broker.expect_err("an error").contains("nonsense"));
        assert_eq!(seen.services.len(), 1);
    }
}
