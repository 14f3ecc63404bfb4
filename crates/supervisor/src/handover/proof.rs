//! The proof that no process accepts, for a handover behind a pause.
//!
//! While the new generation is stopped and the older ones are told to pause, the supervisor samples
//! the accept queue of every listener. A queue that is not empty and did not shrink for [`STILL`]
//! shows that no process accepts from it, known to us or not. Where no client waits, a probe fills
//! the queue. For QUIC the receive queue counts: an Initial packet begins a connection, and the
//! probe is a packet that no one answers. A queue that refills as fast as it drains would look
//! still, so each older generation's own count of accepted connections must not move during the
//! same time.
//!
//! A listener that no connection from here reaches, and that no client uses at this moment, shows
//! nothing. It must not delay the other listeners: there the older generations' own stop is the
//! evidence. See docs/architecture.md, "Why sharing a socket is not enough".

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::address::Address;
use bindonce_core::generation::{Event, GenerationId, Observation, PAUSE_AGAIN};
use bindonce_sys::probe::{self, Probe};
use bindonce_sys::tree::Stopping;
use bindonce_sys::watch::Ticks;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::context::Context;
use crate::generations::admin::{Admin, NoAnswer};
use crate::generations::listeners::HeldListener;
use crate::message::Message;

/// How long each queue must stand still.
const STILL: Duration = Duration::from_millis(5);
/// The same, where an older generation cannot be asked. Then no answer shows that a process which
/// might accept has run meanwhile, and on a busy machine a process may not run for some
/// milliseconds.
const STILL_UNASKED: Duration = Duration::from_millis(25);
/// Between two samples.
const SAMPLE: Duration = Duration::from_millis(1);
/// How long an older generation may take to answer. It is asked again at each sample.
const ANSWER: Duration = Duration::from_millis(100);
/// How long a queue may show nothing before its listener counts as one that no connection from here
/// reaches: a firewall may drop the connection, or `--no-probe` may forbid it.
const GIVE_UP: Duration = Duration::from_millis(40);
/// The number of probes to one listener that may follow each other at each sample; later probes are
/// [`PROBE_AGAIN`] apart.
const MANY_PROBES: u32 = 20;
const PROBE_AGAIN: Duration = Duration::from_millis(20);

/// The subject of the proof, and its means.
pub(crate) struct Proof {
    /// The new generation, unless it waits in its readiness call. A process of it that is not yet
    /// stopped takes connections as a stranger would.
    pub(crate) stopping: Option<Stopping>,
    /// The listeners that the older generations accept from.
    pub(crate) listeners: Vec<Rc<HeldListener>>,
    /// The older generations.
    pub(crate) older: Vec<Older>,
    /// Whether to probe listeners where no client waits.
    pub(crate) probe: bool,
    /// The addresses of all sockets of the service.
    pub(crate) taken: Vec<Address>,
}

/// An older generation.
pub(crate) struct Older {
    pub(crate) id: GenerationId,
    /// Its admin connection.
    pub(crate) admin: Option<Admin>,
    /// Inodes of its listeners.
    pub(crate) inodes: BTreeSet<u64>,
}

/// The result and cost of the watch, for the log.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shown {
    pub(crate) probes: u32,
    /// Number of listeners that no connection from here reaches, and from which no process took a
    /// connection.
    pub(crate) unseen: usize,
}

impl Proof {
    /// Watches until the proof succeeds, or goes as far as it can. Every [`PAUSE_AGAIN`] it reports
    /// that it is not proved yet.
    ///
    /// # Errors
    /// Those of the kernel's timer. The timeline's deadline then ends the handover.
    pub(crate) async fn watch(self, cx: &Context) -> io::Result<Shown> {
        let tell = |event| cx.later(event);
        let answered = Rc::new(Notify::new());
        let mut questions = JoinSet::new();
        let counts: Vec<_> = self
            .older
            .iter()
            .filter_map(|older| Some((older.id, older.admin.clone()?)))
            .map(|(id, admin)| {
                let count = Rc::new(Count::new(id));
                questions.spawn_local(Rc::clone(&count).follow(admin, Rc::clone(&answered)));
                count
            })
            .collect();
        let targets = |held: &HeldListener| match self.probe {
            true => held.probe_targets(&self.taken),
            false => Vec::new(),
        };
        let queue = |held: Rc<HeldListener>| Queue::new(targets(&held), held);
        let mut queues: Vec<_> = self.listeners.into_iter().map(queue).collect();
        let mut stopping = self.stopping;
        let begun = Instant::now();
        let mut report = begun + PAUSE_AGAIN;
        let mut ticks = Ticks::every(SAMPLE)?;
        loop {
            tokio::select! {
                tick = ticks.tick() => {
                    tick?;
                    if stopping.as_mut().is_some_and(Stopping::step) {
                        stopping = None;
                    }
                    queues.iter_mut().for_each(Queue::sample);
                    for count in &counts {
                        count.ask.notify_one();
                    }
                }
                () = answered.notified() => {}
            }
            let now = Instant::now();
            let still = queues
                .iter()
                .filter(|queue| !queue.is_unseen(begun, now))
                .map(|queue| queue.still)
                .min_by(later_or_none);
            match still {
                None => {
                    tell(Event::ProvedInPart { all_paused: false });
                    return Ok(shown(&queues));
                }
                Some(None) => {}
                Some(Some(since)) => {
                    // The queues and the counts must stand still at the same time. A queue that was
                    // long before the first question must not wait for an answer older than the
                    // question.
                    let since =
                        counts.iter().map(|count| count.unchanged.get()).fold(since, Instant::max);
                    let until = since + still_for(self.older.len(), &counts);
                    let left = until.saturating_duration_since(now);
                    if !left.is_zero() && left < SAMPLE {
                        // Clients wait, so the last sample is taken as soon as it can complete the
                        // proof.
                        ticks.next_in(left)?;
                    }
                    if left.is_zero() && counts.iter().all(|count| count.stood(since, until)) {
                        // A process that did not run all this time, on a busy machine, has taken
                        // nothing either. Its answer shows that it has run, and haproxy takes
                        // waiting connections before it answers. So a connection that still waits
                        // now was left by every generation.
                        queues.iter_mut().for_each(Queue::look);
                        let stands = |queue: &Queue| queue.still.is_some_and(|at| at <= since);
                        if queues.iter().all(stands) {
                            tell(Event::Proved);
                            return Ok(shown(&queues));
                        }
                        if queues.iter().all(|q| stands(q) || q.is_unseen(begun, now)) {
                            let at_rest: BTreeSet<_> = queues
                                .iter()
                                .filter(|queue| stands(queue))
                                .map(|queue| queue.listener.inode)
                                .collect();
                            let paused = |older: &Older| !older.inodes.is_disjoint(&at_rest);
                            let all_paused = self.older.iter().all(paused);
                            tell(Event::ProvedInPart { all_paused });
                            return Ok(shown(&queues));
                        }
                    }
                }
            }
            if report <= now {
                report = now + PAUSE_AGAIN;
                // Reports the connections that a forced end would cut.
                let left = |count: &Rc<Count>| Some(Message::Left(count.id, count.left.get()?));
                counts.iter().filter_map(left).for_each(|left| cx.send(left));
                tell(Event::Unproved(observe(&queues, &counts, now)));
            }
        }
    }
}

/// Orders so that the least value is the one that the proof waits for: a queue that does not stand
/// still, else the queue that stands still for the shortest time.
fn later_or_none(a: &Option<Instant>, b: &Option<Instant>) -> std::cmp::Ordering {
    match (a, b) {
        (Some(a), Some(b)) => b.cmp(a),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

/// How long each queue must stand still, with so many older generations.
fn still_for(older: usize, counts: &[Rc<Count>]) -> Duration {
    let asked = counts.iter().filter(|count| !count.closed.get()).count();
    if older > 0 && asked == older { STILL } else { STILL_UNASKED }
}

fn shown(queues: &[Queue]) -> Shown {
    Shown {
        probes: queues.iter().map(|queue| queue.probes).sum(),
        unseen: queues.iter().filter(|queue| queue.still.is_none()).count(),
    }
}

fn observe(queues: &[Queue], counts: &[Rc<Count>], now: Instant) -> Observation {
    let lately = |at: Option<Instant>| at.is_some_and(|at| at + PAUSE_AGAIN >= now);
    let who = |what: &dyn Fn(&Count) -> bool| {
        counts.iter().filter(|count| what(count)).map(|count| count.id).collect()
    };
    Observation {
        moving: queues.iter().any(|queue| lately(queue.shrank)),
        accepting: who(&|count| lately(count.grew.get())),
        silent: who(&|count| !count.closed.get() && !lately(Some(count.answered.get()))),
    }
}

/// The state of one queue over time.
struct Queue {
    listener: Rc<HeldListener>,
    length: u32,
    /// Since when the queue is not empty and did not shrink.
    still: Option<Instant>,
    /// When the queue last shrank.
    shrank: Option<Instant>,
    probes: u32,
    probed: Option<Instant>,
    /// Addresses at which a connection may reach the listener. Addresses where it did not are
    /// removed.
    targets: VecDeque<Address>,
    /// A connection to the first target reaches this listener and no other.
    certain: bool,
    /// A probe connection that the kernel has not completed yet.
    pending: Option<Probe>,
}

impl Queue {
    fn new(targets: Vec<Address>, listener: Rc<HeldListener>) -> Self {
        Self {
            targets: targets.into(),
            listener,
            length: 0,
            still: None,
            shrank: None,
            probes: 0,
            probed: None,
            certain: false,
            pending: None,
        }
    }

    /// Whether the queue shows nothing and will not: it is empty, no process took a connection from
    /// it, and no connection from here reaches it.
    fn is_unseen(&self, begun: Instant, now: Instant) -> bool {
        let given_up = self.targets.is_empty() || now >= begun + GIVE_UP;
        self.still.is_none() && self.shrank.is_none() && given_up
    }

    /// Samples the queue, and probes it if it is empty.
    fn sample(&mut self) {
        self.look();
        if self.length > 0 {
            self.pending = None;
            return;
        }
        match self.pending.as_mut().map(Probe::is_complete) {
            None => self.probe(),
            Some(false) => {}
            Some(true) => {
                self.pending = None;
                match self.listener.bound {
                    Address::Quic(_) => self.arrived(),
                    // The last step of the connection may still be under way.
                    _ => self.look(),
                }
            }
        }
    }

    fn look(&mut self) {
        // The time is taken first: a queue has not stood still for longer than it is known to.
        let now = Instant::now();
        let length = self.listener.queue();
        if length < self.length {
            self.shrank = Some(now);
            self.still = None;
        }
        self.length = length;
        if length > 0 {
            self.still.get_or_insert(now);
        } else {
            self.still = None;
        }
    }

    fn probe(&mut self) {
        let wait = if self.probes < MANY_PROBES { Duration::ZERO } else { PROBE_AGAIN };
        let now = Instant::now();
        if self.probed.is_some_and(|at| at + wait > now) {
            return;
        }
        let Some(target) = self.targets.front().cloned() else { return };
        self.probed = Some(now);
        let mut probe = match Probe::begin(&target, self.listener.fd.as_fd()) {
            Ok(probe) => probe,
            Err(error) => return self.missed(&error.to_string()),
        };
        if !probe.is_complete() {
            self.pending = Some(probe);
            return;
        }
        self.arrived();
    }

    /// A probe to the first target completed.
    fn arrived(&mut self) {
        let Some(target) = self.targets.front().cloned() else { return };
        self.probes += 1;
        // The connection is in the queue when connect(2) returns; the queue stands still from now
        // on.
        self.look();
        if self.length > 0 {
            return;
        }
        // The connection was taken before the look, or reached another listener.
        self.certain =
            self.certain || probe::comes_to(&target, self.listener.inode).unwrap_or(false);
        if self.certain {
            self.shrank = Some(Instant::now());
        } else {
            self.missed("another listener takes connections there");
        }
    }

    /// A connection to the first target does not reach this listener.
    fn missed(&mut self, why: &str) {
        if let Some(target) = self.targets.pop_front() {
            let listener = &self.listener.label;
            tracing::debug!(listener, %target, "no probe reaches it: {why}");
        }
    }
}

/// An older generation's count of accepted connections over time.
struct Count {
    id: GenerationId,
    value: Cell<Option<u64>>,
    /// Its current number of connections.
    left: Cell<Option<u64>>,
    /// When the first question was sent that got the current value as its answer.
    unchanged: Cell<Instant>,
    /// When the last answered question was sent.
    asked_at: Cell<Instant>,
    /// When the last answer came, or a part of one.
    answered: Cell<Instant>,
    grew: Cell<Option<Instant>>,
    closed: Cell<bool>,
    /// Wakes the task that asks.
    ask: Notify,
}

impl Count {
    fn new(id: GenerationId) -> Self {
        let now = Cell::new(Instant::now());
        Self {
            id,
            value: Cell::new(None),
            left: Cell::new(None),
            unchanged: now.clone(),
            asked_at: now.clone(),
            answered: now,
            grew: Cell::new(None),
            closed: Cell::new(false),
            ask: Notify::new(),
        }
    }

    /// Asks for the count each time it is woken. Ends with the connection.
    async fn follow(self: Rc<Self>, admin: Admin, answered: Rc<Notify>) {
        let mut received = admin.received();
        loop {
            self.ask.notified().await;
            let asked = Instant::now();
            match admin.info(ANSWER).await {
                Ok(info) => {
                    let now = Instant::now();
                    if self.value.get() != Some(info.accepted) {
                        if self.value.replace(Some(info.accepted)).is_some() {
                            self.grew.set(Some(now));
                        }
                        self.unchanged.set(asked);
                    }
                    self.left.set(Some(info.connections));
                    self.asked_at.set(asked);
                    self.answered.set(now);
                }
                // It still answers an older question.
                Err(NoAnswer::InTime) if admin.received() != received => {
                    self.answered.set(Instant::now());
                }
                Err(NoAnswer::InTime) => {}
                Err(NoAnswer::Closed) => {
                    self.closed.set(true);
                    return answered.notify_one();
                }
            }
            received = admin.received();
            answered.notify_one();
        }
    }

    /// Whether the count is known not to have grown from `since` to `until`. A generation whose
    /// connection has ended cannot tell; the accept queues must show it.
    fn stood(&self, since: Instant, until: Instant) -> bool {
        self.closed.get()
            || (self.value.get().is_some()
                && self.unchanged.get() <= since
                && self.asked_at.get() >= until)
    }
}

#[cfg(test)]
mod tests;
