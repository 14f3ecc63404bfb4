//! The supervisor: starts generations of haproxy, or of another program, hands over from one to
//! the next, and sees each old one out. What differs between the two is in [`Kind`].
//!
//! What to do is decided by [`Timeline`] in core; here it is done, and what happens is
//! reported back. One thread, one loop: every source of events (signals,
//! processes, admin connections, clients) is a task that sends a [`Message`], so that
//! nothing happens between two steps of a decision.

#![forbid(unsafe_code)]

mod admin;
pub mod adopt;
mod announce;
mod asked;
mod broker;
mod compare;
mod control;
mod directory;
mod elsewhere;
mod error;
mod family;
mod files;
mod foreign;
mod found;
mod generation;
mod handover;
mod kind;
mod lease;
mod listeners;
mod metrics;
mod output;
mod own;
mod perform;
mod pid_file;
mod place;
mod process;
pub mod program;
mod promise;
mod proof;
mod readiness;
mod reaper;
mod report;
mod retire;
mod server_state;
mod sessions;
mod settings;
mod start;
mod take_over;
mod unused;
pub mod upgrade;
mod version;
pub mod watchdog;
mod watching;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use bindonce_core::event;
use bindonce_core::generation::{self as timeline, Caller, Ending, Event, GenerationId, Timeline};
use bindonce_observe::{Happening, Journal};
use bindonce_sys::hold::Hold;
use bindonce_sys::process::Exit;
use bindonce_sys::signals::{self, Signal, SignalFd};
use bindonce_sys::watch::Watch;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use admin::Info;
use announce::Announcer;
use control::Ask;
use directory::{Directory, Saved};
use generation::Generation;
use handover::Detached;
use report::Story;
use start::{Launched, Prepared};
use take_over::Inheritance;
use version::Version;
use watchdog::Watchdog;

pub use error::Error;
pub use kind::{Haproxy, Kind};
pub use place::{control_socket, events_file, service_directory, services};
pub use settings::{Ghosts, Settings};

/// How a supervisor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, and every generation is gone.
    Shutdown,
    /// The first generation failed; this is its story.
    NeverServed(String),
}

/// Supervises one service until it is told to stop. Call it within a
/// [`tokio::task::LocalSet`], in a process that has started no thread.
///
/// # Errors
/// Whatever keeps it from beginning; later failures are logged and answered.
pub async fn run(settings: Settings) -> Result<Ended, Error> {
    let span = tracing::info_span!("run", service = %settings.service);
    begin(settings).instrument(span).await
}

/// Runs a task on this thread, in whose log lines the service is named too.
fn spawn<T: 'static>(task: impl Future<Output = T> + 'static) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_local(task.in_current_span())
}

async fn begin(settings: Settings) -> Result<Ended, Error> {
    // Blocked before any thread exists, so that none of them is interrupted.
    let mut taken = signals::JOB_CONTROL.to_vec();
    taken.extend([Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2]);
    taken.extend([Signal::SIGTERM, Signal::SIGINT]);
    let signals = SignalFd::new(&taken).map_err(Error::system("take signals over"))?;
    let directory = Directory::open(&settings.socket, &settings.service)?;
    let saved = directory.load();
    // One that names only processes that are gone may be older than the last start: a directory that
    // was full took no newer one.
    let is_known = saved.as_ref().is_some_and(Saved::may_be_the_last);
    let mut saved = saved.unwrap_or_default();
    let mut left = Inheritance::take(&saved)?;
    let journal = Journal::open(&directory.events(), Some(settings.service.as_str()));
    journal.record(left.began());
    broker::ensure(&settings.socket, settings.start_broker, &journal).await?;
    if !is_known {
        let found = found::look(&settings, &directory, &journal).await?;
        saved = Saved { next: found.next.max(saved.next), generations: found.generations, ..saved };
    }
    let (sender, inbox) = mpsc::unbounded_channel();
    let control = match left.control.take() {
        Some(control) => control,
        None => control::bind(&directory.control())?,
    };
    let listener = control
        .try_clone()
        .map(std::os::unix::net::UnixListener::from)
        .and_then(tokio::net::UnixListener::from_std)
        .map_err(Error::system("serve the control socket"))?;
    let asks = sender.clone();
    spawn(control::serve(listener, Rc::clone(&journal), move |ask| {
        // The supervisor's loop ends only with the process.
        let _ = asks.send(Message::Asked(ask));
    }));
    if !settings.watch.is_empty() {
        // Before anything is read for the first generation.
        let files = files::Files::watch(settings.watch.clone())?;
        let changes = sender.clone();
        // The supervisor's loop ends only with the process.
        spawn(files.follow(move || drop(changes.send(Message::Changed))));
    }
    if reaper::is_needed() {
        spawn(reaper::reap());
    }
    let (address, socket) = (settings.metrics.clone(), settings.socket.clone());
    spawn(metrics::keep(directory.metrics(), address, socket, sender.clone()));
    let mut supervisor = Supervisor::new(settings, directory, &saved, control, sender, journal)?;
    supervisor.take_over(&saved, left).await?;
    supervisor.supervise(signals, inbox).await
}

/// Something that happened, on its way to the loop.
enum Message {
    /// For the timeline as it is.
    Event(Event),
    /// A process was started.
    Launched(GenerationId, Box<Launched>),
    /// No process could be started, and why.
    NotLaunched(GenerationId, Error),
    /// The files that are watched read differently.
    Changed,
    /// A program is ready, and by what sign.
    Ready(GenerationId, &'static str),
    /// It says that it is ready, and does not go on before it is let.
    Held(GenerationId, Rc<Hold>),
    /// The admin socket answered for the first time.
    Answers(GenerationId, Info),
    /// What a generation that is ready has bound, and how it was known to be ready.
    Compared(GenerationId, &'static str, compare::Seen),
    /// Which of its listeners the generation that is to take over does not listen on.
    Listens(GenerationId, Vec<usize>),
    /// The process has ended.
    Exited(GenerationId, Option<Exit>),
    /// A client wants something.
    Asked(Ask),
    /// Another process than us has told the generation that serves to stop, or its own master to
    /// reload: how.
    Leaves(GenerationId, &'static str),
    /// Somebody wants the metrics.
    Scraped(oneshot::Sender<String>),
    /// How many connections a draining generation has left.
    Left(GenerationId, u64),
    /// It has closed its listeners, and its ghosts were removed as far as they could be.
    Closed(GenerationId),
    /// The broker knows that leases have ended.
    GivenBack,
    /// These listeners are used, and stay.
    NotReleased(BTreeSet<String>),
    /// What came of removing its ghosts.
    Detached(GenerationId, Detached),
    /// What haproxy has bound by itself.
    Foreign(GenerationId, BTreeSet<String>),
    /// The binary that is installed now reads our state, or does not.
    Proved(Result<bindonce_sys::upgrade::Installed, String>),
}

struct Supervisor {
    settings: Rc<Settings>,
    directory: Rc<Directory>,
    timeline: Timeline,
    /// What the timeline counts time from.
    epoch: Instant,
    sender: mpsc::UnboundedSender<Message>,
    /// Generations that are being started and have no process yet.
    starting: HashMap<GenerationId, start::Starting>,
    generations: BTreeMap<GenerationId, Generation>,
    /// Configurations that may be started again.
    configurations: BTreeMap<GenerationId, Rc<Prepared>>,
    /// Who waits for a reload.
    callers: HashMap<Caller, oneshot::Sender<control::Answer>>,
    next_caller: u64,
    /// Who waits for a generation to be gone.
    retiring: Vec<retire::Retiring>,
    /// Ends when the broker knows which generation serves.
    confirmed: Option<oneshot::Receiver<()>>,
    /// Why the last generation that failed did so.
    failure: Story,
    /// This process has read the configuration before.
    read_before: bool,
    /// Somebody who waits for the next reload allows that nothing is left to listen on.
    allow_empty: bool,
    /// The generation that may have nothing to listen on.
    may_be_empty: Option<GenerationId>,
    /// What the newest generation leaves of what served before it.
    kept: promise::Kept,
    proof: Option<AbortHandle>,
    /// The generation that takes over if that succeeds.
    proving: Option<GenerationId>,
    /// What the generation that serves says of its listeners, where it is asked only now.
    late: Option<oneshot::Receiver<Option<String>>>,
    watchdog: Rc<RefCell<Watchdog>>,
    /// The version of the binary, where no admin socket tells it.
    version: Option<Version>,
    broker: Rc<lease::Shared>,
    /// Names of the listeners that exist because of this service.
    ours: BTreeSet<String>,
    /// Ghosts cannot be removed here: generations start without epoll.
    no_epoll: bool,
    ghosts_told: bool,
    /// The listening control socket, for the next image of this process.
    control: OwnedFd,
    upgrade: Option<oneshot::Sender<control::Answer>>,
    upgrading: bool,
    upgrades: u64,
    /// What haproxy has bound by itself, as far as it was told.
    foreign: BTreeSet<String>,
    /// The `pidfile` that was written last.
    pid_file: Option<Rc<Path>>,
    announcer: Announcer,
    journal: Rc<Journal>,
    /// The last signal that was not the normal course.
    last_warning: Option<(GenerationId, timeline::Reason)>,
    counts: report::Counts,
    measured: metrics::Measured,
    ending: Option<Ending>,
}

impl Supervisor {
    fn new(
        settings: Settings,
        directory: Directory,
        saved: &Saved,
        control: OwnedFd,
        sender: mpsc::UnboundedSender<Message>,
        journal: Rc<Journal>,
    ) -> Result<Self, Error> {
        let next = GenerationId(saved.next.max(1));
        let version = match &settings.kind {
            Kind::Haproxy(haproxy) if !haproxy.admin => {
                Some(Version::of(&haproxy.command.program)?)
            }
            _ => None,
        };
        let broker = Rc::new(lease::Shared {
            socket: settings.socket.clone(),
            start: settings.start_broker,
            service: settings.service.clone(),
            pid: Cell::new(None),
            starting: Mutex::new(()),
            lost: Cell::new(false),
            journal: Rc::clone(&journal),
        });
        Ok(Self {
            timeline: Timeline::new(settings.timing.clone(), next),
            no_epoll: settings.ghosts == Ghosts::NoEpoll,
            settings: Rc::new(settings),
            directory: Rc::new(directory),
            epoch: Instant::now(),
            sender,
            starting: HashMap::new(),
            generations: BTreeMap::new(),
            configurations: BTreeMap::new(),
            callers: HashMap::new(),
            next_caller: 0,
            retiring: Vec::new(),
            confirmed: None,
            failure: Story::default(),
            read_before: saved.inherited.is_some(),
            allow_empty: false,
            may_be_empty: None,
            kept: promise::Kept::default(),
            proof: None,
            proving: None,
            late: None,
            watchdog: Rc::new(RefCell::new(Watchdog::start()?)),
            version,
            broker,
            ours: saved.ours.clone(),
            ghosts_told: false,
            control,
            upgrade: None,
            upgrading: false,
            upgrades: saved.upgrades,
            foreign: BTreeSet::new(),
            pid_file: None,
            announcer: Announcer::new(),
            journal,
            last_warning: None,
            counts: report::Counts::default(),
            measured: metrics::Measured::default(),
            ending: None,
        })
    }

    async fn supervise(
        mut self,
        signals: SignalFd,
        mut inbox: mpsc::UnboundedReceiver<Message>,
    ) -> Result<Ended, Error> {
        let signalled = Watch::new(&signals).map_err(Error::system("watch for signals"))?;
        if self.timeline.serving().is_none() {
            self.reload(None, "the service begins", None);
        }
        loop {
            self.announcer.alive();
            self.maybe_upgrade();
            if let Some(ending) = self.ending {
                return Ok(self.end(ending));
            }
            let deadline = self.timeline.deadline().map(|at| self.epoch + at);
            let keep_alive = async {
                match self.announcer.keep_alive() {
                    Some(interval) => tokio::time::sleep(interval).await,
                    None => std::future::pending().await,
                }
            };
            let due = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ready = signalled.readable() => {
                    ready.map_err(Error::system("wait for signals"))?;
                    while let Some(signal) = signals.read().map_err(Error::system("read a signal"))? {
                        self.signal(signal);
                    }
                }
                Some(message) = inbox.recv() => self.take(message),
                () = due => self.feed(Event::Tick),
                () = keep_alive => {}
            }
        }
    }

    /// Gives an event to the timeline and performs what it says.
    fn feed(&mut self, event: Event) {
        for action in self.timeline.on(self.epoch.elapsed(), event) {
            self.perform(action);
        }
    }

    /// Sends an event to ourselves, to be taken after what is being done.
    fn later(&self, event: Event) {
        let _ = self.sender.send(Message::Event(event));
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Event(Event::Proved) => self.proved(),
            Message::Event(event) => self.feed(event),
            Message::Compared(id, how, seen) => self.compared(id, how, &seen),
            Message::Listens(id, deaf) => self.listens(id, &deaf),
            Message::Launched(id, launched) => self.launched(id, *launched),
            Message::NotLaunched(id, error) => {
                self.starting.remove(&id);
                let text = error.to_string();
                self.record(id, event::Kind::GenerationFailed, format!("not started: {text}"));
                self.failure = Story { text, hint: error.hint(), ..Story::default() };
                self.feed(Event::StartFailed(id));
            }
            Message::Answers(id, info) => {
                if let Some(generation) = self.generations.get_mut(&id) {
                    generation.version = Some(info.version);
                    generation.answers = info.pid;
                    self.ready(id, "its admin socket answers");
                }
            }
            Message::Changed => {
                tracing::info!("reload: the files that are watched have changed");
                self.reload(None, "the files that are watched have changed", None);
            }
            Message::Leaves(id, how) => self.leaves(id, how),
            Message::Ready(id, how) => self.ready(id, how),
            Message::Exited(id, exit) => self.exited(id, exit),
            Message::Asked(Ask::Reload { allow_empty, reply, pid }) => {
                self.allow_empty |= allow_empty;
                self.reload(Some(reply), "a client asked for it", Some(pid));
            }
            Message::Asked(Ask::Retire(id, reply, pid)) => self.retire(id, reply, pid),
            Message::Asked(Ask::Upgrade(reply)) => self.want_upgrade(reply),
            Message::Held(id, hold) => self.held(id, hold),
            Message::Left(id, connections) => {
                if let Some(generation) = self.generations.get_mut(&id) {
                    generation.connections = Some(connections);
                }
                self.feed(Event::Connections(id, connections));
            }
            Message::Closed(id) => self.closed(id),
            Message::GivenBack => self.release_unused(),
            Message::NotReleased(kept) => self.ours.extend(kept),
            Message::Detached(id, detached) => self.detached(id, detached),
            Message::Foreign(id, addresses) => self.found_foreign(id, &addresses),
            Message::Proved(proved) => self.upgrade_now(proved),
            // Who has gone away meanwhile misses nothing.
            Message::Scraped(reply) => drop(reply.send(self.metrics())),
            Message::Asked(Ask::Status(reply)) => self.tell_status(reply),
            Message::Asked(Ask::Ping(reply)) => self.tell_alive(reply),
        }
    }

    /// Records what happens to a generation, in the words of the log.
    fn record(&self, id: GenerationId, kind: event::Kind, text: impl Into<String>) {
        let pid = self.generations.get(&id).map(Generation::pid);
        self.journal.record(Happening::new(kind, text).generation(id.0).pid(pid));
    }
}
