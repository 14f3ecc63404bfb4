//! Events: the words for what can happen, and a ring of the latest ones.
//!
//! [`Ring`] guarantees, whatever is put in or read back: it never exceeds its limit, ids only grow
//! and are never reused, and only the oldest entries are lost. So a reader that names the last id
//! it has seen gets every later event, or sees by a gap in the ids that it came too late for some.

use std::collections::VecDeque;

/// How many events a broker or a supervisor remembers.
pub const REMEMBERED: usize = 1000;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $word:literal,)*) => {
        /// What happened, in one word that keeps its meaning: logs, events, metrics and
        /// docs/operations.md share it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The word.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$kind => $word,)*
                }
            }
        }
    };
}

kinds! {
    /// A supervisor was asked for a reload, or found a reason for one.
    ReloadAsked = "reload-asked",
    /// A reload succeeded: the new generation serves alone.
    ReloadDone = "reload-done",
    /// A reload failed, or an unknown process accepts beside the new generation.
    ReloadFailed = "reload-failed",
    /// A process was started for a generation.
    GenerationStarted = "generation-started",
    /// A generation has bound everything and could accept.
    GenerationReady = "generation-ready",
    /// A generation accepts, alone.
    GenerationServing = "generation-serving",
    /// A generation has stopped accepting and serves its open connections.
    GenerationDraining = "generation-draining",
    /// A generation that had been told to stop has ended.
    GenerationGone = "generation-gone",
    /// A generation did not come up.
    GenerationFailed = "generation-failed",
    /// A generation ended while it served.
    GenerationDied = "generation-died",
    /// The serving generation stopped accepting, not at the request of its supervisor: another
    /// process told it to stop, or the program closed its sockets.
    GenerationStopped = "generation-stopped",
    /// A generation was started again after it died.
    Restart = "restart",
    /// A restart with an older configuration, because the newest keeps dying.
    Rollback = "rollback",
    /// A signal beyond the normal course was sent to a generation.
    SignalEscalated = "signal-escalated",
    /// Epoll registrations of closed listeners were removed from a generation.
    GhostsRemoved = "ghosts-removed",
    /// Epoll registrations of closed listeners could not be removed.
    GhostsLeft = "ghosts-left",
    /// A process that is no generation accepts, or may accept, on the service's listeners.
    UnknownAcceptor = "unknown-acceptor",
    /// haproxy has bound a socket itself.
    ForeignBind = "foreign-bind",
    /// A supervisor started.
    SupervisorStarted = "supervisor-started",
    /// A supervisor took a generation over from an earlier supervisor, or from its own earlier
    /// image.
    TakenOver = "taken-over",
    /// A supervisor was told to end.
    SupervisorEnding = "supervisor-ending",
    /// A supervisor lost its broker.
    BrokerLost = "broker-lost",
    /// A supervisor has found its broker and its listeners again.
    BrokerBack = "broker-back",
    /// A broker started, or a supervisor started one.
    BrokerStarted = "broker-started",
    /// The broker that a supervisor started has ended.
    BrokerEnded = "broker-ended",
    /// A broker shuts down in order.
    BrokerEnding = "broker-ending",
    /// A broker or supervisor was upgraded in place.
    Upgraded = "upgraded",
    /// An upgrade in place failed, and nothing has changed.
    UpgradeFailed = "upgrade-failed",
    /// Listeners were bound.
    ListenerBound = "listener-bound",
    /// Listeners were closed.
    ListenerReleased = "listener-released",
    /// Options of a listener were changed in place or found changed, or its name was taken back.
    ListenerChanged = "listener-changed",
    /// Listeners of an earlier broker are held again.
    ListenerRestored = "listener-restored",
    /// A listener of an earlier broker was not recovered, or a supervisor cannot claim one again.
    ListenerLost = "listener-lost",
    /// A listener had left LISTEN and was made to listen again.
    ListenerRepaired = "listener-repaired",
    /// A listener has left LISTEN and cannot be made to listen again.
    ListenerBroken = "listener-broken",
    /// A claim failed: no rule allows it, or the address is in use, overlaps, or has other options.
    ClaimRefused = "claim-refused",
    /// A peer asked for something that it may not do.
    Denied = "denied",
    /// A limit was reached: of listeners, connections, descriptors or time.
    LimitReached = "limit-reached",
    /// A broker has recovered what it can after a crash.
    Recovered = "recovered",
    /// Rules and limits were read again.
    ConfigRead = "config-read",
    /// Rules and limits could not be read, and stay as they were.
    ConfigRefused = "config-refused",
}

/// How much an event matters to a person who watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// A service is as it should be.
    Good,
    /// It belongs to the normal course.
    Normal,
    /// It does not belong to the normal course, and the service goes on.
    Warning,
    /// Something failed, was lost, or needs a person.
    Error,
}

impl Kind {
    /// The kind with this word; None for the word of a newer version.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.word() == word)
    }

    /// How much it matters: the status page and `bindonce top` colour it by this.
    pub fn severity(self) -> Severity {
        match self {
            Self::ReloadDone | Self::GenerationServing | Self::BrokerBack => Severity::Good,
            Self::Restart | Self::Rollback | Self::SignalEscalated | Self::GhostsLeft => {
                Severity::Warning
            }
            Self::ReloadFailed
            | Self::GenerationFailed
            | Self::GenerationDied
            | Self::UnknownAcceptor
            | Self::BrokerLost
            | Self::UpgradeFailed
            | Self::ListenerLost
            | Self::ListenerBroken => Severity::Error,
            _ => Severity::Normal,
        }
    }
}

/// The latest entries, oldest first, each with an id.
#[derive(Debug, Clone)]
pub struct Ring<T> {
    limit: usize,
    next: u64,
    entries: VecDeque<(u64, T)>,
}

impl<T> Ring<T> {
    /// An empty ring that keeps `limit` entries; the first id is 1.
    pub fn new(limit: usize) -> Self {
        Self { limit, next: 1, entries: VecDeque::new() }
    }

    /// A ring that continues after the entries that were read back. Entries out of the order of
    /// their ids are left out.
    pub fn resume(limit: usize, read: impl IntoIterator<Item = (u64, T)>) -> Self {
        let mut ring = Self::new(limit);
        for (id, entry) in read {
            if id >= ring.next && id < u64::MAX {
                ring.next = id;
                ring.push(entry);
            }
        }
        ring
    }

    /// Adds an entry and returns its id. Drops the oldest entry if there are too many.
    pub fn push(&mut self, entry: T) -> u64 {
        let id = self.next;
        self.next += 1;
        self.entries.push_back((id, entry));
        if self.entries.len() > self.limit {
            self.entries.pop_front();
        }
        id
    }

    /// The entries after this id, oldest first. An id that was never given comes from a ring that
    /// is lost: then every entry is new.
    pub fn after(&self, id: u64) -> impl Iterator<Item = (u64, &T)> {
        let id = if id < self.next { id } else { 0 };
        let from = self.entries.partition_point(|(known, _)| *known <= id);
        self.entries.iter().skip(from).map(|(id, entry)| (*id, entry))
    }

    /// The newest id given; 0 if none was.
    pub fn last(&self) -> u64 {
        self.next - 1
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Lets a limited number of events of a kind through in each period and counts the rest, so that a
/// peer that repeats itself does not push everything else out of a [`Ring`].
#[derive(Debug, Clone, Default)]
pub struct Flood {
    begun: Option<u64>,
    passed: u32,
    held: u64,
}

impl Flood {
    /// How long a period lasts, in milliseconds.
    pub const PERIOD: u64 = 10_000;
    /// How many events pass in a period.
    pub const PASS: u32 = 10;

    /// Whether an event at `now` (in milliseconds) passes; if so, how many before it did not.
    pub fn on(&mut self, now: u64) -> Option<u64> {
        self.up_to(Self::PASS, now)
    }

    /// As [`Flood::on`], with `most` events in a period.
    pub fn up_to(&mut self, most: u32, now: u64) -> Option<u64> {
        // A clock that was set back begins a new period too.
        if self.begun.is_none_or(|begun| now < begun || now - begun >= Self::PERIOD) {
            (self.begun, self.passed) = (Some(now), 0);
        }
        if self.passed >= most {
            self.held += 1;
            return None;
        }
        self.passed += 1;
        Some(std::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_unique_and_plain() {
        let words: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.word()).collect();
        assert_eq!(words.len(), Kind::ALL.len());
        for word in words {
            assert!(word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{word}");
        }
    }

    #[test]
    fn a_word_tells_its_kind_and_how_much_it_matters() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_word(kind.word()), Some(*kind));
        }
        assert_eq!(Kind::from_word("of-a-newer-version"), None);
        for (kind, severity) in [
            (Kind::GenerationServing, Severity::Good),
            (Kind::GenerationGone, Severity::Normal),
            (Kind::Restart, Severity::Warning),
            (Kind::UnknownAcceptor, Severity::Error),
            (Kind::UpgradeFailed, Severity::Error),
        ] {
            assert_eq!(kind.severity(), severity, "{}", kind.word());
        }
        // What failed, broke or was lost is never less than an error.
        let is_bad = |kind: &&Kind| {
            ["-failed", "-died", "-lost", "-broken"].iter().any(|end| kind.word().ends_with(end))
        };
        for kind in Kind::ALL.iter().filter(is_bad) {
            assert_eq!(kind.severity(), Severity::Error, "{}", kind.word());
        }
    }

    #[test]
    fn a_flood_passes_a_few_and_counts_the_rest() {
        let mut flood = Flood::default();
        let passed = (0..100).filter(|_| flood.on(5).is_some()).count();
        assert_eq!(passed, 10);
        assert_eq!(flood.on(5 + Flood::PERIOD), Some(90));
        assert_eq!(flood.on(6 + Flood::PERIOD), Some(0));
        assert_eq!(flood.on(3), Some(0), "a clock that was set back");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u32),
        Restart,
        After(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => any::<u32>().prop_map(Step::Push),
            1 => Just(Step::Restart),
            2 => (0u64..80).prop_map(Step::After),
        ];
        proptest::collection::vec(step, 0..120)
    }

    proptest! {
        /// Against a model that forgets nothing.
        #[test]
        fn never_too_many_ids_grow_and_only_the_oldest_is_lost(limit in 1usize..20, steps in steps()) {
            let mut ring = Ring::new(limit);
            let mut all: Vec<(u64, u32)> = Vec::new();
            for step in steps {
                match step {
                    Step::Push(value) => {
                        let id = ring.push(value);
                        prop_assert!(all.last().is_none_or(|(last, _)| id > *last));
                        all.push((id, value));
                    }
                    Step::Restart => {
                        let written: Vec<_> = ring.after(0).map(|(id, v)| (id, *v)).collect();
                        ring = Ring::resume(limit, written);
                    }
                    Step::After(since) => {
                        let after: Vec<_> = ring.after(since).map(|(id, v)| (id, *v)).collect();
                        let known = since <= ring.last();
                        let kept = &all[all.len().saturating_sub(limit)..];
                        let expected: Vec<_> =
                            kept.iter().filter(|(id, _)| !known || *id > since).copied().collect();
                        prop_assert_eq!(after, expected);
                    }
                }
                prop_assert!(ring.len() <= limit && ring.len() == all.len().min(limit));
                prop_assert_eq!(ring.last(), all.last().map_or(0, |(id, _)| *id));
            }
        }

        /// Even if the file is damaged.
        #[test]
        fn what_is_read_back_is_in_order(limit in 1usize..20, read in proptest::collection::vec((any::<u64>(), 0u8..9), 0..60)) {
            let mut ring = Ring::resume(limit, read);
            let ids: Vec<_> = ring.after(0).map(|(id, _)| id).collect();
            prop_assert!(ids.is_sorted_by(|a, b| a < b) && ids.len() <= limit);
            let last = ring.last();
            prop_assert!(ring.push(1) > last);
        }
    }
}
