//! Generations of a service: when one starts, serves, drains and is gone.
//!
//! [`Timeline`] is the whole decision: events and the time go in, actions come
//! out, and [`Timeline::deadline`] says when to call again if nothing happens.
//! It guarantees, whatever the order of events:
//!
//! - at most one generation is started at a time, and ids only grow;
//! - a generation that fails to start leaves the serving one untouched;
//! - a reload is answered only when no older generation accepts any more, or
//!   with the fact that this could not be proved;
//! - every wait has a deadline and an action when it passes;
//! - every caller is answered exactly once.
//!
//! `bindonce-supervisor` performs the actions.

mod ending;
mod handover;
mod life;
mod operation;
mod progress;
mod reloads;
mod restart;
mod timeline;
mod yielding;

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

pub use progress::{Progress, Work};
pub use timeline::Timeline;

pub use crate::registry::State;

/// Number of one start of a service. Only grows, across restarts of the supervisor too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId(pub u64);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point of a monotonic clock: the time since an epoch that the caller chose.
pub type Moment = Duration;

/// Somebody who asked for a reload and waits for its result; a number that the caller chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller(pub u64);

/// How long things may take, and how many generations may linger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a start may go on without progress until it is ready (`--ready-timeout`); [`LONGEST_START`] times as long in all.
    pub ready_timeout: Duration,
    /// From the start of one generation for a reload until that for the next one, while any serves (`--min-interval`).
    pub min_interval: Duration,
    /// From the first signal to an older generation until it must have stopped
    /// accepting, else it is ended (`--retire-timeout`).
    pub retire_timeout: Duration,
    /// From then until its last connection must have ended (`--drain-timeout`).
    pub drain_timeout: Duration,
    /// How many generations may drain at once; the oldest goes first (`--max-draining`).
    pub max_draining: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ready_timeout: Duration::from_secs(30),
            min_interval: Duration::ZERO,
            retire_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(600),
            max_draining: 16,
        }
    }
}

/// How many times `ready_timeout` a start may take, whatever progress it makes.
pub const LONGEST_START: u32 = 20;
/// Between two SIGTTOU to a generation that still accepts during a handover.
pub const PAUSE_AGAIN: Duration = Duration::from_millis(100);
/// Between two SIGUSR1 to a generation that has not confirmed its soft stop.
pub const SOFT_STOP_AGAIN: Duration = Duration::from_millis(250);
/// How long, after every older generation has confirmed its stop, a handover waits for the accept
/// queues to stand still. Without clients and probes they never do.
pub const QUEUES_STILL: Duration = Duration::from_millis(500);
/// How long the new generation waits for older ones that are known to be paused to close their
/// listeners, where the accept queues do not show it: clients of all listeners wait meanwhile.
pub const PAUSED_TO_CLOSED: Duration = Duration::from_millis(40);
/// How long older generations are paused at most so that one that starts can bind an address that they
/// have bound by themselves; once for each start. Clients wait meanwhile.
pub const PAUSED_FOR_ADDRESS: Duration = Duration::from_secs(1);
/// After this silence a generation that was told to pause is continued (SIGCONT): another process may
/// have stopped it.
pub const SILENCE_CONTINUE: Duration = Duration::from_millis(250);
/// After this silence it is killed: nobody accepts meanwhile, and a service must not stay paused.
pub const SILENCE_KILL: Duration = Duration::from_millis(1000);
/// From SIGTERM to SIGKILL.
pub const TERM_TO_KILL: Duration = Duration::from_secs(1);
/// How long a process that was sent SIGKILL may take to be gone before a queue that still shrinks
/// accuses another one.
pub const KILLED_TO_GONE: Duration = Duration::from_secs(5);
/// How long the accept queues are watched again when the last older generation is ended.
pub const OBSERVED_AGAIN: Duration = Duration::from_millis(500);
/// The first wait before a crashed generation is started again; doubles at each further crash.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// One that has served for this long before it died waits no longer than at its first crash.
pub const SERVED_A_WHILE: Duration = Duration::from_secs(1);
/// The longest such wait.
pub const BACKOFF_LAST: Duration = Duration::from_secs(10);
/// A configuration has worked when a generation has served it for this long.
pub const WORKED_AFTER: Duration = Duration::from_secs(10);
/// After so many crashes of a configuration that never worked, the last that worked is started.
pub const CRASHES_BEFORE_ROLLBACK: u32 = 3;

/// Which configuration a generation is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Configuration {
    /// The files as they are now.
    Fresh,
    /// The copy that was made for this generation.
    Of(GenerationId),
}

/// How the new generation takes over from the older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// The new one is stopped (SIGSTOP), the older ones are paused (SIGTTOU), the accept queues
    /// prove that nobody accepts, then the new one is continued. haproxy 2.6.12 and later on fd@.
    Pause,
    /// The new one waits where it said that it is ready, the older ones are told to stop (SIGUSR1),
    /// and when each has closed its listeners the accept queues must stand still too: a process that
    /// nobody knows of may hold a copy, and closed descriptors do not show a call that still waits for a
    /// connection. Then the new one continues. Where a pause is not possible; an older generation
    /// that was told to stop cannot resume.
    StopFirst,
    /// The older ones are told to stop, and each confirms it, while the new one accepts already.
    /// Where it cannot be made to wait.
    SoftStop,
}

/// A signal by its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGSTOP: the new generation waits while the older ones stop accepting.
    Stop,
    /// SIGCONT.
    Continue,
    /// SIGTTOU: stop accepting, reversibly.
    Pause,
    /// SIGTTIN: accept again.
    Resume,
    /// Close the listeners, serve what is connected, exit: SIGUSR1 to haproxy, to another program
    /// what it wants for that.
    SoftStop,
    /// SIGTERM: exit now.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants the files as they are now to be served.
    Reload(Caller),
    /// The same, and it cannot wait for [`Settings::min_interval`].
    ReloadAtOnce(Caller),
    /// A generation that starts makes progress.
    Progress(GenerationId),
    /// The start of a generation failed before there was a process.
    StartFailed(GenerationId),
    /// A generation that starts cannot bind an address of its own, and asks for it; the older ones have
    /// it and can let go of it by a pause.
    AddressInUse(GenerationId),
    /// A generation that starts has given up on an address that it could not bind.
    GaveUp(GenerationId),
    /// A generation has bound everything and would accept.
    Ready(GenerationId, Handover),
    /// A generation that starts, or waits to take over, must not serve: it was sent SIGKILL, and its end follows.
    Refused(GenerationId),
    /// The process of a generation has ended.
    Exited(GenerationId),
    /// While [`Action::Prove`] is under way: nobody accepts. The accept queues stood still, and so
    /// did the connection count of each older generation that has one.
    Proved,
    /// While [`Action::Prove`] is under way: not proved so far. Sent at least every [`PAUSE_AGAIN`].
    Unproved(Observation),
    /// While [`Action::Prove`] is under way: nobody accepts from any queue that a connection reaches,
    /// and nobody waits in the others, so that these show nothing.
    ProvedInPart {
        /// Each older generation has a listener whose queue stands still: all that it has are paused
        /// by the same signal.
        all_paused: bool,
    },
    /// A generation says that it was told to stop. It may not have closed its listeners: `grace`
    /// delays that.
    Stopping(GenerationId),
    /// A generation has closed its listeners: none of its processes has one.
    Stopped(GenerationId),
    /// A generation that had closed its listeners has them again: its own master was told to reload
    /// and has started another worker with them.
    Listens(GenerationId),
    /// How many connections a draining generation still serves.
    Connections(GenerationId, u64),
    /// A draining generation is at its end, without a connection, and does not exit.
    Hangs(GenerationId),
    /// A generation that was replaced may drain for so long from now on, whatever the settings say.
    DrainTimeout(GenerationId, Duration),
    /// Somebody wants a replaced generation to end now. Nothing happens to any other.
    Retire(GenerationId),
    /// Time has passed.
    Tick,
    /// Retire everything and exit when it has drained; a second one ends everything at once.
    Shutdown,
}

/// What the accept queues and the older generations show while a proof is under way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// Some accept queue has shrunk lately: a process accepts.
    pub moving: bool,
    /// Older generations whose count of accepted connections has grown lately.
    pub accepting: Vec<GenerationId>,
    /// Older generations that have not answered lately, so that nothing is known of them.
    pub silent: Vec<GenerationId>,
}

impl Observation {
    /// Whether there is no sign of anybody who accepts.
    pub fn is_quiet(&self) -> bool {
        !self.moving && self.accepting.is_empty() && self.silent.is_empty()
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a generation. With `older_alive` haproxy is given `-sf` and tells when it is ready;
    /// without, only its admin socket tells.
    Start {
        /// The new id.
        id: GenerationId,
        /// What it is to serve.
        configuration: Configuration,
        /// Whether any older generation is alive.
        older_alive: bool,
    },
    /// Until this comes again, or another generation serves: should the supervisor end, `newer`, which
    /// starts, must be ended, and then those that are paused for it must resume.
    Guard {
        /// The generation that starts.
        newer: GenerationId,
        /// The older ones that are paused.
        paused: Vec<GenerationId>,
    },
    /// Send a signal to every process of a generation.
    Signal {
        /// To whom.
        id: GenerationId,
        /// What.
        signal: Signal,
        /// Why, for the log.
        reason: Reason,
    },
    /// Begin to watch the accept queues; answer with `Proved` or `Unproved`.
    Prove {
        /// The generation that takes over, stopped.
        newer: GenerationId,
        /// The generations that must not accept.
        older: Vec<GenerationId>,
    },
    /// The watch is over, whatever it has found.
    EndProof,
    /// Begin to ask a generation whether it has stopped; answer with `Stopped`, and from then on
    /// with `Connections`.
    WatchStop(GenerationId),
    /// Remove what a generation that has closed its listeners left in its epoll sets.
    Detach(GenerationId),
    /// Nothing is connected any more: close the admin connection that keeps the process alive.
    LetGo(GenerationId),
    /// Answer those who asked for the reload that has just ended.
    Answer(Vec<Caller>, Outcome),
    /// A generation now serves alone.
    Serving(GenerationId),
    /// A generation is gone; give back what it held.
    Gone(GenerationId),
    /// The serving generation died and is started again after this wait.
    Restart {
        /// Which one died.
        died: GenerationId,
        /// Whose configuration is started.
        configuration: GenerationId,
        /// The wait.
        after: Duration,
        /// Whether this goes back to an older configuration, because the newest keeps dying.
        rollback: bool,
    },
    /// All is over: every generation is gone and none is wanted.
    Exit(Ending),
}

/// Why a signal is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The normal course of a handover.
    Handover,
    /// The same signal again: it may have been lost.
    Again,
    /// It was found by a new supervisor, which does not know what it was told.
    TakenOver,
    /// The new generation cannot bind an address that this one has bound by itself.
    AddressInUse,
    /// The new generation has given up on that address, or did not get it in time.
    AddressNotBound,
    /// The new generation died while the older one was paused for it.
    NewerDied,
    /// It did not answer while the service was paused.
    Silent,
    /// It was not ready in time.
    NotReady,
    /// It had stopped and listens again.
    ListensAgain,
    /// It did not stop accepting in time.
    StillAccepts,
    /// It was proved not to accept, and did not confirm that it stops.
    NotConfirmed,
    /// Its connections did not end in time.
    DrainTimeout,
    /// More generations drain than are allowed, and it is the oldest.
    TooManyDraining,
    /// Somebody wants it to end now, with the connections that it has.
    Retired,
    /// It has no connection left and does not exit.
    Hangs,
    /// It was told to exit and did not.
    DidNotExit,
    /// The service is being shut down.
    Shutdown,
}

/// How a reload ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// This generation serves, and no older one accepts.
    Serving {
        /// The generation that serves.
        id: GenerationId,
        /// Older ones that had to be ended, because they went on accepting.
        ended: Vec<GenerationId>,
        /// False if connections are still accepted by a process that is no generation of this
        /// service.
        alone: bool,
    },
    /// The new generation failed; what served before serves on.
    Failed(GenerationId, Failure),
    /// The service is being shut down.
    ShuttingDown,
}

/// Why a generation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// There was no process: the configuration could not be read, or a listener not be had.
    NotStarted,
    /// Its process ended before it was ready.
    Exited,
    /// It was not ready in time.
    NotReady,
    /// It ended after it was ready, before it served.
    DiedInHandover,
}

/// With what result the supervisor exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was told to.
    Shutdown,
    /// The very first generation failed.
    NeverServed,
}

/// A generation that an earlier supervisor started, and that is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub id: GenerationId,
    /// What it does.
    pub state: State,
    /// The generation whose configuration it runs.
    pub configuration: GenerationId,
    /// For how long it has served.
    pub served: Moment,
}
