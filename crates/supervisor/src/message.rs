//! What is sent to the loop: everything that happens beside it.

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
use crate::error::Error;
use crate::generations::listeners::HeldListener;
use crate::generations::since::Since;
use crate::generations::start::Launched;
use crate::intercept::requests::{Listens, Want};
use crate::master_cli;
use bindonce_haproxy::cli::Info;
use bindonce_haproxy::counters::Counters;

/// Something that happened, on its way to the loop.
pub(crate) enum Message {
    /// For the timeline as it is.
    Event(Event),
    /// A process was started.
    Launched(GenerationId, Box<Launched>),
    /// What a generation that is about to be started begins to count with.
    Preset(GenerationId, Counters),
    /// No process could be started, and why.
    NotLaunched(GenerationId, Error),
    /// The files that are watched read differently.
    Changed(u64),
    /// A program is ready, and by what sign.
    Ready(GenerationId, &'static str),
    /// It says that it is ready, and does not go on before it is let.
    Held(GenerationId, Rc<Hold>),
    /// Its calls can be answered.
    Intercepts(GenerationId, Arc<Intercept>),
    /// They can be answered no more.
    Unanswerable(GenerationId),
    /// They cannot: the kernel, or a container, does not let us see them.
    Unseen(GenerationId, String),
    /// haproxy is about to bind this socket by itself, if that is known, there.
    Binds(GenerationId, Option<u64>, Own),
    /// A program wants to bind an address that is intercepted.
    Wants(GenerationId, Want),
    /// It was given this one; true: it had bound it by itself.
    Claimed(GenerationId, Rc<HeldListener>, bool),
    /// It is about to listen there.
    Listening(GenerationId, Listens),
    /// It has had the time to listen on more than so many.
    Settled(GenerationId, usize),
    /// The admin socket answered for the first time.
    Answers(GenerationId, Info),
    /// What a generation that is ready has bound, and how it was known to be ready.
    Compared(GenerationId, &'static str, Compared),
    /// Which of its listeners the generation that is to take over does not listen on.
    /// What was proved before it went on is to be told then.
    Listens(GenerationId, Option<Vec<usize>>, Event),
    /// A generation that was told to accept again has not said that it does.
    StillPaused(GenerationId),
    /// The process has ended.
    Exited(GenerationId, Option<Exit>),
    /// A reload was answered.
    Answered,
    /// A client wants something.
    Command(Command),
    /// A client of the master CLI does.
    Master(master_cli::Ask),
    /// Another process than us has told the generation that serves to stop, or its own master to
    /// reload: how.
    Leaves(GenerationId, &'static str),
    /// A scrape of the metrics.
    Scraped(oneshot::Sender<String>),
    /// The generations that can tell what they have counted have done so for it.
    Page(oneshot::Sender<String>),
    /// What a generation has counted so far.
    Counted(GenerationId, Counters),
    /// It has told for the last time, and may go.
    LetGo(GenerationId),
    /// A look at the status page.
    LookedAt(oneshot::Sender<StatusPage>),
    /// How many connections a generation has, or has left.
    Left(GenerationId, u64),
    /// Its admin connection had ended a moment ago: unless it has ended too, what it has is not known any more.
    CannotTell(GenerationId),
    /// What a generation has done since its start, and whether it has stopped accepting.
    Counts(GenerationId, Since, bool),
    /// So many idle connections of it were closed.
    IdleClosed(GenerationId, u64),
    /// It has closed its listeners, and its ghosts were removed as far as they could be.
    Closed(GenerationId),
    /// The broker knows that leases have ended.
    GivenBack,
    /// The broker was asked to release these listeners, and has; `kept` are those that are used, and stay.
    Released { asked: Vec<String>, kept: BTreeSet<String> },
    /// What came of removing its ghosts.
    Detached(GenerationId, Detached),
    /// What it has bound by itself, and what of that without a call that was seen.
    Foreign(GenerationId, BTreeSet<String>, BTreeSet<String>),
    /// Something is missing in the directory of the service; answered with whether it is there again.
    Removed(oneshot::Sender<bool>),
    /// The binary that is installed now reads our state, or does not.
    Proved(Result<bindonce_daemon::reexec::Installed, String>),
}

/// What came of removing the ghosts of one generation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Detached {
    pub(crate) removed: usize,
    pub(crate) left: usize,
    /// The kernel does not permit it.
    pub(crate) refused: bool,
}

/// What was seen of a generation that is ready.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Addresses that it has bound by itself.
    pub(crate) own: BTreeSet<String>,
    /// Which of its listeners it does not listen on; None if it was not asked, or did not answer in time.
    pub(crate) missing: Option<Vec<usize>>,
}
