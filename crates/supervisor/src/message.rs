//! Messages to the loop: everything that happens beside it.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use bindonce_core::generation::{Event, GenerationId};
use bindonce_core::intercept::Own;
use bindonce_daemon::status_page::StatusPage;
use bindonce_sys::hold::Hold;
use bindonce_sys::intercept::Intercept;
use bindonce_sys::process::Exit;
use tokio::sync::oneshot;

use crate::control::Command;
use crate::control::upgrades::ProvedBinary;
use crate::error::Error;
use crate::generations::listeners::HeldListener;
use crate::generations::since::Since;
use crate::generations::start::Launched;
use crate::intercept::requests::{Listens, Want};
use crate::master_cli;
use bindonce_haproxy::cli::Info;
use bindonce_haproxy::counters::Counters;

/// A message on its way to the loop.
pub(crate) enum Message {
    /// An event that goes to the timeline unchanged.
    Event(Event),
    /// A process was started.
    Launched(GenerationId, Box<Launched>),
    /// The counter values that a new generation starts from.
    Preset(GenerationId, Counters),
    /// No process could be started, with the reason.
    NotLaunched(GenerationId, Error),
    /// The contents of the watched files have changed, or are known at last; carries their hash.
    Changed(u64),
    /// The generation is ready, with the sign that showed it.
    Ready(GenerationId, &'static str),
    /// The generation reports readiness and is held in that call until it is released.
    Held(GenerationId, Rc<Hold>),
    /// The supervisor can answer the intercepted calls of this generation from now on.
    Intercepts(GenerationId, Arc<Intercept>),
    /// The supervisor can no longer answer the generation's calls.
    Unanswerable(GenerationId),
    /// The generation's calls cannot be seen: the kernel or a container does not allow it. Carries
    /// the reason.
    Unseen(GenerationId, String),
    /// haproxy is about to bind a socket of its own: the inode, if known, and the address.
    Binds(GenerationId, Option<u64>, Own),
    /// A program wants to bind an address that is intercepted.
    Wants(GenerationId, Want),
    /// The program got this listener for its bind(2); true if it had bound the address itself
    /// before.
    Claimed(GenerationId, Rc<HeldListener>, bool),
    /// The program is about to call listen(2) there.
    Listening(GenerationId, Listens),
    /// The time in which the program could listen on more than this number of listeners is over.
    Settled(GenerationId, usize),
    /// The admin socket answered for the first time.
    Answers(GenerationId, Info),
    /// The comparison of what a ready generation has bound, and the sign that showed its readiness.
    Compared(GenerationId, &'static str, Compared),
    /// What the new generation has bound and listens on, and the proof to feed to the timeline
    /// after the comparison.
    Listens(GenerationId, Compared, Event),
    /// A generation that was told to accept again does not confirm it.
    StillPaused(GenerationId),
    /// The process has ended.
    Exited(GenerationId, Option<Exit>),
    /// A reload was answered.
    Answered,
    /// A client of the control socket sent a command.
    Command(Command),
    /// A client of the master CLI sent a request.
    Master(master_cli::Ask),
    /// Another process told the serving generation to stop, or its own master to reload; carries
    /// which.
    Leaves(GenerationId, &'static str),
    /// A scrape of the metrics.
    Scraped(oneshot::Sender<String>),
    /// The generations have reported their counters for a scrape: answer it.
    Page(oneshot::Sender<String>),
    /// The counters of a generation so far.
    Counted(GenerationId, Counters),
    /// The generation reported its counters for the last time and may end.
    LetGo(GenerationId),
    /// A request for the status page.
    LookedAt(oneshot::Sender<StatusPage>),
    /// The number of connections of a generation; while it drains, those left.
    Left(GenerationId, u64),
    /// The admin connection of a draining generation ended a moment ago. Unless the process has
    /// ended too, its number of connections is now unknown.
    CannotTell(GenerationId),
    /// The work of a generation since its start, and whether it has stopped accepting.
    Counts(GenerationId, Since, bool),
    /// This number of the generation's idle connections was closed.
    IdleClosed(GenerationId, u64),
    /// The generation has closed its listeners, and its ghosts were removed as far as possible.
    Closed(GenerationId),
    /// The broker knows that leases have ended.
    GivenBack,
    /// The broker has released the listeners of `asked`, except those in `kept`, which are in use.
    Released { asked: Vec<String>, kept: BTreeSet<String> },
    /// The result of removing the generation's ghosts.
    Detached(GenerationId, Detached),
    /// The addresses that the generation bound itself, and those among them for which no call was
    /// seen.
    Foreign(GenerationId, BTreeSet<String>, BTreeSet<String>),
    /// A file is missing in the service's directory; the reply says whether it exists again.
    Removed(oneshot::Sender<bool>),
    /// The result of the check that the installed binary can read our state.
    Proved(Result<Box<ProvedBinary>, String>),
    /// No task asks a generation anything: this binary can be executed.
    Quiet(Box<ProvedBinary>),
}

/// The result of removing the ghosts of one generation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Detached {
    pub(crate) removed: usize,
    pub(crate) left: usize,
    /// The kernel does not permit it.
    pub(crate) refused: bool,
}

/// What was seen of a generation's addresses and listeners.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Addresses that the generation bound itself. None if they were not looked for, or not found
    /// in time.
    pub(crate) own: Option<BTreeSet<String>>,
    /// Indexes of the listeners that it does not listen on. None if it was not asked, or did not
    /// answer in time.
    pub(crate) missing: Option<Vec<usize>>,
}
