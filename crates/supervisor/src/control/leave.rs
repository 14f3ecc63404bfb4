//! `leave`: a start that meets a supervisor whose service is being shut down takes its place.
//!
//! The older supervisor ends and leaves the generations that drain to the newer one, as a killed
//! supervisor would. So a service that was told to stop can be started again before its last
//! connection has ended. A supervisor whose service serves, or ends at once, stays.

use std::os::fd::AsFd as _;
use std::time::Duration;

use bindonce::Client;
use bindonce_core::event;
use bindonce_daemon::Happening;
use bindonce_sys::process::Pidfd;
use bindonce_sys::watch::Watch;
use bindonce_sys::{patience, peer};
use bindonce_wire::{ErrorCode, RpcError};
use tokio::sync::oneshot;

use crate::control::Answer;
use crate::control::ending::Ended;
use crate::disk::place::control_socket;
use crate::replies::ENDING;
use crate::settings::Settings;
use crate::supervisor::Supervisor;

/// How long the older supervisor may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// How long it may take to end.
const END: Duration = Duration::from_secs(3);

/// Asks the supervisor of this service to leave. Whether it has ended for that reason.
pub(crate) async fn ask(settings: &Settings) -> bool {
    let socket = control_socket(&settings.broker.socket, &settings.service);
    let Ok(mut client) = Client::connect_within(&socket, ANSWER) else { return false };
    // Opened first: once it has ended, another process may get its pid.
    let pidfd = peer::credentials(client.as_fd()).and_then(|peer| Pidfd::open(peer.pid));
    let Ok(ended) = pidfd.and_then(|pidfd| Watch::new(&pidfd)) else { return false };
    let leaves = match client.call("leave", &[0; 0]) {
        // One that is slow to end has answered nothing either.
        Err(
            bindonce::Error::Closed { .. }
            | bindonce::Error::Io(_)
            | bindonce::Error::TimedOut { .. },
        ) => true,
        // It ends for another reason, or it stays, or knows no such request.
        Err(bindonce::Error::Refused(refusal)) => refusal.data.contains_key(ENDING),
        _ => false,
    };
    leaves && patience::timeout(END, ended.readable()).await.is_ok()
}

impl Supervisor {
    /// Another supervisor wants to take the place of this one. Answered only if this one stays:
    /// else the connection ends with the process.
    pub(crate) fn want_leave(&mut self, reply: oneshot::Sender<Answer>, by: i32) {
        let why = if !self.timeline.is_shutting_down() {
            Some("the service is not being shut down")
        } else if std::env::var_os("NOTIFY_SOCKET").is_some() || std::process::id() == 1 {
            // What starts such a process ends all that it has started with it.
            Some("its service manager, or its container, would end what drains")
        } else {
            None
        };
        if let Some(why) = why {
            // The client may have gone away.
            return drop(reply.send(Err(RpcError::new(ErrorCode::IN_USE, why))));
        }
        if self.end.is_at_once() {
            // It ends in a moment, and the connection with it.
            return self.end.asked.push(reply);
        }
        let text = "leaves what drains to the next supervisor";
        tracing::info!(sender = by, "{text}");
        self.cx.journal.record(Happening::new(event::Kind::SupervisorEnding, text).pid(by));
        self.end.leaves = Some(reply);
    }

    /// Ends without its generations, which drain: the next supervisor takes them over.
    pub(crate) fn left(mut self, how: Ended) -> Ended {
        self.handover.is_over();
        for generation in self.generations.iter() {
            self.handover.keep(generation);
        }
        self.save();
        // Dropped, they would shut down the admin connections that the watchdog keeps for the next
        // supervisor.
        std::mem::forget(std::mem::take(&mut self.generations));
        how
    }
}
