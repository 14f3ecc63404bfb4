//! The proof that nobody accepts, for a handover behind a pause.
//!
//! While the new generation is stopped and the older ones are told to pause, the
//! accept queue of every listener is sampled. A queue that is not empty and was
//! never seen to shrink for [`STILL`] means that nobody accepts from it, whoever
//! might: known to us or not. Where no client waits, a probe does. A queue that is
//! refilled as fast as it drains would look still, so each older generation's
//! own count of accepted connections must not move over the same time.
//! See docs/architecture.md, "Why sharing a socket is not enough".

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::address::Address;
use bindonce_core::generation::{Event, GenerationId, Observation, PAUSE_AGAIN};
use bindonce_sys::watch::Ticks;
use bindonce_sys::{probe, queue};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::admin::{Admin, NoAnswer};
use super::listeners::Held;

/// How long each queue must stand still.
const STILL: Duration = Duration::from_millis(5);
/// The same where no older generation can be asked: then no answer shows that whoever might accept
/// has run meanwhile, and on a busy machine a process may well not run for some milliseconds.
const STILL_UNASKED: Duration = Duration::from_millis(25);
/// Between two samples.
const SAMPLE: Duration = Duration::from_millis(1);
/// How long an older generation may take to answer; it is asked again at each sample.
const ANSWER: Duration = Duration::from_millis(100);
/// Probes to one listener: at first at each sample, then no more often than this.
const MANY_PROBES: u32 = 20;
const PROBE_AGAIN: Duration = Duration::from_millis(20);

/// What is to be proved, and with what.
pub(super) struct Proof {
    /// The listeners that the older generations accept from.
    pub(super) listeners: Vec<Rc<Held>>,
    /// The older generations that can be asked.
    pub(super) older: BTreeMap<GenerationId, Admin>,
    /// Whether to connect where no client waits.
    pub(super) probe: bool,
    /// Where all TCP sockets of the service are bound.
    pub(super) taken: Vec<SocketAddr>,
}

/// What the watch has cost, for the log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    pub(super) probes: u32,
}

impl Proof {
    /// Watches until it is proved, telling every [`PAUSE_AGAIN`] that it is not.
    ///
    /// # Errors
    /// Those of the kernel's timer; the timeline's deadline then ends the handover.
    pub(super) async fn watch(self, tell: impl Fn(Event)) -> io::Result<Cost> {
        let answered = Rc::new(Notify::new());
        let mut questions = JoinSet::new();
        let counts: Vec<_> = self
            .older
            .into_iter()
            .map(|(id, admin)| {
                let count = Rc::new(Count::new(id));
                questions.spawn_local(Rc::clone(&count).follow(admin, Rc::clone(&answered)));
                count
            })
            .collect();
        let target = |held: &Rc<Held>| held.probe_target(&self.taken).filter(|_| self.probe);
        let queue = |held: Rc<Held>| Queue::new(target(&held), held);
        let mut queues: Vec<_> = self.listeners.into_iter().map(queue).collect();
        let still_for = if counts.is_empty() { STILL_UNASKED } else { STILL };
        let mut report = Instant::now() + PAUSE_AGAIN;
        let mut ticks = Ticks::every(SAMPLE)?;
        loop {
            tokio::select! {
                tick = ticks.tick() => {
                    tick?;
                    queues.iter_mut().for_each(Queue::sample);
                    for count in &counts {
                        count.ask.notify_one();
                    }
                }
                () = answered.notified() => {}
            }
            let now = Instant::now();
            let still = queues.iter().map(|queue| queue.still).min_by(later_or_none);
            if let Some(Some(since)) = still {
                // From when both stand still: a queue that was long before the first question
                // must not wait for an answer that is older than the question.
                let since =
                    counts.iter().map(|count| count.unchanged.get()).fold(since, Instant::max);
                let until = since + still_for;
                if until <= now && counts.iter().all(|count| count.stood(since, until)) {
                    // One that did not run all this time, on a busy machine, has taken nothing
                    // either. Its answer shows that it has run; and haproxy takes what it finds
                    // waiting before it answers. So what waits even now is left by all.
                    queues.iter_mut().for_each(Queue::look);
                    if queues.iter().all(|queue| queue.still.is_some_and(|at| at <= since)) {
                        tell(Event::Proved);
                        return Ok(Cost { probes: queues.iter().map(|queue| queue.probes).sum() });
                    }
                }
            }
            if report <= now {
                report = now + PAUSE_AGAIN;
                tell(Event::Unproved(observe(&queues, &counts, now)));
            }
        }
    }
}

/// Orders so that the least is what the proof waits for: a queue that does not stand still, else
/// the one that began last.
fn later_or_none(a: &Option<Instant>, b: &Option<Instant>) -> std::cmp::Ordering {
    match (a, b) {
        (Some(a), Some(b)) => b.cmp(a),
        (a, b) => a.is_some().cmp(&b.is_some()),
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

/// One accept queue over time.
struct Queue {
    listener: Rc<Held>,
    /// Where a probe gets into it.
    target: Option<Address>,
    length: u32,
    /// Since when it is not empty and has not been seen to shrink.
    still: Option<Instant>,
    /// When it was last seen to shrink.
    shrank: Option<Instant>,
    probes: u32,
    probed: Option<Instant>,
}

impl Queue {
    fn new(target: Option<Address>, listener: Rc<Held>) -> Self {
        Self { listener, target, length: 0, still: None, shrank: None, probes: 0, probed: None }
    }

    /// Looks at the queue; where nobody waits in it, lets a probe wait there.
    fn sample(&mut self) {
        self.look();
        if self.length == 0 && self.probe() {
            // A connection is in the queue when connect(2) returns: it stands still from now on.
            self.look();
        }
    }

    fn look(&mut self) {
        // Taken first: a queue has not stood still for longer than it is known to.
        let now = Instant::now();
        // A listener that cannot be asked proves nothing: it counts as empty.
        let length = queue::accept_queue(self.listener.fd.as_fd()).map_or(0, |queue| queue.len);
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

    /// Whether a connection was made.
    fn probe(&mut self) -> bool {
        let wait = if self.probes < MANY_PROBES { Duration::ZERO } else { PROBE_AGAIN };
        let Some(target) = &self.target else {
            return false;
        };
        let now = Instant::now();
        if self.probed.is_some_and(|at| at + wait > now) {
            return false;
        }
        self.probed = Some(now);
        match probe::connect_and_reset(target) {
            Ok(()) => {
                self.probes += 1;
                // Whoever takes it before the next look is seen all the same.
                self.length = 1;
                true
            }
            Err(error) => {
                tracing::debug!(listener = %self.listener.label, %error, "probe failed");
                false
            }
        }
    }
}

/// One older generation's count of accepted connections over time.
struct Count {
    id: GenerationId,
    value: Cell<Option<u64>>,
    /// When the first question was sent whose answer was this value.
    unchanged: Cell<Instant>,
    /// When the last question was sent that was answered.
    asked: Cell<Instant>,
    /// When the last answer came.
    answered: Cell<Instant>,
    grew: Cell<Option<Instant>>,
    closed: Cell<bool>,
    /// Wakes the asking.
    ask: Notify,
}

impl Count {
    fn new(id: GenerationId) -> Self {
        let now = Cell::new(Instant::now());
        Self {
            id,
            value: Cell::new(None),
            unchanged: now.clone(),
            asked: now.clone(),
            answered: now,
            grew: Cell::new(None),
            closed: Cell::new(false),
            ask: Notify::new(),
        }
    }

    /// Asks again and again; ends with the connection.
    async fn follow(self: Rc<Self>, admin: Admin, answered: Rc<Notify>) {
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
                    self.asked.set(asked);
                    self.answered.set(now);
                }
                Err(NoAnswer::InTime) => {}
                Err(NoAnswer::Closed) => {
                    self.closed.set(true);
                    return answered.notify_one();
                }
            }
            answered.notify_one();
        }
    }

    /// Whether it is known not to have grown from `since` to `until`. One whose connection has
    /// ended cannot tell: the accept queues must do.
    fn stood(&self, since: Instant, until: Instant) -> bool {
        self.closed.get()
            || (self.value.get().is_some()
                && self.unchanged.get() <= since
                && self.asked.get() >= until)
    }
}
