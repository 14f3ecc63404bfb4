//! The supervisor's reports: the log of its signals, messages to the service manager, counters and
//! durations for metrics, the answer to a reload ([`outcome`]), and status ([`status`]).

pub(crate) mod announce;
pub(crate) mod cause;
pub(crate) mod measured;
pub(crate) mod metrics;
pub(crate) mod outcome;
pub(crate) mod starter;
pub(crate) mod status;
mod status_page;
pub(crate) mod view;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bindonce_core::event;
use bindonce_core::generation::{GenerationId, Reason};
use bindonce_haproxy::config::Master;
use bindonce_sys::signals::Signal as Number;

use crate::context::Context;
use crate::generations::counting::Counting;
use crate::generations::foreign::ForeignBinds;
use crate::generations::since::{Lately, SavedLately, Since};
use crate::kind::Haproxy;
use crate::replies::Counts;
use crate::report::announce::Announcer;
use crate::report::cause::Cause;
use crate::report::measured::Measured;
use crate::settings::Settings;

/// The reported state, and what was reported last.
pub(crate) struct Report {
    pub(crate) announcer: Announcer,
    pub(crate) counts: Counts,
    /// haproxy's own counters.
    pub(crate) counting: Counting,
    /// Recent traffic of all generations, and of the draining ones.
    lately: (Lately, Lately),
    measured: Measured,
    /// Why the last failed generation failed.
    pub(crate) failure: Cause,
    /// Addresses that haproxy bound itself, as far as they were reported.
    pub(crate) foreign: ForeignBinds,
    /// Addresses that older generations bound themselves, and because of which they could not be
    /// paused.
    pub(crate) stopped_first: Vec<String>,
    /// Whether it was logged that haproxy's bind(2) cannot be seen.
    pub(crate) unseen: bool,
    /// Whether it was logged that listen(2) can signal the program's readiness.
    pub(crate) listens: bool,
    /// The last signal that was logged as a warning.
    last_warning: Option<(GenerationId, Reason)>,
}

impl Report {
    /// Continues the counters of an earlier supervisor, and the recent traffic of the earlier
    /// image.
    pub(crate) fn new(settings: &Settings, counters: PathBuf, lately: &SavedLately) -> Self {
        let notifies = |haproxy: &Haproxy| haproxy.command.role.master == Some(Master::Notifying);
        let as_haproxy = settings.kind.haproxy().is_some_and(notifies);
        Self {
            announcer: Announcer::new(as_haproxy),
            counts: Counts::default(),
            counting: Counting::resume(counters),
            lately: Lately::resume_both(lately),
            measured: Measured::default(),
            failure: Cause::default(),
            foreign: ForeignBinds::default(),
            stopped_first: Vec::new(),
            unseen: false,
            listens: false,
            last_warning: None,
        }
    }

    /// A reload, or the first start, has begun.
    pub(crate) fn reload_begins(&mut self) {
        self.measured.begun = Some(Instant::now());
    }

    /// The generation that takes over is ready. `took` is the duration of its start.
    pub(crate) fn ready(&mut self, took: Option<Duration>) {
        self.measured.ready = Some(Instant::now());
        took.into_iter().for_each(|took| self.measured.start_time.add(took));
    }

    /// A generation serves alone.
    pub(crate) fn serves(&mut self, id: GenerationId, pid: i32) {
        self.measured.serves();
        self.announcer.ready(&format!("generation {id} serves, pid {pid}"));
    }

    /// Adds traffic of a generation. `drains`: it had stopped accepting.
    pub(crate) fn served(&mut self, more: Since, drains: bool) {
        let now = Instant::now();
        self.lately.0.add(now, more);
        if drains {
            self.counts.requests_after += more.requests;
            self.counts.bytes_after += more.bytes;
            self.lately.1.add(now, more);
        }
    }

    /// The recent traffic, for the next image of this process.
    pub(crate) fn saved_lately(&self) -> SavedLately {
        let now = Instant::now();
        let (all, draining) = &self.lately;
        SavedLately { all: all.saved(now), draining: draining.saved(now) }
    }

    /// Logs a signal with its reason and the number of connections that it cuts. An exceptional
    /// signal is logged as a warning, once.
    pub(crate) fn signalled(
        &mut self,
        cx: &Context,
        id: GenerationId,
        pid: i32,
        signal: Number,
        (reason, cut): (Reason, u64),
    ) {
        let said_before = self.last_warning.replace((id, reason)) == Some((id, reason));
        let signal = signal.as_str();
        let why = match reason {
            Reason::Shutdown if cut > 0 => "the service is being shut down",
            Reason::Handover | Reason::Shutdown => {
                return tracing::debug!(generation = id.0, pid, signal, "signalled");
            }
            _ if said_before && cut == 0 => {
                return tracing::debug!(generation = id.0, pid, signal, "signalled again");
            }
            Reason::TakenOver => {
                return tracing::info!(generation = id.0, pid, signal, "told to stop again");
            }
            Reason::AddressInUse => {
                return tracing::info!(
                    generation = id.0,
                    pid,
                    signal,
                    "paused for a moment: the new generation needs an address that this one bound itself"
                );
            }
            Reason::AddressNotBound => {
                "the new generation did not get the address that it was paused for"
            }
            Reason::Again => "the last signal is not obeyed yet",
            Reason::NewerDied => "the generation that was to take over died",
            Reason::Silent => "it does not answer while the service is paused for it",
            Reason::NotReady => "it was not ready in time (--ready-timeout)",
            Reason::ListensAgain => {
                "it had closed its listeners and has them again: its own master was reloaded"
            }
            Reason::StillAccepts => {
                "it did not close its listeners in time (--retire-timeout, which must be longer than \
                 `grace` of haproxy)"
            }
            Reason::NotConfirmed => "it did not confirm that it stopped (--retire-timeout)",
            Reason::DrainTimeout => "its connections did not end in time (--drain-timeout)",
            Reason::TooManyDraining => "more generations drain than --max-draining allows",
            Reason::Retired => "`bindonce retire` or a reload asked it to end",
            Reason::Hangs => {
                "it has no connection left and does not exit: its first thread waits for the others (haproxy 2.6 \
                 hangs like this when a signal arrives late)"
            }
            Reason::DidNotExit => "it did not exit when it was told to",
        };
        let cut = if cut > 0 { format!("; connections cut: {cut}") } else { String::new() };
        tracing::warn!(generation = id.0, pid, signal, "signalled: {why}{cut}");
        cx.record(id, Some(pid), event::Kind::SignalEscalated, format!("{signal}: {why}{cut}"));
    }
}
