//! This broker as a service: what it reports to the service manager while it runs.
//!
//! `WATCHDOG=1` comes from the thread that serves, between requests, so it stops when that
//! thread does. STATUS= is refreshed with it.

use std::cell::RefCell;
use std::time::Duration;

use bindonce_core::text::count;
use bindonce_daemon::notify::{self, STARTER};
use bindonce_sys::memory;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, sleep};

use crate::broker::Broker;

/// How often the status is looked at without a watchdog.
const PERIOD: Duration = Duration::from_secs(10);

/// Lets go of what has been needed and is not needed while nobody asks: memory, and the pages of code that are resident.
pub(crate) fn shrink() {
    memory::return_freed();
    if let Err(error) = memory::forget_code() {
        tracing::debug!(%error, "code that is not needed stays resident");
    }
}

/// So long after memory was given back it is given back again, once for all that has ended meanwhile.
const REST: Duration = Duration::from_secs(1);

/// Gives back what such requests or connections have needed when they end, for as long as the broker runs: at once, but since
/// that costs those who come next some page faults, no client brings it about as often as it likes.
pub(crate) async fn shrink_after(ended: &Notify) {
    loop {
        ended.notified().await;
        shrink();
        sleep(REST).await;
    }
}

/// Says that the broker serves.
pub(crate) fn ready(broker: &RefCell<Broker>) {
    shrink();
    if let Some(starter) = std::env::var_os(STARTER) {
        // It may have gone, or have heard it from an earlier image of this process.
        let _ = notify::send_to(&starter, "READY=1");
    }
    notify::tell(&format!("READY=1\nSTATUS={}", status(broker)));
}

/// Says that the broker ends.
pub(crate) fn stopping() {
    notify::tell("STOPPING=1");
}

/// Keeps the manager up to date, for as long as the broker runs.
pub(crate) async fn run(broker: &RefCell<Broker>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = notify::watchdog();
    let mut ticks = tokio::time::interval(watchdog.unwrap_or(PERIOD));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reported = String::new();
    loop {
        ticks.tick().await;
        let status = status(broker);
        let mut message = String::new();
        if watchdog.is_some() {
            message.push_str("WATCHDOG=1\n");
        }
        if status != reported {
            message.push_str("STATUS=");
            message.push_str(&status);
        }
        if !message.is_empty() {
            notify::tell(&message);
            reported = status;
        }
    }
}

fn status(broker: &RefCell<Broker>) -> String {
    let broker = broker.borrow();
    let registry = &broker.listeners.registry;
    let (listeners, clients) = (registry.len(), registry.connections());
    format!(
        "{} held, {} on {}",
        count(listeners, "listener"),
        count(clients, "client"),
        broker.endpoint.socket.display()
    )
}
