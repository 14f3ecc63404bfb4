//! What systemd is told (sd_notify(3)): READY, RELOADING, STOPPING, a STATUS line, and the
//! watchdog's keep-alive, which comes from the supervisor's own loop, so that a loop that
//! hangs is noticed.

use std::time::{Duration, Instant};

use bindonce_sys::notify;

/// The way to tell systemd; does nothing where nobody listens.
#[derive(Debug, Default)]
pub(crate) struct Announcer {
    /// How often the keep-alive is due.
    keep_alive: Option<Duration>,
    /// When it was last told.
    told: Option<Instant>,
    reloading: bool,
}

impl Announcer {
    /// Reads what systemd asks of this process.
    pub(crate) fn new() -> Self {
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        // Twice in the time allowed, as sd_watchdog_enabled(3) advises.
        let keep_alive = number("WATCHDOG_USEC").filter(|_| for_us);
        Self { keep_alive: keep_alive.map(|us| Duration::from_micros(us / 2)), ..Self::default() }
    }

    /// How long the loop may sleep before it must call [`Announcer::alive`].
    pub(crate) fn keep_alive(&self) -> Option<Duration> {
        self.keep_alive
    }

    /// The loop turns; told to systemd no more often than it wants to know.
    pub(crate) fn alive(&mut self) {
        let Some(interval) = self.keep_alive else { return };
        if self.told.is_none_or(|told| told.elapsed() >= interval / 2) {
            self.told = Some(Instant::now());
            send("WATCHDOG=1");
        }
    }

    /// A reload has begun.
    pub(crate) fn reloading(&mut self) {
        self.reloading = true;
        let now = monotonic().as_micros();
        send(&format!("RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS=reloading"));
    }

    /// Something serves, or serves on after a reload that failed.
    pub(crate) fn ready(&mut self, status: &str) {
        self.reloading = false;
        send(&format!("READY=1\nSTATUS={status}"));
    }

    /// Nothing serves, for the reason in `status`; a reload in progress is over.
    pub(crate) fn troubled(&mut self, status: &str) {
        let ready = if std::mem::take(&mut self.reloading) { "READY=1\n" } else { "" };
        send(&format!("{ready}STATUS={status}"));
    }

    /// The service is being shut down.
    pub(crate) fn stopping(&self) {
        send("STOPPING=1\nSTATUS=draining");
    }
}

fn send(state: &str) {
    if let Err(error) = notify::send(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// The clock that systemd compares MONOTONIC_USEC with.
fn monotonic() -> Duration {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    nix::time::clock_gettime(clock).map(Duration::from).unwrap_or_default()
}
