//! haproxy's own counters, summed over all generations of the service, including those that are
//! gone.
//!
//! A generation is asked at a scrape, now and then while it drains, and once more when no
//! connection is left, before it is let go: nothing counts after that. What it counts between the
//! last answer and its death is lost.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bindonce_core::generation::GenerationId;
use bindonce_daemon::state;
use bindonce_haproxy::counters::{self, Counters, QUESTION, Totals};
use bindonce_sys::worker;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::context::Context;
use crate::disk::directory;
use crate::generations::admin::Admin;
use crate::message::Message;

/// How long an answer may take, and how long reading it may take.
const ANSWER: Duration = Duration::from_secs(1);
/// A generation is left alone for at least this many times as long as its last answer took.
const PAUSE: u32 = 10;
/// Minimum time between two questions to a draining generation.
const DRAINING: Duration = Duration::from_secs(1);
/// How long the disk may take.
const WRITTEN: Duration = Duration::from_secs(10);

/// The counters, and when each generation may be asked again.
pub(crate) struct Counting {
    totals: Rc<RefCell<Arc<Totals>>>,
    paces: BTreeMap<GenerationId, Rc<Pace>>,
    changed: Rc<Notify>,
}

/// How often one generation is asked: the longer its answer takes, the less often.
#[derive(Debug, Default)]
pub(crate) struct Pace(Cell<Option<Instant>>);

impl Pace {
    pub(crate) fn is_due(&self) -> bool {
        self.0.get().is_none_or(|next| next <= Instant::now())
    }

    fn answered(&self, begun: Instant, least: Duration) {
        self.0.set(Some(Instant::now() + (begun.elapsed() * PAUSE).max(least)));
    }
}

/// The file for the next supervisor: tables, as `show stat` writes them.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Saved {
    gone: String,
    live: BTreeMap<u64, String>,
    preset: BTreeMap<u64, String>,
}

impl Counting {
    /// Restores the counters that an earlier supervisor has left at `path`, and keeps them there
    /// for the next.
    pub(crate) fn resume(path: PathBuf) -> Self {
        let saved = state::read(&path, state::LARGEST).and_then(|text| {
            Ok(serde_json::from_slice::<Saved>(&text.unwrap_or_else(|| b"{}".to_vec()))?)
        });
        let saved = saved.unwrap_or_else(|error| {
            let moved_to = state::move_aside(&path);
            tracing::warn!(moved_to, "haproxy's counters begin at zero: {error}");
            Saved::default()
        });
        let read = |text: &str| counters::read(text).unwrap_or_default();
        let [live, preset] = [&saved.live, &saved.preset]
            .map(|tables| tables.iter().map(|(id, text)| (*id, read(text))));
        let totals = Totals::new(read(&saved.gone), live, preset);
        let totals = Rc::new(RefCell::new(Arc::new(totals)));
        let changed = Rc::default();
        crate::tasks::spawn(keep(path, Rc::clone(&totals), Rc::clone(&changed)));
        Self { totals, paces: BTreeMap::new(), changed }
    }

    /// Notes that every generation but these is gone.
    pub(crate) fn only(&mut self, living: &BTreeSet<u64>) {
        self.change(|totals| totals.end_others(living));
    }

    /// When this generation may be asked.
    pub(crate) fn pace(&mut self, id: GenerationId) -> Rc<Pace> {
        Rc::clone(self.paces.entry(id).or_default())
    }

    /// The counters that a generation about to be started begins with.
    pub(crate) fn preset(&mut self, id: GenerationId, preset: Counters) {
        self.change(|totals| totals.preset(id.0, preset));
    }

    /// The counters that a generation has reported.
    pub(crate) fn update(&mut self, id: GenerationId, now: Counters) {
        self.change(|totals| totals.update(id.0, now));
    }

    pub(crate) fn gone(&mut self, id: GenerationId) {
        self.paces.remove(&id);
        self.change(|totals| totals.end(id.0));
    }

    fn change(&self, change: impl FnOnce(&mut Totals)) {
        change(Arc::make_mut(&mut self.totals.borrow_mut()));
        self.changed.notify_one();
    }

    pub(crate) fn totals(&self) -> Arc<Totals> {
        Arc::clone(&self.totals.borrow())
    }
}

/// Writes the counters to disk when they have changed. What is lost with this process, living
/// generations report again.
async fn keep(path: PathBuf, totals: Rc<RefCell<Arc<Totals>>>, changed: Rc<Notify>) {
    let mut failed = false;
    loop {
        changed.notified().await;
        let (to, totals) = (path.clone(), Arc::clone(&totals.borrow()));
        let written = worker::within(WRITTEN, move || write(&to, &totals)).await;
        let written = written.and_then(std::convert::identity);
        if let Err(error) = &written
            && !failed
        {
            let what = directory::remedy(&path, error);
            tracing::warn!(%error, "haproxy's counters could not be saved: {what}");
        }
        failed = written.is_err();
    }
}

fn write(path: &Path, totals: &Totals) -> io::Result<()> {
    let [live, preset] = [totals.live(), totals.presets()]
        .map(|of| of.iter().map(|(id, counters)| (*id, counters.table())).collect());
    let saved = Saved { gone: totals.gone().table(), live, preset };
    state::exchange(path, &serde_json::to_vec(&saved)?)
}

/// Asks a generation for its counters, and sends them to the loop.
pub(crate) async fn ask(cx: &Context, id: GenerationId, admin: &Admin, pace: &Pace) {
    let begun = Instant::now();
    let answer = admin.ask(QUESTION, ANSWER).await;
    if let Ok(text) = answer
        && let Ok(Some(counters)) = worker::within(ANSWER, move || counters::read(&text)).await
    {
        cx.send(Message::Counted(id, counters));
    } else {
        tracing::debug!(generation = id.0, "its counters could not be read");
    }
    pace.answered(begun, Duration::ZERO);
}

/// The same for a draining generation, if it is due.
pub(crate) async fn ask_draining(cx: &Context, id: GenerationId, admin: &Admin, pace: &Pace) {
    if pace.is_due() {
        let begun = Instant::now();
        ask(cx, id, admin, pace).await;
        pace.answered(begun, DRAINING);
    }
}
