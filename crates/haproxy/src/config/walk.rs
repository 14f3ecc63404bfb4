//! Reads the files as haproxy does, line by line, with the state that lines set for later ones:
//! environment, conditions, sections and their defaults, `unix-bind` and `default-path`.
//!
//! From 3.1 on haproxy reads them twice: the first pass takes only a few keywords of all global
//! sections, and their effect is there for every line of the second.

mod line;

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::claims::Claims;
use super::command::Command;
use super::conditions::Blocks;
use super::edits::Edits;
use super::files::{self, CFGFILES, Source};
use super::global::Global;
use super::listeners::mark;
use super::own_sockets;
use super::questions::{Answers, Questions};
use super::quoting::printable;
use super::reader::{self, Word};
use super::rendering::{ProcessMode, RenderedFile, Rendering, Supplied};
use super::sections::{Section, Sections};
use super::state::{LOCALPEER, Marks, State};
use super::unknowns::{Unknowns, expression_of, matters};
use super::world::World;
use super::{Error, Place};

/// Why reading stopped early.
pub(super) enum Stopped {
    Error(Error),
    /// haproxy has to be asked first; then everything is read again.
    Asks(Questions),
    /// A line asks for a master, so everything is read again as by one of its workers.
    UnderMaster,
    /// A line after the first QUIC addresses switches QUIC off or on again, so everything is read
    /// again.
    Quic {
        is_off: bool,
    },
}

/// The input of the reader.
struct Input<'a> {
    world: &'a dyn World,
    command: &'a Command,
    sources: &'a [Source],
    directory: PathBuf,
    /// Missing devices whose addresses the broker binds on every interface, as haproxy would.
    missing: &'a BTreeSet<String>,
}

impl Input<'_> {
    /// Whether a worker of the master that this haproxy would be has the master's variable while it
    /// reads. From 3.1 on it has, since the worker reads in two passes; before that the master
    /// reads, and has set the variable by the time of a reload.
    fn is_worker(&self, answers: Option<&Answers>) -> bool {
        let known = answers.is_none_or(|answers| answers.discovery) || self.world.is_reload();
        known && !self.command.nested_master
    }

    /// Whether an argument of haproxy begins with these bytes.
    fn has_argument(&self, begin: &[u8]) -> bool {
        self.command.arguments.iter().any(|word| word.as_bytes().starts_with(begin))
    }
}

/// A line split into words, and its position.
#[derive(Clone, Copy)]
struct Here<'a> {
    /// The number of the file.
    source: usize,
    words: &'a [Word],
    line: &'a [u8],
    /// Offset of the line in the file.
    offset: usize,
    place: &'a Place,
}

impl<'a> Here<'a> {
    fn values(self) -> Vec<&'a [u8]> {
        self.words.iter().map(|word| word.value.as_slice()).collect()
    }
}

pub(super) struct Walk<'a> {
    input: Input<'a>,
    /// Whether haproxy reads as the worker of a master, which the supervisor stands in for.
    is_worker: bool,
    /// Whether all global sections together switch QUIC off.
    quic_is_off: bool,
    /// Whether this is haproxy's first pass.
    first_pass: bool,
    state: State,
    unknowns: Unknowns<'a>,
    global: Global,
    sections: Sections,
    claims: Claims,
    /// Admin sockets over IP: the number of the copy, the index in `claims.left_alone`, and the
    /// section to claim.
    stats_sockets: Vec<(usize, usize, Section)>,
    edits: Edits,
    files: Vec<RenderedFile>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        command: &'a Command,
        supplied: &Supplied<'_>,
        world: &'a dyn World,
        sources: &'a [Source],
        answers: Option<&'a Answers>,
        under_master: bool,
        missing: &'a BTreeSet<String>,
    ) -> Result<Self, Error> {
        let claims = Claims::new(supplied)?;
        let mut environment = world.environment();
        let local_peer = match &command.local_peer {
            Some(name) => name.to_string_lossy().into_owned(),
            None => world.host_name(),
        };
        for variable in claims.supply.variables() {
            environment.insert(variable.as_bytes().to_vec(), mark(variable));
        }
        if let Some(version) = answers.and_then(|answers| answers.variable(STARTUP_VERSION)) {
            environment.entry(STARTUP_VERSION.into()).or_insert_with(|| version.to_vec());
        }
        let directory = files::directory(command, world);
        let input = Input { world, command, sources, directory, missing };
        let is_worker = (under_master || command.role.master.is_some()) && input.is_worker(answers);
        if is_worker {
            environment.insert(MWORKER.into(), b"1".to_vec());
        }
        Ok(Self {
            input,
            is_worker,
            quic_is_off: false,
            first_pass: false,
            state: State::new(environment, local_peer, answers.map(|answers| answers.discovery)),
            unknowns: Unknowns::new(answers),
            global: Global::default(),
            sections: Sections::default(),
            claims,
            stats_sockets: Vec::new(),
            edits: Edits::new(files::listed(sources), supplied.keep),
            files: Vec::new(),
        })
    }

    /// Reads everything. `quic_is_off`: the global sections switch QUIC off, wherever they are.
    pub(super) fn run(mut self, quic_is_off: bool) -> Result<Rendering, Stopped> {
        self.quic_is_off = quic_is_off;
        let read = self.read();
        if self.must_ask() {
            let variable = |source: &Source, name: &[u8]| {
                self.variable(name, &Place { file: source.path.clone(), line: 0 })
            };
            let questions = self.unknowns.questions(self.input.sources, &self.state, variable);
            return Err(Stopped::Asks(questions));
        }
        let answers = self.unknowns.answers;
        if self.was_master() && !self.is_worker && self.input.is_worker(answers) {
            return Err(Stopped::UnderMaster);
        }
        if self.global.no_quic != self.quic_is_off {
            return Err(Stopped::Quic { is_off: self.global.no_quic });
        }
        read.and_then(|()| self.claim_stats_sockets()).map_err(Stopped::Error)?;
        let number =
            |place: &Place| self.input.sources.iter().position(|one| one.path == place.file);
        own_sockets::check(&self.claims.bindings, &self.claims.left_alone, |place| {
            number(place).unwrap_or_default()
        })
        .map_err(Stopped::Error)?;
        let first_pass = self.unknowns.first_pass();
        let kept = self.edits.keep_through_resets(&self.claims.variables, first_pass);
        kept.map_err(Stopped::Error)?;
        let master_worker = self.has_master();
        let role = &self.input.command.role;
        let is_master = master_worker || self.was_master();
        let is_daemon = role.daemon || (self.global.pid_file.is_daemon && !role.foreground);
        let would_write = is_master || is_daemon;
        let own = &mut self.edits;
        let line =
            self.global.pid_file.finish(would_write, master_worker, &self.input.directory, own);
        let no_epoll =
            self.input.has_argument(b"-de") || self.state.enabled(b"EPOLL") == Some(false);
        let given = role.pid_file.as_ref().filter(|_| would_write);
        let pid_file = given.map(|path| self.input.directory.join(path)).or(line);
        for (copy, file) in self.files.iter_mut().enumerate() {
            file.changes = self.edits.apply(copy, &mut file.text);
        }
        if self.is_worker {
            self.edits.constants.push((MWORKER.to_owned(), "1".to_owned()));
        }
        Ok(Rendering {
            files: self.files,
            constants: self.edits.constants,
            no_reuse_port: self.input.has_argument(b"-dR")
                || self.state.enabled(b"REUSEPORT") == Some(false),
            mode: ProcessMode {
                master_worker,
                is_master,
                is_daemon,
                no_epoll,
                pid_file,
                // A nested master sees to that itself.
                max_reloads: self.global.max_reloads.filter(|_| is_master && !master_worker),
            },
            unused: self.claims.supply.unused(),
            bindings: self.claims.bindings,
            variables: self.claims.variables,
            left_alone: self.claims.left_alone,
            has_cluster_secret: self.global.has_cluster_secret,
            server_states: self.global.server_states.files(&self.input.directory),
            stats_file: self.global.stats_file.finish(&self.input.directory),
        })
    }

    fn must_ask(&self) -> bool {
        self.unknowns.must_ask(&self.state)
    }

    fn read(&mut self) -> Result<(), Error> {
        self.begin();
        if self.unknowns.first_pass() {
            self.first_pass = true;
            for (number, source) in self.input.sources.iter().enumerate() {
                self.file(number, source)?;
            }
            self.first_pass = false;
            let lines = self.between_passes();
            if let Some(first) = self.input.sources.first().filter(|_| !lines.is_empty()) {
                self.add_file(&first.path, [b"global\n", &*lines].concat(), true);
            }
        }
        for (number, source) in self.input.sources.iter().enumerate() {
            if let Some(text) = self.global.path.start_of(&source.path) {
                self.add_file(&source.path, text, true);
            }
            self.add_file(&source.path, source.text.clone(), false);
            self.file(number, source)?;
        }
        match self.sections.program.take() {
            // haproxy's own master would run the program, once in each generation. Without a master
            // haproxy itself refuses the section.
            Some((section, place)) if self.has_master() || self.was_master() => {
                Err(Error::Program { section, place })
            }
            _ if self.files.is_empty() => Err(Error::NoFiles),
            _ => Ok(()),
        }
    }

    /// Whether each generation is a haproxy master.
    fn has_master(&self) -> bool {
        self.input.command.nested_master
    }

    /// Whether the supervisor stands in for a master.
    fn was_master(&self) -> bool {
        self.input.command.role.master.is_some() || self.state.master_worker
    }

    /// Sets the variables that haproxy sets before it reads the files, in each pass.
    fn begin(&mut self) {
        let Some(answers) = self.unknowns.answers else { return };
        for (name, value) in &answers.variables {
            if !self.sets(name) {
                continue;
            }
            match (name.as_str(), value) {
                // These variables are set at other times.
                (STARTUP_VERSION | CFGFILES | LOCALPEER | MWORKER, _) => {}
                (name, Some(value)) => self.state.set(name, value.clone()),
                (name, None) => drop(self.state.environment.remove(name.as_bytes())),
            }
        }
    }

    /// Whether haproxy sets or removes this variable itself: at its first line the variable is not
    /// what it was in the environment of the start.
    fn sets(&self, name: &str) -> bool {
        let answers = self.unknowns.answers.map(|answers| &answers.variables);
        let first = answers.and_then(|variables| variables.get(name));
        first.is_some_and(|value| value.as_ref() != self.state.initial(name.as_bytes()))
    }

    /// Does what haproxy does between its passes: a worker starts again with the original
    /// environment, and any other process knows all its files from now on. Gives the lines of
    /// `global` that lead a process that is not a worker to a worker's environment.
    fn between_passes(&mut self) -> Vec<u8> {
        let mut lines = Vec::new();
        if self.has_master() {
            self.state.begin_again();
            self.state.set(MWORKER, b"1".to_vec());
        } else {
            self.state.set(CFGFILES, files::listed(self.input.sources));
        }
        if self.is_worker {
            lines = self.state.lines_back(|name| match std::str::from_utf8(name) {
                Ok(STARTUP_VERSION | CFGFILES | MWORKER) => false,
                Ok(name) => name == LOCALPEER || self.sets(name),
                Err(_) => false,
            });
            self.state.begin_again();
        }
        self.state.second_pass = true;
        self.state.name_local_peer();
        self.begin();
        lines
    }

    fn add_file(&mut self, path: &Path, text: Vec<u8>, injected: bool) {
        let base = path.file_name().unwrap_or(path.as_os_str());
        self.files.push(RenderedFile {
            user_path: path.to_owned(),
            name: format!("{:03}-{}", self.files.len(), base.to_string_lossy()),
            injected,
            text,
            changes: Vec::new(),
        });
        self.edits.add_copy(injected);
    }

    /// Reads one file: the last added one, unless this is the first pass.
    fn file(&mut self, number: usize, source: &Source) -> Result<(), Error> {
        let Source { path, text } = source;
        let mut blocks = Blocks::default();
        self.sections.open = Section::default();
        for (index, line) in reader::lines(text).enumerate() {
            let place = Place { file: path.clone(), line: index + 1 };
            let (offset, line) = (line.start, &text[line]);
            let before = self.state.marks();
            let taken = reader::take_apart(line, self.unknowns.unset(), &|name| {
                self.variable(name, &place)
            });
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
                // haproxy refuses the file for this line, with a better message.
                Err(_) => continue,
            };
            if matters(&taken, line, blocks.masked()) {
                if taken.depends {
                    self.unknowns.depend();
                }
            } else {
                // A line that concerns no listener counts all the same where a worker would read it
                // in another environment than the generation, which is no worker.
                let counts = self.is_worker && !blocks.masked();
                let looked = if counts { self.state.marks().looked } else { before.looked };
                self.state.restore(Marks { looked, ..before });
            }
            if self.must_ask() {
                return Ok(());
            }
            if !self.first_pass {
                let known = self.unknowns.answers.is_some();
                let (state, name) = (&self.state, CFGFILES.as_bytes());
                let listed = || state.get(name).filter(|_| known).cloned();
                self.edits.name_files(&taken, line, offset, path, &listed);
            }
            let words = taken.words;
            let Some(first) = words.first().filter(|word| !word.value.is_empty()) else {
                continue;
            };
            if first.value.starts_with(b".") {
                self.block(&words, &mut blocks, &place)?;
            } else if !blocks.masked() {
                self.line(Here { source: number, words: &words, line, offset, place: &place })?;
            }
        }
        if blocks.is_open() && !self.must_ask() {
            let line = reader::lines(text).count();
            return Err(Error::Nesting {
                place: Place { file: path.clone(), line },
                reason: ".if without .endif",
            });
        }
        if self.first_pass { Ok(()) } else { self.end_section() }
    }

    fn variable(&self, name: &[u8], place: &Place) -> Option<Vec<u8>> {
        match name {
            b".FILE" => Some(place.file.as_os_str().as_bytes().to_vec()),
            b".LINE" => Some(place.line.to_string().into_bytes()),
            b".SECTION" => Some(self.sections.open.name.clone()).filter(|name| !name.is_empty()),
            _ => self.state.get(name).cloned(),
        }
    }

    fn block(&self, words: &[Word], blocks: &mut Blocks, place: &Place) -> Result<(), Error> {
        let values: Vec<&[u8]> = words.iter().map(|word| word.value.as_slice()).collect();
        let evaluate = || {
            let expression = expression_of(words);
            let value = self.unknowns.evaluate(&expression, &self.state);
            value.map_err(|reason| Error::Condition {
                place: place.clone(),
                condition: printable(&expression),
                reason,
            })
        };
        match blocks.line(&values, evaluate)? {
            Some(Err(reason)) => Err(Error::Nesting { place: place.clone(), reason }),
            _ => Ok(()),
        }
    }
}

/// Whether a line with a quoting error begins like a bind line.
fn is_bind(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    line.starts_with(b"bind") || line.starts_with(b"dgram-bind")
}

/// The variable that haproxy's master sets for its workers.
const MWORKER: &str = "HAPROXY_MWORKER";

/// The variable with the version of the first haproxy, which haproxy never overwrites.
const STARTUP_VERSION: &str = "HAPROXY_STARTUP_VERSION";
