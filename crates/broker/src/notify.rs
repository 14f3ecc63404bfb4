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

/// How often the status is checked without a watchdog.
const PERIOD: Duration = Duration::from_secs(10);

/// Releases what is not needed while no client asks: freed memory, and resident pages of the
/// program.
pub(crate) fn shrink() {
    memory::return_freed();
    if let Err(error) = memory::forget_program() {
        tracing::debug!(%error, "pages of the program that are not needed stay resident");
    }
}

/// Shortest time between two releases; one release covers all that ended meanwhile.
const REST: Duration = Duration::from_secs(1);

/// Releases memory when large requests or connections have `ended`, for as long as the broker runs.
/// The first release is immediate. But a release costs the next requests some page faults, so no
/// client can trigger it as often as it likes.
pub(crate) async fn shrink_after(ended: &Notify) {
    loop {
        ended.notified().await;
        shrink();
        sleep(REST).await;
    }
}

/// Reports that the broker serves.
pub(crate) fn ready(broker: &RefCell<Broker>) {
    shrink();
    if let Some(starter) = std::env::var_os(STARTER) {
        // The starter may have gone, or been told by an earlier image of this process.
        let _ = notify::send_to(&starter, "READY=1");
    }
    notify::tell(&format!("READY=1\nSTATUS={}", status(broker)));
}

/// Reports that the broker ends.
pub(crate) fn stopping() {
    notify::tell("STOPPING=1");
}

/// Keeps the service manager up to date, for as long as the broker runs.
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
