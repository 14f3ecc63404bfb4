//! Going through the files as haproxy does, line by line, with the state that
//! lines leave behind for those after them: environment, conditions, sections
//! and their defaults, `unix-bind` and `default-path`.
//!
//! From 3.1 on haproxy does it twice: a first pass takes nothing but a few keywords of
//! all global sections, and what they have set is there for every line of the second.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::binds::{self, Surroundings};
use super::command::Command;
use super::conditions::Blocks;
use super::default_path::DefaultPath;
use super::edits::{Edit, Reset, edited};
use super::expression::{self, Value};
use super::files::{self, Source};
use super::global::is_descriptor;
use super::listeners::{Met, Names, Supply, mark};
use super::options::Said;
use super::pid_file::PidFile;
use super::questions::{Answers, Questions};
use super::reader::{self, Word, printable};
use super::render::{RenderedFile, Rendering, Supplied};
use super::sections::{Kind, Proxy, Section};
use super::server_state::ServerStates;
use super::state::State;
use super::unknowns::{expression_of, matters};
use super::world::{Environment, World};
use super::{Error, Place};

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
    pub(super) first_pass: bool,
    /// Which of the user's files is read.
    pub(super) source: usize,
    pub(super) asks: Cell<bool>,
    /// Terms of conditions that haproxy has not been asked about.
    pub(super) terms: RefCell<BTreeSet<Vec<u8>>>,
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
    pub(super) pid_file: PidFile,
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

    pub(super) fn variable(&self, name: &[u8], place: &Place) -> Option<Vec<u8>> {
        match name {
            b".FILE" => Some(place.file.as_os_str().as_bytes().to_vec()),
            b".LINE" => Some(place.line.to_string().into_bytes()),
            b".SECTION" => Some(self.section.name.clone()),
            _ => self.state.get(name).cloned(),
        }
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
}

/// Whether a line that cannot be taken apart begins like a bind line.
fn is_bind(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    line.starts_with(b"bind") || line.starts_with(b"dgram-bind")
}

/// The version of the haproxy that was started first, which haproxy never overwrites.
const STARTUP_VERSION: &str = "HAPROXY_STARTUP_VERSION";

/// haproxy's list of its files: for the first time at the end of a pass.
pub(super) const CFGFILES: &str = "HAPROXY_CFGFILES";
