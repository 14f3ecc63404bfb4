//! The supervisors' half of `bindonce status`, asked at the control sockets beside the broker's.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use bindonce::Client;
use bindonce_core::duration;
use bindonce_core::name::{Name, service_option};
use bindonce_core::text::count;
use bindonce_doctor::{Answered, Answers};
use bindonce_supervisor as supervisor;
use bindonce_supervisor::replies::{GenerationStatus, Status};
use bindonce_sys::exchange::connect;
use serde::{Deserialize, Serialize};

use super::list;
use crate::unanswered::Unanswered;

/// How long a supervisor may take to answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(3);

/// What one supervisor reports, or why it reports nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Supervisor {
    Answers(Box<Status>),
    Silent(Silent),
}

impl Supervisor {
    pub(crate) fn service(&self) -> &str {
        match self {
            Self::Answers(status) => &status.service,
            Self::Silent(silent) => &silent.service,
        }
    }
}

/// A supervisor that could not be asked. Its JSON has the members of [`Status`] that readers use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Silent {
    pub(crate) service: String,
    #[serde(default)]
    pid: Option<u32>,
    #[serde(default)]
    generations: [GenerationStatus; 0],
    /// Why it could not be asked.
    pub(crate) error: String,
}

/// Explains why the supervisor of a service cannot be asked, and which ones can. The error must not
/// say that a broker is missing: this socket is not a broker's.
pub(crate) fn missing(socket: &Path, name: &Name, error: bindonce::Error) -> anyhow::Error {
    match &error {
        bindonce::Error::Connect { .. } if error.is_absence() => {
            let runs =
                |service: &Name| connect(&supervisor::control_socket(socket, service)).is_ok();
            let running = supervisor::services(socket).into_iter().filter(runs);
            let running = running.map(|service| format!("\"{service}\"")).collect::<Vec<_>>();
            let others = if running.is_empty() {
                String::new()
            } else {
                format!("give --name one that has ({}), or ", running.join(", "))
            };
            let named = service_option(name);
            anyhow::anyhow!(
                "service \"{name}\" has no supervisor; {others}start one with `bindonce run{named} -- haproxy -f FILE`"
            )
        }
        bindonce::Error::Connect { path, source, .. } => {
            let who = match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "\nhint: run this as root, or as the user that the supervisor runs as"
                }
                _ => "",
            };
            anyhow::anyhow!(
                "the supervisor of \"{name}\" cannot be asked at {}: {source}{who}",
                path.display()
            )
        }
        _ => anyhow::Error::new(Unanswered(error))
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
    let answer = || -> anyhow::Result<Box<Status>> {
        let mut client = Client::connect_within(control, ANSWER).map_err(Unanswered)?;
        Ok(serde_json::from_value(client.call("status", &[0; 0]).map_err(Unanswered)?)?)
    };
    answer().map(Supervisor::Answers).unwrap_or_else(|error| {
        let error = format!("{error:#}");
        Supervisor::Silent(Silent { service, pid: None, generations: [], error })
    })
}

/// What the generations of every service report, for doctor.
pub(crate) fn answers(socket: &Path) -> Vec<Answers> {
    /// Time limits for one supervisor and for all together: doctor does not wait for a slow one.
    const ONE: Duration = Duration::from_millis(100);
    const ALL: Duration = Duration::from_millis(150);
    let begun = Instant::now();
    let places = supervisor::services(socket).into_iter();
    let places = places.map(|service| (supervisor::control_socket(socket, &service), service));
    let ask = |control: &Path| -> anyhow::Result<Status> {
        let left = ALL.saturating_sub(begun.elapsed()).min(ONE).max(Duration::from_millis(1));
        let mut client = Client::connect_within(control, left).map_err(Unanswered)?;
        Ok(serde_json::from_value(client.call("state", &[0; 0]).map_err(Unanswered)?)?)
    };
    let told = places.filter(|(control, _)| control.exists()).map(|(control, service)| {
        let service = service.to_string();
        match ask(&control) {
            Ok(status) => Answers { service, told: Ok(answered(&status)) },
            Err(error) => Answers { service, told: Err(format!("{error:#}")) },
        }
    });
    told.collect()
}

fn answered(status: &Status) -> Answered {
    let draining = status.generations.iter().filter(|one| one.state == "draining");
    let connections = draining.clone().filter_map(|one| one.drain.connections).sum();
    let pids = draining.filter_map(|one| one.pid).collect();
    Answered { lately: status.lately, pids, connections }
}

/// The supervisors' reports, for people.
pub(crate) fn text(supervisors: &[Supervisor]) -> String {
    let mut text = String::new();
    for supervisor in supervisors {
        let status = match supervisor {
            Supervisor::Answers(status) => status,
            Supervisor::Silent(Silent { service, error, .. }) => {
                // Writing to a String does not fail.
                let _ =
                    writeln!(text, "\nservice {service}: its supervisor does not answer: {error}");
                continue;
            }
        };
        let _ = writeln!(text, "\nservice {}, supervisor pid {}", status.service, status.pid);
        let percent = status.lately.draining_percent();
        if percent > 0 {
            let _ = writeln!(text, "answered by draining generations lately: {percent} %");
        }
        if let waiting @ 1.. = status.reloads_waiting {
            let plural = if waiting == 1 { "" } else { "s" };
            let _ = writeln!(text, "reload{plural} waiting for the next start: {waiting}");
        }
        if !status.unseen.is_empty() {
            text.push_str(&unseen(&status.unseen));
        }
        if status.generations.is_empty() {
            continue;
        }
        let header =
            ["GENERATION", "PID", "STATE", "AGE", "START", "CONNECTIONS", "MEMORY", "VERSION"];
        let mut rows = vec![header.map(str::to_owned)];
        rows.extend(status.generations.iter().map(row));
        text.push_str(&list::columns(&rows));
        for generation in &status.generations {
            if let Some(requests @ 1..) = generation.drain.requests_after {
                let bytes = generation.drain.bytes_after.unwrap_or_default();
                let _ = writeln!(
                    text,
                    "generation {} has taken {} and sent {bytes} bytes since it stopped accepting",
                    generation.generation,
                    count(requests, "request")
                );
            }
            for session in &generation.drain.oldest_sessions {
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

/// The line about addresses that were bound without an intercepted call.
pub(crate) fn unseen(addresses: &[String]) -> String {
    let addresses = addresses.join(", ");
    format!(
        "not the broker's socket, since it was bound without a call that could be intercepted, as by io_uring: {addresses}; let the \
         program use system calls, or set sysctl kernel.io_uring_disabled=2\n"
    )
}

fn row(generation: &GenerationStatus) -> [String; 8] {
    fn or_dash<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(|| "-".to_owned(), |value| value.to_string())
    }
    [
        generation.generation.to_string(),
        or_dash(generation.pid),
        generation.state.clone(),
        or_dash(generation.age.map(|age| duration::format(Duration::from_secs(age)))),
        or_dash(generation.start_ms.map(|took| duration::format(Duration::from_millis(took)))),
        or_dash(generation.drain.connections),
        or_dash(generation.memory.map(|bytes| format!("{}K", bytes / 1024))),
        or_dash(generation.version.clone()),
    ]
}
