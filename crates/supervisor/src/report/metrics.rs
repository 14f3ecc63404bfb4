//! The supervisor's metrics for Prometheus: its generations, reloads, and failures. docs/metrics.md
//! lists every family.
//!
//! They are scraped on a UNIX socket in the service's directory, and, if requested, on a listener
//! of the broker. The supervisor claims that listener tentatively: it ends with this supervisor, so
//! that no client waits in the queue of a listener from which no process accepts. Errors here are
//! logged and do not affect the service.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bindonce::Claim;
use bindonce::aio::Client;
use bindonce_core::address::Address;
use bindonce_core::event;
use bindonce_core::generation::State;
use bindonce_core::listener::Listener;
use bindonce_daemon::openmetrics::{Family, Page, Value};
use bindonce_daemon::paced::Paced;
use bindonce_daemon::scrape::{Served, Subject};
use bindonce_daemon::{events, scrape, self_metrics};
use bindonce_sys::listen::open_control;
use bindonce_sys::{clock, process, worker};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::broker::{self, lease};
use crate::error::Error;
use crate::generations::counting;
use crate::generations::generation::Generation;
use crate::message::Message;
use crate::report::status_page::{self, Findings};
use crate::report::view::View;
use crate::settings::MetricsSettings;
use crate::supervisor::Supervisor;
use crate::tasks::spawn;
use bindonce_haproxy::counters;

/// For the socket in the service's directory, which only its user can reach.
const PRIVATE: Served = Served { is_tcp: false, status_page: scrape::StatusPage::Open };

/// The pause before another claim of a listener that could not be claimed.
const AGAIN: Duration = Duration::from_secs(5);
/// How long writing haproxy's counters into the page may take.
const WRITTEN: Duration = Duration::from_secs(5);

const GENERATIONS: Family =
    Family::gauge("bindonce_generations", "Generations that have not ended, by state.");
const SERVING: Family = Family::gauge(
    "bindonce_generation_serving",
    "The number of the generation that serves; 0 if none does.",
);
const AGE: Family = Family::gauge(
    "bindonce_generation_age_seconds",
    "Since the process of a generation was started.",
);
const CONNECTIONS: Family = Family::gauge(
    "bindonce_generation_connections",
    "Connections of a generation, as haproxy counts them; of one that drains, those that are left.",
);
const MEMORY: Family = Family::gauge(
    "bindonce_generation_resident_memory_bytes",
    "Memory of the first process of a generation that is resident.",
);
const LISTENERS: Family =
    Family::gauge("bindonce_generation_listeners", "Listeners that a generation was given.");
const RELOADS: Family =
    Family::counter("bindonce_reloads", "Reloads, and the first start, by how they ended.");
const FAILURES: Family =
    Family::counter("bindonce_reload_failures", "Reloads that failed, by cause.");
const RELOAD_TIME: Family = Family::histogram(
    "bindonce_reload_duration_seconds",
    "From the beginning of a reload, once none before it is in progress, to its end.",
);
const START_TIME: Family = Family::histogram(
    "bindonce_start_duration_seconds",
    "From the beginning of a start, with what is read and claimed, until the generation is ready.",
);
const HANDOVER_TIME: Family = Family::histogram(
    "bindonce_handover_duration_seconds",
    "From the readiness of a generation until it serves alone; with a pause new connections wait in the queue for this long.",
);
const LAST_RELOAD: Family = Family::gauge(
    "bindonce_last_reload_timestamp_seconds",
    "When the last reload ended, since the Unix epoch.",
);
const LAST_SUCCESSFUL: Family =
    Family::gauge("bindonce_last_reload_successful", "Whether the last reload ended well.");
const DEATHS: Family =
    Family::counter("bindonce_generation_deaths", "Generations that ended while they served.");
const RESTARTS: Family = Family::counter(
    "bindonce_restarts",
    "Starts that were planned after a serving generation had died.",
);
const ROLLBACKS: Family =
    Family::counter("bindonce_rollbacks", "Of these, the starts with an older configuration.");
const ESCALATED: Family = Family::counter(
    "bindonce_signals_escalated",
    "Signals that were sent because a generation did not behave as expected.",
);
const GHOSTS: Family = Family::counter(
    "bindonce_ghosts_removed",
    "Epoll entries of closed listeners that were removed.",
);
const REQUESTS_AFTER: Family = Family::counter(
    "bindonce_draining_requests",
    "Requests that came to generations after they had stopped accepting, on connections that they had.",
);
const BYTES_AFTER: Family = Family::counter(
    "bindonce_draining_sent_bytes",
    "Bytes that generations have sent after they had stopped accepting.",
);
const IDLE_CLOSED: Family = Family::counter(
    "bindonce_idle_connections_closed",
    "Idle connections of older generations that were closed for --drain-idle.",
);
const CUT: Family = Family::counter(
    "bindonce_connections_cut",
    "Connections that ended with the generations that had them.",
);
const UNKNOWN: Family = Family::counter(
    "bindonce_unknown_acceptors",
    "Times a process that is no generation was found with listeners of the service.",
);
const FOREIGN: Family =
    Family::gauge("bindonce_foreign_binds", "Addresses that the program has bound by itself.");
const UPGRADES: Family = Family::counter(
    "bindonce_supervisor_upgrades",
    "Times this process became another binary in place.",
);
const BROKER_UP: Family = Family::gauge(
    "bindonce_broker_available",
    "Whether the broker has the leases of this service.",
);
const BROKER_LOSSES: Family =
    Family::counter("bindonce_broker_losses", "Times the broker was lost.");

impl View<'_> {
    /// All metrics, as they are now.
    pub(crate) fn metrics(&self) -> Page {
        let mut page = Page::with_label("service", self.cx.settings.service.as_str());
        self_metrics(&mut page, env!("CARGO_PKG_VERSION"));
        self.generations_of(&mut page);
        self.reloads_of(&mut page);
        let count = |kind| self.cx.journal.count(kind);
        page.single(&DEATHS, count(event::Kind::GenerationDied));
        page.single(&RESTARTS, self.report.counts.restarts);
        page.single(&ROLLBACKS, count(event::Kind::Rollback));
        page.single(&ESCALATED, count(event::Kind::SignalEscalated));
        page.single(&GHOSTS, self.report.counts.ghosts_removed);
        page.single(&REQUESTS_AFTER, self.report.counts.requests_after);
        page.single(&BYTES_AFTER, self.report.counts.bytes_after);
        page.single(&IDLE_CLOSED, self.report.counts.idle_closed);
        page.single(&CUT, self.report.counts.connections_cut);
        page.single(&UNKNOWN, count(event::Kind::UnknownAcceptor));
        page.single(&FOREIGN, self.report.foreign.len());
        page.single(&UPGRADES, self.upgrades);
        page.single(&BROKER_UP, !self.broker_is_lost);
        page.single(&BROKER_LOSSES, count(event::Kind::BrokerLost));
        events(&mut page, &self.cx.journal);
        page
    }

    fn generations_of(&self, page: &mut Page) {
        let known: Vec<_> = self.timeline.generations().collect();
        let states = [State::Starting, State::Serving, State::Draining].map(|state| {
            let count = known.iter().filter(|(_, is)| *is == state).count();
            ([("state", state.to_string())], count)
        });
        page.family(&GENERATIONS, states);
        page.single(&SERVING, self.timeline.serving().map_or(0, |id| id.0));
        let running: Vec<_> = known
            .iter()
            .filter_map(|(id, state)| {
                let labels = [("generation", id.to_string()), ("state", state.to_string())];
                Some((labels, self.generations.get(id)?))
            })
            .collect();
        let mut each = |family: &Family, value: &dyn Fn(&Generation) -> Option<Value>| {
            let samples = running
                .iter()
                .filter_map(|(labels, generation)| Some((labels.clone(), value(generation)?)));
            page.family(family, samples);
        };
        each(&AGE, &|generation| {
            Some(Duration::from_millis(clock::now().0.saturating_sub(generation.start.at.0)).into())
        });
        each(&CONNECTIONS, &|generation| Some(generation.drain.connections?.into()));
        each(&MEMORY, &|generation| Some(process::memory(generation.pid())?.into()));
        each(&LISTENERS, &|generation| Some(generation.listeners.len().into()));
    }

    fn reloads_of(&self, page: &mut Page) {
        let measured = &self.report.measured;
        let failed: u64 = measured.failures.values().sum();
        let reloads =
            [("served", self.cx.journal.count(event::Kind::ReloadDone)), ("failed", failed)];
        page.family(
            &RELOADS,
            reloads.map(|(result, count)| ([("result", result.to_owned())], count)),
        );
        let failures = measured.failures.iter();
        page.family(
            &FAILURES,
            failures.map(|(cause, count)| ([("cause", (*cause).to_owned())], *count)),
        );
        page.single(&RELOAD_TIME, &measured.reload_time);
        page.single(&START_TIME, &measured.start_time);
        page.single(&HANDOVER_TIME, &measured.handover_time);
        if let Some((at, well)) = measured.last {
            page.single(&LAST_RELOAD, Duration::from_millis(at.0));
            page.single(&LAST_SUCCESSFUL, well);
        }
    }
}

impl Supervisor {
    /// Answers a scrape once the generations have reported their counters. Each is asked at most
    /// once for several scrapes, and none in a handover: clients wait for the answers of the older
    /// ones to the proof, and haproxy answers one question after the other.
    pub(crate) fn scraped(&mut self, reply: oneshot::Sender<String>) {
        let mut asked = JoinSet::new();
        let may_ask = self.handover.newer().is_none();
        for generation in self.generations.iter().filter(|_| may_ask) {
            // A generation that has not answered yet is starting.
            let admin = generation.cli.admin.clone().filter(|_| generation.cli.version.is_some());
            let (cx, id, pace) =
                (self.cx.clone(), generation.id, self.report.counting.pace(generation.id));
            if let Some(admin) = admin
                && pace.is_due()
            {
                asked.spawn_local(async move { counting::ask(&cx, id, &admin, &pace).await });
            }
        }
        let cx = self.cx.clone();
        spawn(async move {
            while asked.join_next().await.is_some() {}
            cx.send(Message::Page(reply));
        });
    }

    /// Answers a scrape now. A large configuration has many names and labels, so the page is
    /// written on another thread.
    pub(crate) fn answer_scrape(&mut self, reply: oneshot::Sender<String>) {
        let (mut page, totals) = (self.view().metrics(), self.report.counting.totals());
        let serving = self.timeline.serving().map(|id| id.0);
        let service = self.cx.settings.service.clone();
        spawn(async move {
            let written = worker::within(WRITTEN, move || {
                let label = ("service", service.as_str());
                counters::write(page.text(), &totals.sum(serving), label);
                page.finish()
            });
            // The client may have gone away; one that gets no page is told to ask again.
            let _ = reply.send(written.await.unwrap_or_default());
        });
    }
}

/// Serves scrapes for as long as the supervisor runs.
pub(crate) async fn keep(
    (beside, made_anew): (PathBuf, Rc<Notify>),
    at: MetricsSettings,
    socket: PathBuf,
    sender: mpsc::UnboundedSender<Message>,
) {
    let pages =
        Rc::new(Pages { socket, sender, status: Paced::default(), findings: Findings::default() });
    let once = async || {
        match open_control(&beside, 0o600) {
            Ok(opened) => export(opened.fd, PRIVATE, &pages).await,
            Err(error) => tracing::warn!("no metrics in the service's directory: {error}"),
        }
        std::future::pending::<()>().await;
    };
    let in_directory = async {
        loop {
            tokio::select! {
                () = once() => {}
                () = made_anew.notified() => {}
            }
        }
    };
    let on_listener = async {
        if let Some(listener) = &at.listener {
            serve(listener, at.status_page, &pages).await;
        }
    };
    tokio::join!(in_directory, on_listener);
}

/// Claims the listener, serves on it, and gives it to the next broker if one is lost.
async fn serve(listener: &Listener, opened: bool, pages: &Rc<Pages>) {
    let socket = pages.socket.as_path();
    let mut logged = false;
    let (client, fd) = loop {
        match claim(listener, socket).await {
            Ok(claimed) => break claimed,
            Err(error) if !logged => {
                logged = true;
                tracing::error!(
                    %listener,
                    "cannot claim the --metrics listener {listener} yet: {}",
                    error.with_hint()
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    };
    let ours = match fd.try_clone() {
        Ok(ours) => ours,
        Err(error) => {
            tracing::error!(%listener, %error, "cannot serve metrics on {listener}");
            return;
        }
    };
    tracing::info!(%listener, "metrics are exported on {listener}");
    let leased = lease::keep_one(client, listener, &ours, socket);
    let served = Served {
        is_tcp: matches!(listener.address, Address::Tcp(_)),
        status_page: scrape::StatusPage::on(&listener.address, opened),
    };
    tokio::join!(leased, export(fd, served, pages));
}

async fn claim(listener: &Listener, socket: &Path) -> Result<(Client, OwnedFd), Error> {
    let mut client = broker::connect(socket).await?;
    let claim = Claim::listen(listener.to_string()).tentative().changing();
    let fd = lease::claim_one(&mut client, claim).await?;
    Ok((client, fd))
}

/// The source of the pages.
struct Pages {
    socket: PathBuf,
    sender: mpsc::UnboundedSender<Message>,
    /// Paced, because each page asks the broker for its listeners.
    status: Paced,
    findings: Findings,
}

impl Pages {
    async fn of(&self, subject: Subject) -> String {
        match subject {
            Subject::Metrics => self.ask(Message::Scraped).await.unwrap_or_default(),
            Subject::Status => self.status.page(|| self.status_page()).await,
            Subject::Findings => self.findings.html(&self.socket).await,
        }
    }

    async fn status_page(&self) -> String {
        match self.ask(Message::LookedAt).await {
            Some(page) => status_page::with_listeners(page, &self.socket).await,
            None => String::new(),
        }
    }

    /// Asks the supervisor's loop, which alone has the data. The loop ends only with the process.
    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.sender.send(message(reply)).ok()?;
        answer.await.ok()
    }
}

async fn export(fd: OwnedFd, served: Served, pages: &Rc<Pages>) {
    let pages = Rc::clone(pages);
    let page = move |subject| {
        let pages = Rc::clone(&pages);
        async move { Some(pages.of(subject).await) }
    };
    if let Err(error) = scrape::serve(fd, served, page).await {
        tracing::warn!(%error, "metrics cannot be served");
    }
}
