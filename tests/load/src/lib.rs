//! A load generator that proves something: each client opens a new TCP
//! connection for every request, without pause, and every connection is
//! accounted for by what happened to it. Each answer may carry a token (the
//! generation that gave it), and the report then says whether any client got an
//! answer of an older generation after a newer one had answered, on one clock.
//!
//! Failures measured here are never the client's own: source addresses are
//! spread over 127.0.0.0/8 so that ports do not run out, the server closes first
//! (so the client holds no TIME_WAIT), and what the client's own system refuses
//! is counted apart. Only loopback targets are taken.

#![forbid(unsafe_code)]

mod connection;
mod latency;
mod report;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use latency::Latency;
pub use report::{Failure, Report, TokenCount};

/// The most clients that one load runs with.
pub const MAX_CLIENTS: usize = 1000;

/// The longest that a load runs, whatever it was told.
pub const MAX_DURATION: Duration = Duration::from_secs(3600);

/// What to do. Fields are public; [`Plan::new`] gives the defaults.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where to connect: a loopback address.
    pub target: SocketAddr,
    /// How many clients, each on a thread of its own; 1 to [`MAX_CLIENTS`].
    pub clients: usize,
    /// How long one request may take from connect to the last byte.
    pub timeout: Duration,
    /// The most connections per second of all clients together, or none for no limit.
    pub rate: Option<u32>,
    /// The most connections of all clients together, or none for no limit.
    pub connections: Option<u64>,
    /// The value of the Host header.
    pub host: String,
    /// The response header that carries the token, matched without regard to case.
    pub token_header: String,
}

impl Plan {
    /// Twenty clients without pause, 10 s for each request, the token in `x-generation`.
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            clients: 20,
            timeout: Duration::from_secs(10),
            rate: None,
            connections: None,
            host: "localhost".to_owned(),
            token_header: "x-generation".to_owned(),
        }
    }

    /// Starts the clients. Fails with `InvalidInput` when the target is not
    /// loopback or the number of clients is out of range.
    pub fn start(self) -> io::Result<Load> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
        if !self.target.ip().is_loopback() {
            return Err(invalid(format!(
                "{} is not a loopback address: this load is for tests",
                self.target
            )));
        }
        if !(1..=MAX_CLIENTS).contains(&self.clients) {
            return Err(invalid(format!("{} clients: choose 1 to {MAX_CLIENTS}", self.clients)));
        }
        let shared = Arc::new(Shared {
            plan: self,
            start: Instant::now(),
            stop: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            progress: Mutex::new(Progress::default()),
            changed: Condvar::new(),
        });
        let clients = (0..shared.plan.clients)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("client-{index}"))
                    .stack_size(256 * 1024)
                    .spawn(move || {
                        let tally = connection::client(&shared, index);
                        shared.ended();
                        tally
                    })
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Load { shared, clients })
    }
}

/// What the clients share.
pub(crate) struct Shared {
    pub(crate) plan: Plan,
    pub(crate) start: Instant,
    stop: AtomicBool,
    begun: AtomicU64,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    answers: u64,
    newest: Option<String>,
    ended: usize,
}

impl Shared {
    /// Takes the right to open one more connection, at its time if there is a
    /// rate. False when the load is over.
    pub(crate) fn begin(&self) -> bool {
        let over = || self.stop.load(Ordering::Relaxed) || self.start.elapsed() > MAX_DURATION;
        if over() {
            return false;
        }
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        if self.plan.connections.is_some_and(|limit| number >= limit) {
            return false;
        }
        if let Some(rate) = self.plan.rate.filter(|rate| *rate > 0) {
            let due = self.start + Duration::from_secs_f64(number as f64 / f64::from(rate));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        !over()
    }

    fn ended(&self) {
        if let Ok(mut progress) = self.progress.lock() {
            progress.ended += 1;
        }
        self.changed.notify_all();
    }

    /// Says that an answer came, for those who wait in [`Load::wait_for`].
    pub(crate) fn answered(&self, token: Option<&str>) {
        if let Ok(mut progress) = self.progress.lock() {
            progress.answers += 1;
            if let Some(token) = token.filter(|token| progress.newest.as_deref() != Some(token)) {
                progress.newest = Some(token.to_owned());
            }
            self.changed.notify_all();
        }
    }
}

/// A load that runs. Dropping it stops the clients.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<report::Tally>>,
}

impl Load {
    /// Waits until `answers` more good answers have come; false at the deadline.
    pub fn wait_for(&self, answers: u64, deadline: Duration) -> bool {
        let Ok(progress) = self.shared.progress.lock() else {
            return false;
        };
        let goal = progress.answers + answers;
        self.shared
            .changed
            .wait_timeout_while(progress, deadline, |progress| progress.answers < goal)
            .is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    /// Waits until the latest answer carries this token; false at the deadline.
    pub fn wait_for_token(&self, token: &str, deadline: Duration) -> bool {
        let Ok(progress) = self.shared.progress.lock() else {
            return false;
        };
        self.shared
            .changed
            .wait_timeout_while(progress, deadline, |progress| {
                progress.newest.as_deref() != Some(token)
            })
            .is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    /// How long the load has been running, on the clock of its report.
    pub fn elapsed(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// Waits until every client has ended, because the number of connections is
    /// reached or a [`Stopper`] said so; false at the deadline.
    pub fn wait_over(&self, deadline: Duration) -> bool {
        let Ok(progress) = self.shared.progress.lock() else {
            return false;
        };
        self.shared
            .changed
            .wait_timeout_while(progress, deadline, |progress| progress.ended < self.clients.len())
            .is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    /// A handle to end the load from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.shared))
    }

    /// Lets every request in progress end, and tells what happened to each connection.
    pub fn stop(mut self) -> Report {
        self.halt()
    }

    fn halt(&mut self) -> Report {
        self.shared.stop.store(true, Ordering::Relaxed);
        let tallies = self.clients.drain(..).filter_map(|client| client.join().ok()).collect();
        Report::from_tallies(tallies, self.shared.start.elapsed())
    }
}

/// Ends a load from another thread.
pub struct Stopper(Arc<Shared>);

impl Stopper {
    /// Lets the clients end after the request they are at.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.halt();
    }
}
