//! Generations of a service: when one starts, serves, drains and is gone.
//!
//! [`Timeline`] is the whole decision: events and the time go in, actions come
//! out, and [`Timeline::deadline`] says when to call again if nothing happens.
//! It guarantees, whatever the order of events:
//!
//! - at most one generation is started at a time, not counting those that not even SIGKILL ends,
//!   and ids only grow;
//! - a generation that fails to start leaves the serving one untouched;
//! - a reload is answered only when no older generation accepts any more, or with
//!   a note that this could not be proved;
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

/// The number of one start of a service. Only grows, even across restarts of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId(pub u64);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point of a monotonic clock: the time since an epoch that the caller chose.
pub type Moment = Duration;

/// A caller that waits for the result of a reload; a number that the caller chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller(pub u64);

/// How long things may take, and how many generations may drain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a start may go without progress until it is ready (`--ready-timeout`); a whole
    /// start may take [`LONGEST_START`] times as long.
    pub ready_timeout: Duration,
    /// Minimum time between the starts of two generations for reloads, while any generation serves
    /// (`--min-interval`).
    pub min_interval: Duration,
    /// Time from the first signal to an older generation until it must have stopped accepting, or
    /// it is ended (`--retire-timeout`).
    pub retire_timeout: Duration,
    /// Time from then until its last connection must have ended (`--drain-timeout`).
    pub drain_timeout: Duration,
    /// How many generations may drain at once; the oldest is ended first (`--max-draining`).
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
/// Time between two SIGTTOU to a generation that still accepts during a handover.
pub const PAUSE_AGAIN: Duration = Duration::from_millis(100);
/// Time between two SIGUSR1 to a generation that has not confirmed its soft stop.
pub const SOFT_STOP_AGAIN: Duration = Duration::from_millis(250);
/// How long a handover waits for the accept queues to stand still after every older generation has
/// confirmed its stop. Without clients and probes they never do.
pub const QUEUES_STILL: Duration = Duration::from_millis(500);
/// How long the new generation waits for paused older generations to close their listeners, where
/// the accept queues do not show it: clients of all listeners wait meanwhile.
pub const PAUSED_TO_CLOSED: Duration = Duration::from_millis(40);
/// How long older generations are paused at most while a starting generation binds an address that
/// they bound themselves; once per start. Clients wait meanwhile.
pub const PAUSED_FOR_ADDRESS: Duration = Duration::from_secs(1);
/// After this silence a generation that was told to pause gets SIGCONT: another process may have
/// stopped it.
pub const SILENCE_CONTINUE: Duration = Duration::from_millis(250);
/// After this silence it gets SIGKILL: nobody accepts meanwhile, and a service must not stay
/// paused.
pub const SILENCE_KILL: Duration = Duration::from_millis(1000);
/// Time from SIGTERM to SIGKILL.
pub const TERM_TO_KILL: Duration = Duration::from_secs(1);
/// How long a process may take to end after SIGKILL. Later nobody waits for it, and a queue that
/// still shrinks means that another process accepts.
pub const KILLED_TO_GONE: Duration = Duration::from_secs(5);
/// How long the accept queues are watched again after older generations had to be ended.
pub const OBSERVED_AGAIN: Duration = Duration::from_millis(500);
/// The first wait before a crashed generation is started again; doubles with each further crash.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// A generation that served this long before it died waits no longer than at its first crash.
pub const SERVED_A_WHILE: Duration = Duration::from_secs(1);
/// The longest such wait.
pub const BACKOFF_LAST: Duration = Duration::from_secs(10);
/// A configuration counts as working once a generation has served it for this long.
pub const WORKED_AFTER: Duration = Duration::from_secs(10);
/// After this many crashes of a configuration that never worked, the last working one is started.
pub const CRASHES_BEFORE_ROLLBACK: u32 = 3;

/// Which configuration a generation is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Configuration {
    /// The files as they are now.
    Fresh,
    /// The copy of the files that was made for this generation.
    Of(GenerationId),
}

/// How the new generation takes over from the older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// The new generation is stopped (SIGSTOP), the older ones are paused (SIGTTOU), the accept
    /// queues prove that nobody accepts, then the new one continues. haproxy 2.6.12 and later on
    /// fd@.
    Pause,
    /// The new generation waits at its readiness, and the older ones are told to stop (SIGUSR1).
    /// When each has closed its listeners, the accept queues must stand still too: an unknown
    /// process may hold a copy, and closed descriptors do not show a call that still waits for a
    /// connection. Then the new one continues. For programs that cannot pause; an older generation
    /// that was told to stop cannot resume.
    StopFirst,
    /// The older generations are told to stop, and each confirms it, while the new one already
    /// accepts. For a new generation that cannot wait.
    SoftStop,
}

/// A signal, by its meaning.
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
    /// Close the listeners, serve the open connections, exit: SIGUSR1 to haproxy; another program
    /// gets the signal that it wants for that.
    SoftStop,
    /// SIGTERM: exit now.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A caller wants the files as they are now to be served.
    Reload(Caller),
    /// The same, and the reload of the callers that wait already will not do: it has another
    /// command line.
    ReloadApart(Caller),
    /// A reload that cannot wait for [`Settings::min_interval`].
    ReloadAtOnce(Caller),
    /// A starting generation makes progress.
    Progress(GenerationId),
    /// The start of a generation failed before there was a process.
    StartFailed(GenerationId),
    /// A starting generation cannot bind an address of its own and asks for it. The older
    /// generations have it and can let go of it by pausing.
    AddressInUse(GenerationId),
    /// A starting generation has given up on an address that it could not bind.
    GaveUp(GenerationId),
    /// A generation has bound everything and is ready to accept.
    Ready(GenerationId, Handover),
    /// A generation that starts or waits to take over must not serve: it was sent SIGKILL, and its
    /// exit follows.
    Refused(GenerationId),
    /// The process of a generation has ended.
    Exited(GenerationId),
    /// During [`Action::Prove`]: nobody accepts. The accept queues stood still, and so did the
    /// connection count of each older generation that has one.
    Proved,
    /// During [`Action::Prove`]: not proved so far. Sent at least every [`PAUSE_AGAIN`].
    Unproved(Observation),
    /// During [`Action::Prove`]: nobody accepts from any queue that has connections, and the other
    /// queues are empty and show nothing.
    ProvedInPart {
        /// Whether each older generation has a listener whose queue stands still: the same signal
        /// pauses all of its listeners.
        all_paused: bool,
    },
    /// A generation confirms that it was told to stop. It may not have closed its listeners yet:
    /// `grace` delays that.
    Stopping(GenerationId),
    /// A generation has closed its listeners: none of its processes has one.
    Stopped(GenerationId),
    /// A generation that had closed its listeners has them again: its own master was told to reload
    /// and has started another worker with them.
    Listens(GenerationId),
    /// How many connections a draining generation still serves.
    Connections(GenerationId, u64),
    /// A draining generation has no connection left and does not exit.
    Hangs(GenerationId),
    /// A replaced generation may drain this long from now on, whatever the settings say.
    DrainTimeout(GenerationId, Duration),
    /// A user wants a replaced generation to end now. Any other generation stays as it is.
    Retire(GenerationId),
    /// Time has passed.
    Tick,
    /// Retire everything and exit when all have drained. A second one ends everything at once.
    Shutdown,
}

/// The accept queues and the older generations, as seen during a proof.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// An accept queue has shrunk lately: a process accepts.
    pub moving: bool,
    /// Older generations whose count of accepted connections has grown lately.
    pub accepting: Vec<GenerationId>,
    /// Older generations that have not answered lately, so their state is unknown.
    pub silent: Vec<GenerationId>,
}

impl Observation {
    /// Whether there is no sign of a process that accepts.
    pub fn is_quiet(&self) -> bool {
        !self.moving && self.accepting.is_empty() && self.silent.is_empty()
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a generation. With `older_alive`, haproxy is given `-sf` and reports when it is ready;
    /// without, only its admin socket shows it.
    Start {
        /// The new id.
        id: GenerationId,
        /// The configuration to serve.
        configuration: Configuration,
        /// Whether any older generation is alive.
        older_alive: bool,
    },
    /// If the supervisor ends, `newer`, which is starting or refused, must be ended, and then the
    /// generations that are paused for it must resume. Holds until the next `Guard`, or until a
    /// generation serves or `newer` is gone.
    Guard {
        /// The generation that starts.
        newer: GenerationId,
        /// The paused older generations.
        paused: Vec<GenerationId>,
    },
    /// Send a signal to every process of a generation.
    Signal {
        /// The generation.
        id: GenerationId,
        /// The signal.
        signal: Signal,
        /// The reason, for the log.
        reason: Reason,
    },
    /// Begin to watch the accept queues; answer with `Proved` or `Unproved`.
    Prove {
        /// The generation that takes over; it is stopped.
        newer: GenerationId,
        /// The generations that must not accept.
        older: Vec<GenerationId>,
    },
    /// Stop watching the accept queues, whatever was seen.
    EndProof,
    /// Begin to ask a generation whether it has stopped; answer with `Stopped`, and then with
    /// `Connections`.
    WatchStop(GenerationId),
    /// Remove the listeners that a generation has closed from its epoll sets.
    Detach(GenerationId),
    /// No connection is left: close the admin connection that keeps the process alive.
    LetGo(GenerationId),
    /// Answer the callers of the reload that has just ended.
    Answer(Vec<Caller>, Outcome),
    /// A generation now serves alone.
    Serving(GenerationId),
    /// A generation is gone: give its leases back.
    Gone(GenerationId),
    /// A generation that was to take over does not end within [`KILLED_TO_GONE`] of SIGKILL. The
    /// service goes on without it.
    GivenUp(GenerationId),
    /// The serving generation died and will be started again after this wait.
    Restart {
        /// The configuration that died, by the generation that first had it.
        died: GenerationId,
        /// The configuration to start, by the generation that first had it.
        configuration: GenerationId,
        /// The wait.
        after: Duration,
        /// Whether this is a rollback to an older configuration, because the newest keeps dying.
        rollback: bool,
    },
    /// Exit: every generation is gone and none is wanted.
    Exit(Ending),
}

/// Why a signal is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The normal course of a handover.
    Handover,
    /// The same signal again: it may have been lost.
    Again,
    /// A new supervisor found this generation, and does not know what it was told.
    TakenOver,
    /// The new generation cannot bind an address that this one has bound itself.
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
    /// More generations drain than are allowed, and this is the oldest.
    TooManyDraining,
    /// A user wants it to end now, together with its connections.
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
        /// Older generations that had to be ended because they kept accepting.
        ended: Vec<GenerationId>,
        /// False if a process that is no generation of this service still accepts connections.
        alone: bool,
    },
    /// The new generation failed; the previous one still serves.
    Failed(GenerationId, Failure),
    /// The service is being shut down.
    ShuttingDown,
}

/// Why a generation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No process was started: the configuration could not be read, or a listener not obtained.
    NotStarted,
    /// Its process ended before it was ready.
    Exited,
    /// It was not ready in time.
    NotReady,
    /// Its process ended after it was ready and before it served.
    DiedInHandover,
    /// Another process told it to stop before the older ones had closed their listeners.
    StoppedInHandover,
}

/// Why the supervisor exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was told to shut down.
    Shutdown,
    /// The very first generation failed.
    NeverServed,
}

/// A live generation that an earlier supervisor started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub id: GenerationId,
    /// Its state.
    pub state: State,
    /// The generation whose configuration it runs.
    pub configuration: GenerationId,
    /// How long it has served.
    pub served: Moment,
}
