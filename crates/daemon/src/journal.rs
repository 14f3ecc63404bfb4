//! The journal: records events, remembers the latest, and wakes followers.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use bindonce_core::event::{Flood, Kind, REMEMBERED, Ring};
use bindonce_core::text::printable;
use bindonce_core::time::Timestamp;
use bindonce_sys::clock::now;
use bindonce_wire::event::Event;
use bindonce_wire::result::EventsResult;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::event_file::EventFile;

/// The longest text of an event, in bytes; the rest is in the log.
const LONGEST: usize = 500;

/// An event to record.
#[derive(Debug, Clone)]
#[must_use = "it has to be recorded"]
pub struct Happening {
    kind: Kind,
    service: Option<Box<str>>,
    generation: Option<u64>,
    pid: Option<i32>,
    text: String,
}

impl Happening {
    /// An event of this kind; `text` is the line of the log.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, service: None, generation: None, pid: None, text: text.into() }
    }

    /// Sets the service of the event. A supervisor need not set it.
    pub fn service(self, service: Option<&str>) -> Self {
        Self { service: service.map(Into::into), ..self }
    }

    /// Sets the generation of the event.
    pub fn generation(self, generation: impl Into<Option<u64>>) -> Self {
        Self { generation: generation.into(), ..self }
    }

    /// Sets the process of the event.
    pub fn pid(self, pid: impl Into<Option<i32>>) -> Self {
        Self { pid: pid.into(), ..self }
    }
}

/// The events of one broker or one service.
#[derive(Debug)]
pub struct Journal {
    service: Option<Box<str>>,
    ring: RefCell<Ring<Event>>,
    kept: RefCell<Option<EventFile>>,
    counts: RefCell<BTreeMap<Kind, u64>>,
    floods: RefCell<BTreeMap<Kind, Flood>>,
    bell: Notify,
    pub(crate) followers: Cell<usize>,
}

impl Journal {
    /// Continues with the events in the file at `path`, and keeps new events there. If the file
    /// cannot be read or written, that is logged, and the journal works without it.
    pub fn open(path: &Path, service: Option<&str>) -> Rc<Self> {
        let (kept, read) = EventFile::open(path);
        let ring = Ring::resume(REMEMBERED, read.into_iter().map(|event| (event.id, event)));
        Rc::new(Self::with(service, ring, Some(kept)))
    }

    /// A journal that is kept nowhere.
    pub fn in_memory(service: Option<&str>) -> Rc<Self> {
        Rc::new(Self::with(service, Ring::new(REMEMBERED), None))
    }

    fn with(service: Option<&str>, ring: Ring<Event>, kept: Option<EventFile>) -> Self {
        Self {
            service: service.map(Into::into),
            ring: RefCell::new(ring),
            kept: RefCell::new(kept),
            counts: RefCell::default(),
            floods: RefCell::default(),
            bell: Notify::new(),
            followers: Cell::new(0),
        }
    }

    /// Records an event, with the current time.
    pub fn record(&self, happening: Happening) {
        let time = now();
        *self.counts.borrow_mut().entry(happening.kind).or_default() += 1;
        let Some(unsaid) = self.passes(happening.kind, time) else { return };
        let Happening { kind, service, generation, pid, text } = happening;
        let mut text = one_line(text);
        if unsaid != 0 {
            text.push_str(&format!(" (and {unsaid} more of this kind before)"));
        }
        let mut ring = self.ring.borrow_mut();
        let mut event = Event::new(ring.last() + 1, time, kind.word(), text);
        event.service = service.or_else(|| self.service.clone());
        event.generation = generation;
        event.pid = pid;
        if let Some(kept) = &mut *self.kept.borrow_mut() {
            kept.add(&event, &ring);
        }
        ring.push(event);
        self.bell.notify_waiters();
    }

    /// Makes the next event write a new file with all events: the old file was removed.
    pub fn write_anew(&self) {
        self.kept.borrow_mut().iter_mut().for_each(EventFile::forget);
    }

    /// Whether an event is recorded; if so, how many before it were not. Events that a peer can
    /// cause as often as it likes must not push out the rest.
    fn passes(&self, kind: Kind, time: Timestamp) -> Option<u64> {
        match kind {
            Kind::Denied | Kind::LimitReached | Kind::ClaimRefused | Kind::ListenerRepaired => {
                self.floods.borrow_mut().entry(kind).or_default().on(time.0)
            }
            _ => Some(0),
        }
    }

    /// The events after this id, oldest first.
    pub fn after(&self, id: u64) -> Vec<Event> {
        self.ring.borrow().after(id).map(|(_, event)| event.clone()).collect()
    }

    /// The answer to the request `events`.
    pub fn answer(&self, since: u64, following: bool) -> EventsResult {
        EventsResult::new(self.after(since), self.ring.borrow().last(), following)
    }

    /// The number of events of this kind since this process began.
    pub fn count(&self, kind: Kind) -> u64 {
        self.counts.borrow().get(&kind).copied().unwrap_or(0)
    }

    /// The number of events of each kind that occurred since this process began.
    pub fn counts(&self) -> Vec<(Kind, u64)> {
        self.counts.borrow().iter().map(|(kind, count)| (*kind, *count)).collect()
    }

    /// The number of followers.
    pub fn followers(&self) -> usize {
        self.followers.get()
    }

    /// Completes when an event is recorded after this call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.bell.notified()
    }

    /// Removes the file, after an orderly end: no reader will ask for its events.
    pub fn remove(&self) {
        if let Some(kept) = self.kept.borrow_mut().take() {
            kept.remove();
        }
    }
}

/// At most [`LONGEST`] bytes of the text, on one line, with control characters escaped.
fn one_line(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    if text.contains('\n') {
        text = text.lines().map(str::trim_end).collect::<Vec<_>>().join(" | ");
    }
    match printable(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(shown) => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_every_kind() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
        let page = std::fs::read_to_string(page).expect("the page");
        for kind in Kind::ALL {
            let word = format!("`{}`", kind.word());
            assert!(page.lines().any(|l| l.starts_with("| `") && l.contains(&word)), "{word}");
        }
    }

    #[test]
    fn a_text_is_one_short_line() {
        assert_eq!(one_line("a\nb\r\n".to_owned()), "a | b");
        assert_eq!(one_line("a\x1b[2J".to_owned()), "a\\u{1b}[2J");
        let long = one_line("ä".repeat(LONGEST));
        assert!(long.len() <= LONGEST + 3 && long.ends_with("ä..."), "{long}");
    }

    #[test]
    fn one_who_is_denied_again_and_again_leaves_the_rest() {
        let journal = Journal::in_memory(Some("web"));
        journal.record(Happening::new(Kind::GenerationServing, "serving").generation(1).pid(7));
        for _ in 0..5000 {
            journal.record(Happening::new(Kind::Denied, "denied"));
        }
        let events = journal.after(0);
        assert_eq!(events.first().map(|event| &*event.kind), Some("generation-serving"));
        assert_eq!(events.first().and_then(|event| event.service.as_deref()), Some("web"));
        assert!(events.len() < 50, "{}", events.len());
        assert_eq!(journal.count(Kind::Denied), 5000);
    }
}
