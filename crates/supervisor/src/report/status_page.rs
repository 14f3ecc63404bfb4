//! The supervisor's status page: the data of `bindonce status` for one service, for a browser, and
//! on request the findings of `bindonce doctor`.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bindonce::aio::Client;
use bindonce_core::time::Timestamp;
use bindonce_daemon::status_page::{self, Generation, LISTENERS, Service, StatusPage};
use bindonce_sys::patience::timeout;
use bindonce_sys::{clock, process, subprocess, worker};
use bindonce_wire::result::ListenerInfo;
use tokio::sync::Mutex;

use crate::report::view::View;

/// How long the broker may take to list its listeners.
const BROKER: Duration = Duration::from_secs(3);
/// How long an examination may take.
const EXAMINATION: Duration = Duration::from_secs(8);
/// How long findings are reused: readers cause at most one examination in this time.
const AGAIN: Duration = Duration::from_secs(10);

impl View<'_> {
    /// The page without the listeners, which the broker knows.
    pub(crate) fn status_page(&self) -> StatusPage {
        let settings = &self.cx.settings;
        let generations = self.timeline.generations().map(|(id, state)| {
            let known = self.generations.get(&id);
            Generation {
                number: id.0,
                state: state.to_string(),
                pid: known.map(|it| it.pid()),
                since: known.map(|it| it.start.at),
                connections: known.and_then(|it| it.drain.connections),
                memory: known.and_then(|it| process::memory(it.pid())),
                requests_after: known.and_then(|it| it.drain.since).map(|it| it.requests),
            }
        });
        let service =
            Service { name: settings.service.to_string(), generations: generations.collect() };
        let counts = &self.report.counts;
        StatusPage {
            subject: format!("service {}", settings.service),
            about: format!(
                "supervisor {}, pid {}, of {}: {} reloads, {} failed, {} restarts",
                env!("CARGO_PKG_VERSION"),
                std::process::id(),
                settings.kind.name(),
                counts.reloads,
                counts.failed_reloads,
                counts.restarts,
            ),
            now: clock::now(),
            services: vec![service],
            problems: Vec::new(),
            listeners: Ok(Vec::new()),
            more_listeners: 0,
            events: self.cx.journal.after(0),
            examines: true,
        }
    }
}

/// Adds the service's listeners, as the broker lists them.
pub(crate) async fn with_listeners(mut page: StatusPage, socket: &Path) -> String {
    let service = page.services.first().map(|service| service.name.clone()).unwrap_or_default();
    let ask = async { Client::connect(socket).await?.list().await };
    page.listeners = match timeout(BROKER, ask).await {
        Ok(Ok(told)) => {
            let ours = |it: &ListenerInfo| {
                it.holders.iter().any(|holder| holder.service.as_deref() == Some(&*service))
            };
            let mut listeners: Vec<_> = told.listeners.into_iter().filter(ours).collect();
            page.more_listeners = listeners.len().saturating_sub(LISTENERS);
            listeners.truncate(LISTENERS);
            Ok(listeners)
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the broker at {} does not answer", socket.display())),
    };
    page.html()
}

/// The last findings of `bindonce doctor`, and when they were made.
#[derive(Debug, Default)]
pub(crate) struct Findings(Mutex<Option<(Instant, Timestamp, String)>>);

impl Findings {
    /// The findings as a page. One examination runs at a time, and none within ten seconds of
    /// another.
    pub(crate) async fn html(&self, socket: &Path) -> String {
        let mut last = self.0.lock().await;
        let known = last.take().filter(|(looked, ..)| looked.elapsed() < AGAIN);
        let (looked, time, text) = match known {
            Some(known) => known,
            None => (Instant::now(), clock::now(), examine(socket).await),
        };
        let page = status_page::findings(&text, time);
        *last = Some((looked, time, text));
        page
    }
}

/// The output of `bindonce doctor`, in a process of its own: it looks at every process of this
/// host, and nothing that it finds there may stop the supervisor.
async fn examine(socket: &Path) -> String {
    let mut command = Command::new("/proc/self/exe");
    command.arg("doctor").arg("--socket").arg(socket);
    let answer =
        worker::within(EXAMINATION + AGAIN, move || subprocess::answer(command, EXAMINATION));
    match answer.await {
        Ok(Ok(answer)) if !answer.stdout.is_empty() => {
            String::from_utf8_lossy(&answer.stdout).into_owned()
        }
        Ok(Ok(answer)) => format!("bindonce doctor: {}", answer.complaint()),
        Ok(Err(error)) => format!("bindonce doctor: {error}"),
        Err(error) => format!("bindonce doctor: {error}"),
    }
}
