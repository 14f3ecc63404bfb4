//! The events of a broker and of the supervisors beside it, as one stream: past events
//! ([`recent`]), and those from then on ([`follow`]).
//!
//! A broker or supervisor that does not run has left its events in a file, which is read instead. A
//! follower loses nothing across restarts: it reconnects and asks for what came after the last
//! event that it has seen.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use bindonce::{Client, Event, Follower};
use bindonce_core::name::Name;
use bindonce_supervisor as supervisor;

/// How long one source may take to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Time between two searches for a new source, or for a lost one: no event announces it.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The source of an event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The broker.
    Broker,
    /// The supervisor of a service.
    Service(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker => f.write_str("broker"),
            Self::Service(name) => f.write_str(name),
        }
    }
}

/// An event and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourcedEvent {
    pub(crate) source: Source,
    pub(crate) event: Event,
}

/// Past events.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// In the order in which they happened.
    pub(crate) events: Vec<SourcedEvent>,
    /// The last event of each source, for [`follow`].
    pub(crate) last: BTreeMap<Source, u64>,
    /// Sources that exist and could not be asked, and why.
    pub(crate) silent: Vec<(Source, bindonce::Error)>,
}

/// Where to ask a source, and where its events are when it does not run.
#[derive(Debug, Clone)]
struct Place {
    source: Source,
    socket: PathBuf,
    file: PathBuf,
}

/// The broker at `socket`, and every service beside it that has left something; with `only`, just
/// that service.
fn places(socket: &Path, only: Option<&Name>) -> Vec<Place> {
    let mut places = Vec::new();
    if only.is_none() {
        let file = bindonce_broker::events_file(socket);
        places.push(Place { source: Source::Broker, socket: socket.to_owned(), file });
    }
    let named = |name: &Name| only.is_none_or(|only| only == name);
    for name in supervisor::services(socket).into_iter().filter(named) {
        let control = supervisor::control_socket(socket, &name);
        let file = supervisor::events_file(socket, &name);
        if control.exists() || file.exists() {
            let source = Source::Service(name.to_string());
            places.push(Place { source, socket: control, file });
        }
    }
    places.sort_by(|one, other| one.source.cmp(&other.source));
    places
}

/// Past events of the broker at `socket` and the services beside it, or of one service.
pub(crate) fn recent(socket: &Path, only: Option<&Name>) -> Recent {
    let mut recent = Recent::default();
    for place in places(socket, only) {
        let asked =
            Client::connect_within(&place.socket, ANSWER).and_then(|mut client| client.events(0));
        let events = match asked {
            Ok(answer) => answer.events,
            Err(error) => {
                let left = bindonce_daemon::read(&place.file).unwrap_or_default();
                if left.is_empty() || !matches!(error, bindonce::Error::Connect { .. }) {
                    recent.silent.push((place.source.clone(), error));
                }
                left
            }
        };
        if let Some(last) = events.last() {
            recent.last.insert(place.source.clone(), last.id);
        }
        let source = &place.source;
        recent
            .events
            .extend(events.into_iter().map(|event| SourcedEvent { source: source.clone(), event }));
    }
    // The sort is stable: events of one source stay in order, whatever the clock did.
    recent.events.sort_by_key(|sourced| sourced.event.time);
    recent
}

/// Follows all sources, including later ones, from the events in `last` on. The threads last as
/// long as the process: a command follows once, and ends.
pub(crate) fn follow(
    socket: &Path,
    only: Option<Name>,
    last: BTreeMap<Source, u64>,
) -> Receiver<SourcedEvent> {
    let (sender, receiver) = channel();
    let socket = socket.to_owned();
    thread::spawn(move || {
        let mut known = Vec::new();
        loop {
            for place in places(&socket, only.as_ref()) {
                if !known.contains(&place.source) {
                    known.push(place.source.clone());
                    let since = last.get(&place.source).copied().unwrap_or(0);
                    let sender = sender.clone();
                    thread::spawn(move || follow_one(&place, since, &sender));
                }
            }
            thread::sleep(LOOK_AGAIN);
        }
    });
    receiver
}

/// Follows one source across its restarts, until the receiver is gone.
fn follow_one(place: &Place, mut since: u64, sender: &Sender<SourcedEvent>) {
    loop {
        for event in Follower::connect(&place.socket, since).into_iter().flatten().flatten() {
            since = event.id;
            if sender.send(SourcedEvent { source: place.source.clone(), event }).is_err() {
                return;
            }
        }
        thread::sleep(LOOK_AGAIN);
    }
}
