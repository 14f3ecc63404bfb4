//! Going through the files as haproxy does, line by line, with the state that
//! lines leave behind for those after them: environment, conditions, sections
//! and their defaults, `unix-bind` and `default-path`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::binds::{self, Surroundings};
use super::command::Command;
use super::conditions::{self, Blocks};
use super::default_path::DefaultPath;
use super::listeners::{Met, Names, Supply, mark};
use super::options::Said;
use super::reader::{self, Word, printable};
use super::render::{Change, LeftAlone, RenderedFile, Rendering, Supplied};
use super::sections::{Kind, Proxy, Section};
use super::server_state::ServerStates;
use super::world::{Environment, World};
use super::{Error, Place, templates};

/// A change to one file: the bytes there give way to others.
pub(super) struct Edit {
    pub(super) range: Range<usize>,
    pub(super) text: Vec<u8>,
}

/// A `resetenv` line: the variables made after it have to be named on it.
pub(super) struct Reset {
    pub(super) place: Place,
    pub(super) file: usize,
    pub(super) at: usize,
    pub(super) words: usize,
    pub(super) variables: usize,
}

pub(super) struct Walk<'a> {
    pub(super) world: &'a dyn World,
    pub(super) command: &'a Command,
    pub(super) keep: &'a [&'a str],
    pub(super) directory: PathBuf,
    pub(super) environment: Environment,
    pub(super) local_peer: String,
    pub(super) prefix: Option<Vec<u8>>,
    pub(super) unix: Said,
    pub(super) path: DefaultPath,
    pub(super) section: Section,
    pub(super) defaults: BTreeMap<Vec<u8>, Proxy>,
    pub(super) last_defaults: Proxy,
    pub(super) supply: Supply,
    pub(super) names: Names,
    pub(super) met: Met,
    pub(super) server_states: ServerStates,
    pub(super) edits: Vec<Vec<Edit>>,
    pub(super) resets: Vec<Reset>,
    pub(super) out: Rendering,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        command: &'a Command,
        supplied: &Supplied<'a>,
        world: &'a dyn World,
    ) -> Result<Self, Error> {
        let supply = Supply::new(supplied.listeners)?;
        let mut names = Names::default();
        let mut environment = world.environment();
        let local_peer = match &command.local_peer {
            Some(name) => name.to_string_lossy().into_owned(),
            None => world.host_name(),
        };
        environment.insert(b"HAPROXY_LOCALPEER".to_vec(), local_peer.clone().into_bytes());
        for variable in supply.variables() {
            names.reserve(variable);
            environment.insert(variable.as_bytes().to_vec(), mark(variable));
        }
        for variable in supplied.keep {
            names.reserve(variable);
        }
        let mut directory = world.directory();
        if let Some(change) = &command.directory {
            directory.push(change);
        }
        Ok(Self {
            world,
            command,
            keep: supplied.keep,
            directory,
            environment,
            local_peer,
            prefix: None,
            unix: Said::default(),
            path: DefaultPath::default(),
            section: Section::default(),
            defaults: BTreeMap::new(),
            last_defaults: Proxy::default(),
            supply,
            names,
            met: Met::default(),
            server_states: ServerStates::default(),
            edits: Vec::new(),
            resets: Vec::new(),
            out: Rendering::default(),
        })
    }

    /// Reads everything.
    pub(super) fn run(mut self) -> Result<Rendering, Error> {
        for path in self.paths()? {
            let read = self.world.read(&self.directory.join(&path));
            let mut text = read.map_err(|source| Error::Read { path: path.clone(), source })?;
            if templates::is_template(&path) {
                text = templates::addresses(&path, &text)?;
            }
            if let Some(text) = self.path.start_of(&path) {
                self.add_file(&path, text, true);
            }
            self.add_file(&path, text, false);
            self.file(&path)?;
        }
        if self.out.files.is_empty() {
            return Err(Error::NoFiles);
        }
        self.keep_through_resets()?;
        for (file, edits) in self.out.files.iter_mut().zip(self.edits) {
            (file.text, file.changes) = edited(&file.text, edits);
        }
        self.out.unused = self.supply.unused();
        self.out.server_states = self.server_states.files(&self.directory);
        Ok(self.out)
    }

    /// The files in haproxy's order: what a directory stands for is every `*.cfg`
    /// in it, without hidden ones, in the order of their bytes (haproxy stays in
    /// the C locale).
    fn paths(&self) -> Result<Vec<PathBuf>, Error> {
        let mut paths = Vec::new();
        for path in &self.command.files {
            let listed = self.world.list(&self.directory.join(path));
            let listed = listed.map_err(|source| Error::Read { path: path.clone(), source })?;
            let Some(mut names) = listed else {
                paths.push(path.clone());
                continue;
            };
            // haproxy looks for the first ".cfg" in the name and wants it at the end.
            names.retain(|name| {
                let name = name.as_bytes();
                let first = name.windows(4).position(|part| part == b".cfg");
                !name.starts_with(b".") && first.is_some_and(|at| at + 4 == name.len())
            });
            names.sort();
            for name in names {
                let mut full = path.as_os_str().to_owned();
                full.push("/");
                full.push(name);
                paths.push(full.into());
            }
        }
        Ok(paths)
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

    /// Reads the file that was added last.
    fn file(&mut self, path: &Path) -> Result<(), Error> {
        let file = self.out.files.len() - 1;
        let text = self.out.files[file].text.clone();
        let mut blocks = Blocks::default();
        self.section = Section::default();
        for (index, line) in reader::lines(&text).enumerate() {
            let place = Place { file: path.to_owned(), line: index + 1 };
            let (offset, line) = (line.start, &text[line]);
            let words = match reader::words(line, &|name| self.variable(name, &place)) {
                Ok(words) => words,
                Err(fault) if is_bind(line) && !blocks.masked() => {
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
            let Some(first) = words.first().filter(|word| !word.value.is_empty()) else {
                continue;
            };
            if first.value.starts_with(b".") {
                self.block(&words, &mut blocks, &place)?;
            } else if !blocks.masked() {
                self.line(&words, line, offset, &place)?;
            }
        }
        if blocks.is_open() {
            let line = reader::lines(&text).count();
            return Err(Error::Nesting {
                place: Place { file: path.to_owned(), line },
                reason: ".if without .endif",
            });
        }
        self.end_section()
    }

    fn variable(&self, name: &[u8], place: &Place) -> Option<Vec<u8>> {
        match name {
            b".FILE" => Some(place.file.as_os_str().as_bytes().to_vec()),
            b".LINE" => Some(place.line.to_string().into_bytes()),
            b".SECTION" => Some(self.section.name.clone()),
            _ => self.environment.get(name).cloned(),
        }
    }

    fn block(&self, words: &[Word], blocks: &mut Blocks, place: &Place) -> Result<(), Error> {
        let values: Vec<&[u8]> = words.iter().map(|word| word.value.as_slice()).collect();
        let evaluate = || {
            // haproxy puts the words together again, each space one.
            let expression = values[1..].join(&b' ');
            match conditions::evaluate(&expression, &self.environment) {
                Some(value) => Ok(value),
                None => self.world.condition(&expression, &self.environment).map_err(|source| {
                    Error::Condition {
                        place: place.clone(),
                        condition: printable(&expression),
                        source,
                    }
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
            self.end_section()?;
            self.section = Section::open(kind, &values, &self.defaults, &self.last_defaults);
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
                    environment: &self.environment,
                    directory: &self.directory,
                    prefix: self.prefix.as_deref().unwrap_or_default(),
                };
                let bind = binds::read(words, line, offset, place.clone(), &around)?;
                self.section.lines.push(bind);
            }
            (Kind::Peers, b"peer" | b"server")
                if values.get(1) == Some(&self.local_peer.as_bytes()) =>
            {
                self.section.local_peer = true;
                if values[0] == b"peer" {
                    let reason = "haproxy binds the address of the local peer by itself; write bind and server lines to share it";
                    self.leave(words.get(2), line, place, reason);
                }
            }
            _ => self.section.keyword(&values),
        }
        Ok(())
    }

    fn global(&mut self, words: &[Word], values: &[&[u8]], offset: usize, place: &Place) {
        let value = |index: usize| values.get(index).copied().unwrap_or_default();
        match values[0] {
            b"setenv" | b"presetenv" if !value(2).is_empty() => {
                let (name, value) = (value(1).to_vec(), value(2).to_vec());
                if values[0] == b"setenv" {
                    self.environment.insert(name, value);
                } else {
                    self.environment.entry(name).or_insert(value);
                }
            }
            b"unsetenv" => {
                for name in &values[1..] {
                    self.environment.remove(*name);
                }
            }
            b"resetenv" => {
                let kept = |name: &Vec<u8>, value: &Vec<u8>| {
                    values[1..].contains(&name.as_slice())
                        || *value == mark(&String::from_utf8_lossy(name))
                };
                self.environment.retain(|name, value| kept(name, value));
                let end = words.last().map_or(0, |word| word.source.end);
                self.resets.push(Reset {
                    place: place.clone(),
                    file: self.out.files.len() - 1,
                    at: offset + end,
                    words: words.len(),
                    variables: self.out.variables.len(),
                });
            }
            b"localpeer" if self.command.local_peer.is_none() => {
                self.local_peer = String::from_utf8_lossy(value(1)).into_owned();
                self.environment.insert(b"HAPROXY_LOCALPEER".to_vec(), value(1).to_vec());
            }
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
                self.left_alone(text, place, reason);
            }
            b"default-path" => {
                let file = place.file.clone();
                if let Some(text) = self.path.set(&file, value(1), value(2)) {
                    let source = &words[1].source;
                    self.edit(offset + source.start..offset + source.end, text);
                }
            }
            keyword => self.server_states.take(keyword, value(1)),
        }
    }

    pub(super) fn edit(&mut self, range: Range<usize>, text: Vec<u8>) {
        if let Some(edits) = self.edits.last_mut() {
            edits.push(Edit { range, text });
        }
    }

    fn leave(&mut self, word: Option<&Word>, line: &[u8], place: &Place, reason: &'static str) {
        let text = word.map_or(String::new(), |word| printable(&line[word.source.clone()]));
        self.left_alone(text, place, reason);
    }

    fn left_alone(&mut self, text: String, place: &Place, reason: &'static str) {
        self.out.left_alone.push(LeftAlone {
            place: place.clone(),
            section: self.section.label.clone(),
            descriptor: text.starts_with("stats socket fd@"),
            listens: self.section.kind != Kind::Defaults,
            text,
            reason,
        });
    }
}

/// The text with its edits, which do not overlap, and where each of them is in it.
fn edited(text: &[u8], mut edits: Vec<Edit>) -> (Vec<u8>, Vec<Change>) {
    edits.sort_by_key(|edit| edit.range.start);
    let mut out = Vec::with_capacity(text.len());
    let mut changes = Vec::with_capacity(edits.len());
    let mut at = 0;
    for edit in edits {
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
