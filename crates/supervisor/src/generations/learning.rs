//! Keeps stick tables over reloads in quick succession.
//!
//! A generation teaches its stick tables to the next one when it is told to stop, but only if it
//! has learned all of them. If it is stopped earlier, they are lost. So the next one starts when
//! the serving one has learned them.

use std::time::{Duration, Instant};

use bindonce_core::duration::format;
use bindonce_core::generation::GenerationId;
use bindonce_haproxy::cli::sections_that_learn;
use bindonce_sys::process;

use crate::generations::admin::{Admin, NoAnswer};
use crate::settings::Settings;

/// Time between two questions.
const LOOK: Duration = Duration::from_millis(10);

/// Waits for the serving generation before this one is started. Logs a warning if that takes too
/// long.
///
/// A process that is stopped (SIGSTOP) learns nothing and serves no client: no wait for it.
pub(crate) async fn before_start(settings: &Settings, id: GenerationId, serving: &Admin, pid: i32) {
    if process::is_stopped(pid) {
        return;
    }
    let limit = settings.handover.peers_timeout.min(settings.timing.ready_timeout / 2);
    let learning = wait(serving, limit).await;
    if !learning.is_empty() {
        tracing::warn!(
            generation = id.0,
            peers = learning.join(" "),
            "the serving generation has not learned its stick tables within {} (--peers-timeout), and will not pass \
             them on: entries are lost; reload less often, or look at `show peers`",
            format(limit)
        );
    }
}

/// Waits until the serving generation has learned its stick tables. Gives the `peers` sections that
/// have not within `limit`.
async fn wait(serving: &Admin, limit: Duration) -> Vec<String> {
    let until = Instant::now() + limit;
    let mut learning = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return learning;
        }
        match serving.ask("show peers", left).await {
            Ok(answer) => {
                learning = sections_that_learn(&answer).into_iter().map(str::to_owned).collect();
            }
            Err(NoAnswer::InTime) => {}
            // The generation is gone and has nothing to teach.
            Err(NoAnswer::Closed) => return Vec::new(),
        }
        if learning.is_empty() {
            return learning;
        }
        tokio::time::sleep(LOOK).await;
    }
}
