//! Messages to systemd (sd_notify(3)): READY, RELOADING, STOPPING, a STATUS line, and the
//! watchdog's keep-alive. The supervisor's own loop sends the keep-alive, so that a hanging loop is
//! noticed.

use std::time::{Duration, Instant};

use bindonce_daemon::notify;

/// Sends messages to systemd; does nothing where systemd does not listen.
#[derive(Debug, Default)]
pub(crate) struct Announcer {
    /// The interval of the keep-alive: how long the loop may sleep before it must call
    /// [`Announcer::alive`].
    pub(crate) keep_alive: Option<Duration>,
    /// When the last keep-alive was sent.
    announced: Option<Instant>,
    reloading: bool,
    /// Messages are those of haproxy's own master, from 3.0 on byte for byte (`-Ws`).
    as_haproxy: bool,
}

impl Announcer {
    /// Reads the keep-alive interval that systemd asks for.
    pub(crate) fn new(as_haproxy: bool) -> Self {
        Self { keep_alive: notify::watchdog(), as_haproxy, ..Self::default() }
    }

    /// Called on each turn of the loop. Sends the keep-alive no more often than systemd needs it.
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

    /// The starting generation needs this much more time from now on.
    pub(crate) fn more_time(&self, time: Duration) {
        notify::tell(&format!("EXTEND_TIMEOUT_USEC={}", time.as_micros()));
    }

    /// A generation serves, or keeps serving after a failed reload.
    pub(crate) fn ready(&mut self, status: &str) {
        self.reloading = false;
        notify::tell(&if self.as_haproxy {
            format!("READY=1\nMAINPID={}\nSTATUS=Ready.\n", std::process::id())
        } else {
            format!("READY=1\nSTATUS={status}")
        });
    }

    /// Nothing serves, for the reason in `status`; ends a reload in progress.
    pub(crate) fn troubled(&mut self, status: &str) {
        let reloading = std::mem::take(&mut self.reloading);
        match (self.as_haproxy, reloading) {
            (true, true) => notify::tell("READY=1\nSTATUS=Reload failed!\n"),
            // haproxy 3.0 is silent when the first start fails. 3.2 reports READY then, and ends,
            // which helps no one.
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
