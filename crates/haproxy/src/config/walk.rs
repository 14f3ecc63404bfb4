//! Going through the files as haproxy does, line by line, with the state that
//! lines leave behind for those after them: environment, conditions, sections
//! and their defaults, `unix-bind` and `default-path`.
//!
//! From 3.1 on haproxy does it twice: a first pass takes nothing but a few keywords of
//! all global sections, and what they have set is there for every line of the second.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::binds::{self, Surroundings};
use super::command::Command;
use super::conditions::Blocks;
use super::default_path::DefaultPath;
use super::expression::{self, Value};
use super::files::{self, Source};
use super::listeners::{Met, Names, Supply, mark};
use super::options::Said;
use super::pid_file::PidFile;
use super::questions::{Answers, Questions};
use super::reader::{self, Line, Unset, Word, printable};
use super::render::{Change, LeftAlone, RenderedFile, Rendering, Supplied};
use super::sections::{Kind, Proxy, Section};
use super::server_state::ServerStates;
use super::state::{Done, State};
use super::world::{Environment, World};
use super::{Error, Place};

/// A change to one file: the bytes there give way to others.
pub(super) struct Edit {
    pub(super) range: Range<usize>,
    pub(super) text: Vec<u8>,
}

/// A `resetenv` line: the variables made after it have to be named on it, and in haproxy's first
/// pass all others too.
pub(super) struct Reset {
    pub(super) place: Place,
    /// Which of the user's files it is in, and the byte behind its keyword.
    pub(super) source: usize,
    pub(super) at: usize,
    pub(super) words: usize,
    pub(super) variables: usize,
}

/// Why reading has ended early.
pub(super) enum Stopped {
    Error(Error),
    /// haproxy has to be asked first; then everything is read once more.
    Asks(Questions),
}

pub(super) struct Walk<'a> {
    pub(super) world: &'a dyn World,
    pub(super) command: &'a Command,
    pub(super) sources: &'a [Source],
    /// What haproxy has said; none as long as nothing had to be asked.
    pub(super) answers: Option<&'a Answers>,
    pub(super) keep: Vec<String>,
    pub(super) directory: PathBuf,
    pub(super) state: State,
    /// The environment that haproxy begins with.
    initial: Environment,
    /// This is haproxy's first pass.
    first_pass: bool,
    /// Which of the user's files is read.
    source: usize,
    asks: Cell<bool>,
    /// Terms of conditions that haproxy has not been asked about.
    terms: RefCell<BTreeSet<Vec<u8>>>,
    pub(super) prefix: Option<Vec<u8>>,
    pub(super) unix: Said,
    pub(super) path: DefaultPath,
    pub(super) section: Section,
    /// The first `program` section.
    program: Option<(String, Place)>,
    pub(super) defaults: BTreeMap<Vec<u8>, Proxy>,
    pub(super) last_defaults: Proxy,
    pub(super) supply: Supply,
    pub(super) names: Names,
    pub(super) met: Met,
    pub(super) server_states: ServerStates,
    pid_file: PidFile,
    pub(super) edits: Vec<Vec<Edit>>,
    pub(super) resets: Vec<Reset>,
    pub(super) out: Rendering,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        command: &'a Command,
        supplied: &Supplied<'_>,
        world: &'a dyn World,
        sources: &'a [Source],
        answers: Option<&'a Answers>,
    ) -> Result<Self, Error> {
        let supply = Supply::new(supplied.listeners)?;
        let mut names = Names::default();
        let mut environment = world.environment();
        let local_peer = match &command.local_peer {
            Some(name) => name.to_string_lossy().into_owned(),
            None => world.host_name(),
        };
        for variable in supply.variables() {
            names.reserve(variable);
            environment.insert(variable.as_bytes().to_vec(), mark(variable));
        }
        for variable in supplied.keep {
            names.reserve(variable);
        }
        if let Some(version) = answers.and_then(|answers| answers.variable(STARTUP_VERSION)) {
            environment.entry(STARTUP_VERSION.into()).or_insert_with(|| version.to_vec());
        }
        let state = State::new(environment, local_peer, answers.is_some());
        Ok(Self {
            world,
            command,
            sources,
            answers,
            keep: supplied.keep.iter().map(|&name| name.to_owned()).collect(),
            directory: files::directory(command, world),
            initial: state.environment.clone(),
            state,
            first_pass: false,
            source: 0,
            asks: Cell::new(false),
            terms: RefCell::default(),
            prefix: None,
            unix: Said::default(),
            path: DefaultPath::default(),
            section: Section::default(),
            program: None,
            defaults: BTreeMap::new(),
            last_defaults: Proxy::default(),
            supply,
            names,
            met: Met::default(),
            server_states: ServerStates::default(),
            pid_file: PidFile::default(),
            edits: Vec::new(),
            resets: Vec::new(),
            out: Rendering::default(),
        })
    }

    /// Reads everything.
    pub(super) fn run(mut self) -> Result<Rendering, Stopped> {
        let read = self.read();
        if self.must_ask() {
            return Err(Stopped::Asks(self.questions()));
        }
        read.map_err(Stopped::Error)?;
        self.keep_through_resets().map_err(Stopped::Error)?;
        let has_master = self.has_master();
        self.out.master_worker = has_master;
        self.out.pid_file = self.pid_file.finish(has_master, &self.directory, &mut self.edits);
        for (file, edits) in self.out.files.iter_mut().zip(self.edits) {
            (file.text, file.changes) = edited(&file.text, edits);
        }
        let without = |word: &std::ffi::OsString| word.as_bytes().starts_with(b"-dR");
        self.out.no_reuse_port = self.command.arguments.iter().any(without)
            || self.state.enabled(b"REUSEPORT") == Some(false);
        self.out.unused = self.supply.unused();
        self.out.server_states = self.server_states.files(&self.directory);
        Ok(self.out)
    }

    fn read(&mut self) -> Result<(), Error> {
        self.begin();
        if self.answers.is_some_and(|answers| answers.discovery) {
            self.first_pass = true;
            for (index, source) in self.sources.iter().enumerate() {
                self.source = index;
                self.file(&source.path, &source.text)?;
            }
            self.first_pass = false;
            self.between_passes();
        }
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            if let Some(text) = self.path.start_of(&source.path) {
                self.add_file(&source.path, text, true);
            }
            self.add_file(&source.path, source.text.clone(), false);
            self.file(&source.path, &source.text)?;
        }
        self.no_programs()?;
        if self.out.files.is_empty() { Err(Error::NoFiles) } else { Ok(()) }
    }

    /// Each generation has a master of its own, which would run one more copy of each program and live as
    /// long as it. Without a master haproxy itself refuses the section.
    fn no_programs(&mut self) -> Result<(), Error> {
        match self.program.take().filter(|_| self.has_master()) {
            Some((section, place)) => Err(Error::Program { section, place }),
            None => Ok(()),
        }
    }

    fn has_master(&self) -> bool {
        self.command.master_worker || self.state.master_worker
    }

    /// Sets what haproxy sets before it reads the files, in each pass.
    fn begin(&mut self) {
        let Some(answers) = self.answers else { return };
        for (name, value) in &answers.variables {
            match (name.as_str(), value) {
                // These have times of their own.
                (STARTUP_VERSION | CFGFILES | "HAPROXY_LOCALPEER" | "HAPROXY_MWORKER", _) => {}
                (name, Some(value)) => self.state.set(name, value.clone()),
                (name, None) => drop(self.state.environment.remove(name.as_bytes())),
            }
        }
    }

    /// What haproxy does between its passes: a worker begins with the environment of before, and
    /// any other process knows all its files from now on.
    fn between_passes(&mut self) {
        if self.has_master() {
            self.state.environment.clone_from(&self.initial);
            self.state.set("HAPROXY_MWORKER", b"1".to_vec());
        } else {
            self.state.set(CFGFILES, files::listed(self.sources));
        }
        self.state.name_local_peer();
        self.begin();
    }

    fn must_ask(&self) -> bool {
        self.asks.get() || self.state.marks().unknown || !self.terms.borrow().is_empty()
    }

    /// Everything that there is to ask, as far as it can be seen from here.
    fn questions(&self) -> Questions {
        let mut questions = Questions { terms: self.terms.take(), ..Questions::default() };
        for source in self.sources {
            questions.names.extend(super::questions::names(&source.text));
            if self.answers.is_none() {
                let place = Place { file: source.path.clone(), line: 0 };
                for line in reader::lines(&source.text).map(|range| &source.text[range]) {
                    questions.terms.extend(self.terms_of(line, &place));
                }
            }
        }
        questions
    }

    /// The terms of a condition that haproxy would have to decide, in the environment of now.
    fn terms_of(&self, line: &[u8], place: &Place) -> BTreeSet<Vec<u8>> {
        let line = line.trim_ascii_start();
        if line.starts_with(b".if") || line.starts_with(b".elif") {
            let words = reader::words(line, self.unset(), &|name| self.variable(name, place));
            let expression = expression_of(&words.unwrap_or_default());
            if let Value::Asks(terms) = expression::evaluate(&expression, &self.state, &|_| None) {
                return terms;
            }
        }
        BTreeSet::new()
    }

    fn unset(&self) -> Unset {
        self.answers.map(|answers| answers.unset).unwrap_or_default()
    }

    fn add_file(&mut self, path: &Path, text: Vec<u8>, injected: bool) {
        let base = path.file_name().unwrap_or(path.as_os_str());
        self.out.files.push(RenderedFile {
            user_path: path.to_owned(),
            name: format!("{:03}-{}", self.out.files.len(), base.to_string_lossy()),
            injected,
            text,
            changes: Vec::new(),
        });
        self.edits.push(Vec::new());
    }

    /// Reads one file, the one that was added last unless this is the first pass.
    fn file(&mut self, path: &Path, text: &[u8]) -> Result<(), Error> {
        let mut blocks = Blocks::default();
        self.section = Section::default();
        for (index, line) in reader::lines(text).enumerate() {
            let place = Place { file: path.to_owned(), line: index + 1 };
            let (offset, line) = (line.start, &text[line]);
            let before = self.state.marks();
            let taken = reader::take_apart(line, self.unset(), &|name| self.variable(name, &place));
            let taken = match taken {
                Ok(taken) => taken,
                Err(fault) if is_bind(line) && !blocks.masked() && !self.first_pass => {
                    return Err(Error::Syntax {
                        place,
                        reason: fault.reason,
                        position: fault.position + 1,
                        text: printable(line),
                    });
                }
                // haproxy refuses the file for this line, in better words than ours.
                Err(_) => continue,
            };
            if matters(&taken, line, blocks.masked()) {
                self.asks.set(self.asks.get() || (taken.depends && self.answers.is_none()));
            } else {
                self.state.restore(before);
            }
            if self.must_ask() {
                return Ok(());
            }
            self.name_files(&taken, line, offset, path);
            let words = taken.words;
            let Some(first) = words.first().filter(|word| !word.value.is_empty()) else {
                continue;
            };
            if first.value.starts_with(b".") {
                self.block(&words, &mut blocks, &place)?;
            } else if !blocks.masked() {
                self.line(&words, line, offset, &place)?;
            }
        }
        if blocks.is_open() && !self.must_ask() {
            let line = reader::lines(text).count();
            return Err(Error::Nesting {
                place: Place { file: path.to_owned(), line },
                reason: ".if without .endif",
            });
        }
        if self.first_pass { Ok(()) } else { self.end_section() }
    }

    fn variable(&self, name: &[u8], place: &Place) -> Option<Vec<u8>> {
        match name {
            b".FILE" => Some(place.file.as_os_str().as_bytes().to_vec()),
            b".LINE" => Some(place.line.to_string().into_bytes()),
            b".SECTION" => Some(self.section.name.clone()),
            _ => self.state.get(name).cloned(),
        }
    }

    /// Puts the user's files in place of what stands for haproxy's: it reads copies.
    fn name_files(&mut self, taken: &Line, line: &[u8], offset: usize, path: &Path) {
        if self.first_pass {
            return;
        }
        for range in &taken.variables {
            let written = &line[range.clone()];
            let name = written[1..].strip_prefix(b"{").unwrap_or(&written[1..]);
            let value = if name.starts_with(b".FILE") {
                path.as_os_str().as_bytes().to_vec()
            } else if name.starts_with(CFGFILES.as_bytes()) && self.answers.is_some() {
                match self.state.get(CFGFILES.as_bytes()) {
                    Some(value) if *value == files::listed(self.sources) => value.clone(),
                    _ => continue,
                }
            } else {
                continue;
            };
            // Words of it would be words no more.
            if !written.ends_with(b"[*]}") || !value.iter().any(u8::is_ascii_whitespace) {
                let mut text = Vec::new();
                reader::escape_into(&mut text, &value);
                self.edit(offset + range.start..offset + range.end, text);
            }
        }
        self.name_files_later(line, offset);
    }

    /// `env(HAPROXY_CFGFILES)` is looked at while haproxy runs, and it is haproxy that sets it.
    fn name_files_later(&mut self, line: &[u8], offset: usize) {
        const CALL: &[u8] = b"env(HAPROXY_CFGFILES)";
        let mut from = 0;
        while let Some(at) = line[from..].windows(CALL.len()).position(|window| window == CALL) {
            let start = offset + from + at + b"env(".len();
            from += at + CALL.len();
            self.edit(start..start + CFGFILES.len(), OUR_CFGFILES.as_bytes().to_vec());
            if self.out.constants.is_empty() {
                let value = String::from_utf8_lossy(&files::listed(self.sources)).into_owned();
                self.out.constants.push((OUR_CFGFILES.to_owned(), value));
                self.keep.push(OUR_CFGFILES.to_owned());
            }
        }
    }

    /// Whether a term of conditions holds; false until haproxy has been asked.
    pub(super) fn holds(&self, term: &[u8]) -> bool {
        match self.told(term) {
            Some(Ok(holds)) => holds,
            Some(Err(_)) => false,
            None => {
                self.terms.borrow_mut().insert(term.to_vec());
                false
            }
        }
    }

    /// What haproxy has said of a term.
    fn told(&self, term: &[u8]) -> Option<Result<bool, String>> {
        self.answers?.terms.get(term).cloned()
    }

    fn block(&self, words: &[Word], blocks: &mut Blocks, place: &Place) -> Result<(), Error> {
        let values: Vec<&[u8]> = words.iter().map(|word| word.value.as_slice()).collect();
        let evaluate = || {
            let expression = expression_of(words);
            match expression::evaluate(&expression, &self.state, &|term| self.told(term)) {
                Value::Known(value) => Ok(value),
                Value::Asks(terms) => {
                    self.terms.borrow_mut().extend(terms);
                    Ok(false)
                }
                Value::Refused(reason) => Err(Error::Condition {
                    place: place.clone(),
                    condition: printable(&expression),
                    reason,
                }),
            }
        };
        match blocks.line(&values, evaluate)? {
            Some(Err(reason)) => Err(Error::Nesting { place: place.clone(), reason }),
            _ => Ok(()),
        }
    }

    fn line(
        &mut self,
        words: &[Word],
        line: &[u8],
        offset: usize,
        place: &Place,
    ) -> Result<(), Error> {
        let values: Vec<&[u8]> = words.iter().map(|word| word.value.as_slice()).collect();
        if let Some(kind) = Kind::of(values[0]) {
            if !self.first_pass {
                self.end_section()?;
            }
            self.section = Section::open(kind, &values, &self.defaults, &self.last_defaults);
            if values[0] == b"program" {
                self.program.get_or_insert_with(|| (self.section.label.clone(), place.clone()));
            }
            return Ok(());
        }
        if self.first_pass {
            if self.section.kind == Kind::Global {
                self.global(words, &values, offset, place);
            }
            return Ok(());
        }
        match (self.section.kind, values[0]) {
            (Kind::Global, _) => self.global(words, &values, offset, place),
            (Kind::Defaults, b"bind") => {
                let reason = "haproxy does not allow bind in defaults";
                self.leave(words.get(1), line, place, reason);
            }
            (Kind::Proxy | Kind::Peers | Kind::LogForward, b"bind")
            | (Kind::LogForward, b"dgram-bind")
                if values.get(1).is_some_and(|word| !word.is_empty()) =>
            {
                let around = Surroundings {
                    world: self.world,
                    state: &self.state,
                    getaddrinfo: self.uses_getaddrinfo(),
                    directory: &self.directory,
                    prefix: self.prefix.as_deref().unwrap_or_default(),
                };
                let bind = binds::read(words, line, offset, place.clone(), &around)?;
                self.section.lines.push(bind);
            }
            (Kind::Peers, b"peer" | b"server")
                if values.get(1) == Some(&self.state.local_peer()) =>
            {
                self.section.local_peer = true;
                if values[0] == b"peer" {
                    let reason = "haproxy binds the address of the local peer by itself; write bind and server lines to share it";
                    self.leave(words.get(2), line, place, reason);
                }
            }
            (Kind::Proxy, b"server") if values.get(2).is_some_and(|word| is_descriptor(word)) => {
                self.section.keyword(&values);
                let text = format!("server {}", printable(values[2]));
                self.left_alone(text, place, "a descriptor from outside", true);
            }
            _ => self.section.keyword(&values),
        }
        Ok(())
    }

    /// Whether haproxy asks getaddrinfo() for host names here.
    fn uses_getaddrinfo(&self) -> bool {
        let disabled = |word: &std::ffi::OsString| word.as_bytes().starts_with(b"-dG");
        !self.command.arguments.iter().any(disabled)
            && self.state.enabled(b"GETADDRINFO") != Some(false)
    }

    fn global(&mut self, words: &[Word], values: &[&[u8]], offset: usize, place: &Place) {
        let value = |index: usize| values.get(index).copied().unwrap_or_default();
        if values[0] == b"localpeer" && self.command.local_peer.is_some() {
            return;
        }
        let looked = self.state.marks().looked;
        let done = self.state.global(values, self.first_pass);
        let late = match done {
            Done::Environment => looked,
            Done::Reset => looked || !self.out.variables.is_empty(),
            Done::Nothing | Done::Other => false,
        };
        // It matters whether haproxy has done this already when it comes to the lines before.
        self.asks.set(self.asks.get() || (late && self.answers.is_none()));
        if values[0] == b"resetenv" {
            self.reset(words, offset, place);
        }
        if self.first_pass {
            return;
        }
        match values[0] {
            b"unix-bind" => {
                for pair in values[1..].chunks(2) {
                    match pair {
                        [b"prefix", prefix] => {
                            self.prefix.get_or_insert_with(|| prefix.to_vec());
                        }
                        [option, value] => {
                            self.unix.take(option, value);
                        }
                        _ => {}
                    }
                }
            }
            b"stats" if value(1) == b"socket" => {
                let reason = "an admin socket belongs to one generation; the newest has it";
                let text = format!("stats socket {}", printable(value(2)));
                let descriptor = value(2).split(|&byte| byte == b',').any(is_descriptor);
                self.left_alone(text, place, reason, descriptor);
            }
            b"default-path" => {
                let file = place.file.clone();
                if let Some(text) = self.path.set(&file, value(1), value(2)) {
                    let source = &words[1].source;
                    self.edit(offset + source.start..offset + source.end, text);
                }
            }
            b"daemon" => self.pid_file.daemon(),
            b"pidfile" => {
                let source = &words[0].source;
                let keyword = offset + source.start..offset + source.end;
                self.pid_file.take(value(1), self.out.files.len() - 1, keyword);
            }
            keyword => self.server_states.take(keyword, value(1)),
        }
    }

    /// A `resetenv` line that counts in one of haproxy's passes, or in both: a condition around it may
    /// depend on what it has removed.
    fn reset(&mut self, words: &[Word], offset: usize, place: &Place) {
        if self.resets.iter().any(|reset| reset.place == *place && reset.source == self.source) {
            return;
        }
        // An empty word would hide what follows it.
        let end = words.first().map_or(0, |word| word.source.end);
        self.resets.push(Reset {
            place: place.clone(),
            source: self.source,
            at: offset + end,
            words: words.len(),
            variables: self.out.variables.len(),
        });
    }

    pub(super) fn edit(&mut self, range: Range<usize>, text: Vec<u8>) {
        if let Some(edits) = self.edits.last_mut() {
            edits.push(Edit { range, text });
        }
    }

    fn leave(&mut self, word: Option<&Word>, line: &[u8], place: &Place, reason: &'static str) {
        let text = word.map_or(String::new(), |word| printable(&line[word.source.clone()]));
        self.left_alone(text, place, reason, false);
    }

    fn left_alone(&mut self, text: String, place: &Place, reason: &'static str, descriptor: bool) {
        self.out.left_alone.push(LeftAlone {
            place: place.clone(),
            section: self.section.label.clone(),
            listens: self.section.kind != Kind::Defaults && !text.starts_with("server "),
            text,
            reason,
            descriptor,
        });
    }
}

/// The text with its edits, and where each of them is in it. One that lies within another is passed over.
fn edited(text: &[u8], mut edits: Vec<Edit>) -> (Vec<u8>, Vec<Change>) {
    edits.sort_by_key(|edit| (edit.range.start, std::cmp::Reverse(edit.range.end)));
    let mut out = Vec::with_capacity(text.len());
    let mut changes = Vec::with_capacity(edits.len());
    let mut at = 0;
    for edit in edits {
        if edit.range.start < at {
            continue;
        }
        out.extend_from_slice(&text[at..edit.range.start]);
        let start = out.len();
        out.extend(edit.text);
        at = edit.range.end;
        changes.push(Change { range: start..out.len(), was: text[edit.range].into() });
    }
    out.extend_from_slice(&text[at..]);
    (out, changes)
}

/// Whether a line that cannot be taken apart begins like a bind line.
fn is_bind(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    line.starts_with(b"bind") || line.starts_with(b"dgram-bind")
}

/// The version of the haproxy that was started first, which haproxy never overwrites.
const STARTUP_VERSION: &str = "HAPROXY_STARTUP_VERSION";

/// haproxy's list of its files: for the first time at the end of a pass.
const CFGFILES: &str = "HAPROXY_CFGFILES";

/// The same list, with the user's files.
const OUR_CFGFILES: &str = "BINDONCE_CFGFILES";

/// Keywords whose words matter here.
const KEYWORDS: [&[u8]; 25] = [
    b"backlog",
    b"bind",
    b"default-bind",
    b"default-path",
    b"dgram-bind",
    b"disabled",
    b"enabled",
    b"load-server-state-from-file",
    b"localpeer",
    b"master-worker",
    b"peer",
    b"pidfile",
    b"presetenv",
    b"resetenv",
    b"server",
    b"server-state-base",
    b"server-state-file",
    b"server-state-file-name",
    b"server-template",
    b"setenv",
    b"ssl-server-verify",
    b"stats",
    b"unix-bind",
    b"unsetenv",
    b"nogetaddrinfo",
];

/// Whether it matters here what the words of a line are.
fn matters(taken: &Line, line: &[u8], masked: bool) -> bool {
    let Some(first) = taken.words.first() else { return taken.depends };
    // It may turn out to be anything.
    let made = line.get(first.source.clone()).is_none_or(|written| written.contains(&b'$'));
    let keyword = KEYWORDS.contains(&first.value.as_slice()) || Kind::of(&first.value).is_some();
    let names_files = taken.variables.iter().any(|range| {
        line[range.clone()].windows(CFGFILES.len()).any(|window| window == CFGFILES.as_bytes())
    });
    made || first.value.starts_with(b".") || (!masked && (keyword || names_files))
}

/// The expression behind `.if`: haproxy puts the words together again, each space one.
fn expression_of(words: &[Word]) -> Vec<u8> {
    let values: Vec<&[u8]> = words.iter().skip(1).map(|word| word.value.as_slice()).collect();
    values.join(&b' ')
}

/// Whether an address is the number of a descriptor.
fn is_descriptor(address: &[u8]) -> bool {
    let heads: [&[u8]; 3] = [b"stream+", b"dgram+", b"quic+"];
    let bare = heads.iter().find_map(|head| address.strip_prefix(*head)).unwrap_or(address);
    bare.starts_with(b"fd@") || bare.starts_with(b"sockpair@")
}
