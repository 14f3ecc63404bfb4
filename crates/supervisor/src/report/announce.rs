//! What systemd is told (sd_notify(3)): READY, RELOADING, STOPPING, a STATUS line, and the
//! watchdog's keep-alive, which comes from the supervisor's own loop, so that a loop that
//! hangs is noticed.

use std::time::{Duration, Instant};

use bindonce_daemon::notify;

/// The way to tell systemd; does nothing where nobody listens.
#[derive(Debug, Default)]
pub(crate) struct Announcer {
    /// How often the keep-alive is due: how long the loop may sleep before it must call [`Announcer::alive`].
    pub(crate) keep_alive: Option<Duration>,
    /// When it was last told.
    announced: Option<Instant>,
    reloading: bool,
    /// Its messages are those of haproxy's own master, from 3.0 on byte for byte (`-Ws`).
    as_haproxy: bool,
}

impl Announcer {
    /// Reads what systemd asks of this process.
    pub(crate) fn new(as_haproxy: bool) -> Self {
        Self { keep_alive: notify::watchdog(), as_haproxy, ..Self::default() }
    }

    /// The loop turns; told to systemd no more often than it wants to know.
    pub(crate) fn alive(&mut self) {
        let Some(interval) = self.keep_alive else { return };
        if self.announced.is_none_or(|announced| announced.elapsed() >= interval / 2) {
            self.announced = Some(Instant::now());
            notify::tell("WATCHDOG=1");
        }
    }

    /// A reload has begun.
    pub(crate) fn reloading(&mut self) {
        self.reloading = true;
        let now = monotonic().as_micros();
        notify::tell(&if self.as_haproxy {
            format!("RELOADING=1\nSTATUS=Reloading Configuration.\nMONOTONIC_USEC={now}\n")
        } else {
            format!("RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS=reloading")
        });
    }

    /// What starts needs more time, this much from now on.
    pub(crate) fn more_time(&self, time: Duration) {
        notify::tell(&format!("EXTEND_TIMEOUT_USEC={}", time.as_micros()));
    }

    /// Something serves, or serves on after a reload that failed.
    pub(crate) fn ready(&mut self, status: &str) {
        self.reloading = false;
        notify::tell(&if self.as_haproxy {
            format!("READY=1\nMAINPID={}\nSTATUS=Ready.\n", std::process::id())
        } else {
            format!("READY=1\nSTATUS={status}")
        });
    }

    /// Nothing serves, for the reason in `status`; a reload in progress is over.
    pub(crate) fn troubled(&mut self, status: &str) {
        let reloading = std::mem::take(&mut self.reloading);
        match (self.as_haproxy, reloading) {
            (true, true) => notify::tell("READY=1\nSTATUS=Reload failed!\n"),
            // 3.0 is silent at a first start that fails. 3.2 calls itself ready then, and ends: that would be no help.
            (true, false) => {}
            (false, true) => notify::tell(&format!("READY=1\nSTATUS={status}")),
            (false, false) => notify::tell(&format!("STATUS={status}")),
        }
    }

    /// The service is being shut down.
    pub(crate) fn stopping(&self) {
        notify::tell(if self.as_haproxy { "STOPPING=1" } else { "STOPPING=1\nSTATUS=draining" });
    }
}

/// The clock that systemd compares MONOTONIC_USEC with.
fn monotonic() -> Duration {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    nix::time::clock_gettime(clock).map(Duration::from).unwrap_or_default()
}
