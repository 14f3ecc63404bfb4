//! The state that lines of `global` set for every line that haproxy reads after them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use super::listeners::mark;
use super::quoting::quoted;
use super::world::Environment;

/// The variable that holds the name of the local peer.
pub(super) const LOCALPEER: &str = "HAPROXY_LOCALPEER";

/// The reader's state at one line.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) environment: Environment,
    /// The environment at haproxy's start.
    initial: Environment,
    local_peer: String,
    /// Whether a `localpeer` line has been seen.
    names_local_peer: bool,
    /// Whether a `peers` section has been opened.
    pub(super) has_peers: bool,
    /// Whether `master-worker` has been seen.
    pub(super) master_worker: bool,
    /// Whether the first of two passes is over: the keywords of the first pass have no effect in
    /// the second.
    pub(super) second_pass: bool,
    /// Values that keywords have set for names of `enabled()`.
    switches: BTreeMap<&'static [u8], bool>,
    /// Whether haproxy has answered which variables it sets itself.
    known: bool,
    marks: Cell<Marks>,
}

/// What the reader has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// The environment or the name of the local peer was read.
    pub(super) looked: bool,
    /// A variable that only haproxy knows was read before haproxy was asked.
    pub(super) unknown: bool,
}

/// Keywords that switch a feature of `enabled()` off, the name of that feature, and whether haproxy
/// takes the keyword in its first pass over global sections only, where it has one.
const SWITCHES: [(&[u8], &[u8], bool); 8] = [
    (b"noepoll", b"EPOLL", true),
    (b"nopoll", b"POLL", true),
    (b"nokqueue", b"KQUEUE", true),
    (b"noevports", b"EVPORTS", true),
    (b"nosplice", b"SPLICE", false),
    (b"nogetaddrinfo", b"GETADDRINFO", false),
    (b"noreuseport", b"REUSEPORT", false),
    (b"tune.disable-fast-forward", b"FAST-FORWARD", false),
];

/// The effect of a line of `global`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// No effect on this state.
    Nothing,
    /// It changed the environment.
    Environment,
    /// The effect depends on whether haproxy has two passes.
    ByPasses,
    /// It removed all variables but the named ones.
    Reset,
    /// It changed something else.
    Other,
}

impl State {
    /// `reads_twice`: whether haproxy has two passes. None before haproxy has been asked; then the
    /// environment lacks the variables that haproxy itself sets.
    pub(super) fn new(
        environment: Environment,
        local_peer: String,
        reads_twice: Option<bool>,
    ) -> Self {
        let known = reads_twice.is_some();
        let mut state = Self { environment, local_peer, known, ..Self::default() };
        if reads_twice != Some(true) {
            state.name_local_peer();
        }
        state.initial.clone_from(&state.environment);
        state
    }

    /// Restores the environment of haproxy's start.
    pub(super) fn begin_again(&mut self) {
        self.environment.clone_from(&self.initial);
    }

    /// The value of a variable in the environment of haproxy's start.
    pub(super) fn initial(&self, name: &[u8]) -> Option<&Vec<u8>> {
        self.initial.get(name)
    }

    /// Lines of `global` that lead from the current environment to the one at haproxy's start, and
    /// change nothing when that one is current already. Variables that haproxy sets itself (`own`)
    /// are left out.
    pub(super) fn lines_back(&self, own: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut lines = Vec::new();
        let names: BTreeSet<_> = self.initial.keys().chain(self.environment.keys()).collect();
        for name in names.into_iter().filter(|name| !own(name)) {
            let (now, then) = (self.environment.get(name), self.initial.get(name));
            // Our own variables hold descriptor numbers in the running haproxy.
            if now == then || then.is_some_and(|value| is_mark(name, value)) {
                continue;
            }
            // haproxy's `setenv` cannot set an empty value.
            let line = match then.filter(|value| !value.is_empty()) {
                Some(value) => [b"    setenv ", &*quoted(name), b" ", &*quoted(value)].concat(),
                None => [b"    unsetenv ", &*quoted(name)].concat(),
            };
            lines.extend([&*line, b"\n"].concat());
        }
        lines
    }

    /// The value of a variable.
    pub(super) fn get(&self, name: &[u8]) -> Option<&Vec<u8>> {
        let haproxys = name.starts_with(b"HAPROXY_");
        self.mark(Marks { looked: true, unknown: haproxys && !self.known });
        self.environment.get(name)
    }

    /// The name of the local peer.
    pub(super) fn local_peer(&self) -> &[u8] {
        self.mark(Marks { looked: true, unknown: false });
        self.local_peer.as_bytes()
    }

    fn mark(&self, marks: Marks) {
        let before = self.marks.get();
        self.marks.set(Marks {
            looked: before.looked || marks.looked,
            unknown: before.unknown || marks.unknown,
        });
    }

    pub(super) fn marks(&self) -> Marks {
        self.marks.get()
    }

    /// Restores the marks from before a line that turned out not to matter.
    pub(super) fn restore(&self, marks: Marks) {
        self.marks.set(marks);
    }

    /// The value that keywords have set for a name of `enabled()`.
    pub(super) fn enabled(&self, name: &[u8]) -> Option<bool> {
        self.switches.get(name).copied()
    }

    pub(super) fn set(&mut self, name: &str, value: Vec<u8>) {
        self.environment.insert(name.as_bytes().to_vec(), value);
    }

    /// Sets `HAPROXY_LOCALPEER`. haproxy does so before it reads the files; where it reads them
    /// twice, only between its passes.
    pub(super) fn name_local_peer(&mut self) {
        self.set(LOCALPEER, self.local_peer.clone().into_bytes());
    }

    /// Takes a line of `global`, in the first of two passes over the files or in the second or only
    /// one. The caller skips `localpeer` beside `-L`, where it has no effect.
    pub(super) fn global(&mut self, words: &[&[u8]], first_pass: bool) -> Done {
        let value = |index: usize| words.get(index).copied().unwrap_or_default();
        let names = words.get(1..).unwrap_or_default();
        match words[0] {
            b"setenv" | b"presetenv" if !value(2).is_empty() => {
                let (name, value) = (value(1).to_vec(), value(2).to_vec());
                if words[0] == b"setenv" {
                    self.environment.insert(name, value);
                } else {
                    self.environment.entry(name).or_insert(value);
                }
                Done::Environment
            }
            b"unsetenv" => {
                for name in names.iter().take_while(|name| !name.is_empty()) {
                    self.environment.remove(*name);
                }
                Done::Environment
            }
            b"resetenv" => {
                let end = names.iter().position(|name| name.is_empty()).unwrap_or(names.len());
                let kept = |name: &Vec<u8>, value: &Vec<u8>| {
                    names[..end].contains(&name.as_slice()) || is_mark(name, value)
                };
                self.environment.retain(|name, value| kept(name, value));
                Done::Reset
            }
            // In a single pass haproxy ignores the line after a `peers` section.
            b"localpeer" if self.has_peers && !self.second_pass => Done::ByPasses,
            b"localpeer" => {
                // In a single pass `localpeer` sets the variable too, even if earlier lines have
                // changed it.
                let untouched = self.environment.get(LOCALPEER.as_bytes()).map(Vec::as_slice)
                    == Some(self.local_peer.as_bytes());
                let first = !std::mem::replace(&mut self.names_local_peer, true);
                if !self.second_pass {
                    self.local_peer = String::from_utf8_lossy(value(1)).into_owned();
                    if !first_pass {
                        self.name_local_peer();
                    }
                }
                if untouched && first { Done::Environment } else { Done::ByPasses }
            }
            b"master-worker" => {
                self.master_worker |= !self.second_pass;
                Done::Other
            }
            b"ssl-server-verify" if !first_pass => {
                self.switches.insert(b"SERVER-SSL-VERIFY-NONE", value(1) == b"none");
                Done::Other
            }
            keyword => {
                let found = SWITCHES.iter().find(|(word, ..)| *word == keyword);
                match found {
                    Some((_, name, early))
                        if !if *early { self.second_pass } else { first_pass } =>
                    {
                        self.switches.insert(name, false);
                        Done::Other
                    }
                    _ => Done::Nothing,
                }
            }
        }
    }
}

/// Whether a variable holds the descriptor of a listener.
fn is_mark(name: &[u8], value: &[u8]) -> bool {
    value == mark(&String::from_utf8_lossy(name))
}
