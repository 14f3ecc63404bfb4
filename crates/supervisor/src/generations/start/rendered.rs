//! A configuration that was read and rendered: the copies that haproxy is started on, and the facts
//! about them. All of it is on disk: another supervisor, or another image of this one, can start
//! the same again.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::kind::Haproxy;
use crate::origin::{Origin, Text};
use bindonce_haproxy::config::{Command, Messages, Rendering};

/// The first descriptor that haproxy gets. The admin socket comes first, since the number of any
/// descriptor must stay below haproxy's own limit.
pub(super) const FIRST_DESCRIPTOR: i32 = bindonce_sys::inherit::FIRST;

/// bindonce's own file, which comes before the copies.
const OWN: &str = "bindonce-admin.cfg";

/// A configuration that was read and rendered.
#[derive(Debug)]
pub(crate) struct Rendered {
    /// The haproxy, with the command that starts it.
    pub(crate) kind: Box<Haproxy>,
    pub(crate) rendering: Rc<Rendering>,
    /// The copies, in haproxy's order.
    pub(super) files: Vec<PathBuf>,
    /// The text of bindonce's own file.
    own: String,
    pub(super) facts: Facts,
}

/// The facts that belong to a rendered configuration.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Whether the copies contain the admin socket. haproxy would count it, and start with nothing
    /// else to listen on. It is left out if only haproxy knows whether there is anything else.
    pub(super) admin: bool,
    /// Whether bindonce's own file comes before the copies.
    pub(super) own: bool,
    /// The value that names the sockets of the master CLI to a process under a master of its
    /// version.
    pub(super) master_cli: Option<String>,
    /// The command, as it was given.
    pub(super) command: Vec<Text>,
    /// The caller that gave it, if not this process.
    pub(super) caller: Option<Box<Origin>>,
}

impl Rendered {
    /// The configuration that was written to this directory.
    pub(super) fn new(
        kind: Haproxy,
        rendering: Rendering,
        own: String,
        directory: &Path,
        facts: Facts,
    ) -> Self {
        let text = own;
        let own = facts.own.then(|| directory.join(OWN));
        let copies = rendering.files.iter().map(|file| directory.join(&file.name));
        let files = own.into_iter().chain(copies).collect();
        Self { kind: Box::new(kind), rendering: Rc::new(rendering), files, own: text, facts }
    }

    /// Whether all files still exist.
    pub(super) fn is_there(&self) -> bool {
        self.files.iter().all(|path| path.exists())
    }

    /// Writes all files again if one is missing.
    pub(super) fn write_missing(&self) -> io::Result<()> {
        let directory = self.files.first().and_then(|path| path.parent());
        let Some(directory) = directory.filter(|_| !self.is_there()) else { return Ok(()) };
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let written = serde_json::to_vec(&*self.rendering)?;
        write(&self.rendering, &written, &self.own, &self.facts, directory)
    }

    /// The copies of the user's files.
    fn copies(&self) -> &[PathBuf] {
        &self.files[usize::from(self.facts.own)..]
    }

    /// The translation of messages from a haproxy that was started on it.
    pub(crate) fn messages(&self) -> Messages {
        let first = FIRST_DESCRIPTOR + i32::from(self.facts.admin);
        Messages::new(Rc::clone(&self.rendering), self.copies(), first)
    }

    /// Whether it was made for this command.
    pub(crate) fn is_of(&self, kind: &Haproxy) -> bool {
        self.facts.command == words(kind)
    }

    /// Whether haproxy may be held. Not if it wants to keep the right to gain rights: without
    /// CAP_SYS_ADMIN, a hold needs no_new_privs.
    pub(super) fn may_be_held(&self) -> bool {
        const WORD: &[u8] = b"insecure-setuid-wanted";
        let says = |text: &[u8]| text.windows(WORD.len()).any(|window| window == WORD);
        !self.rendering.files.iter().any(|file| says(&file.text))
    }
}

pub(super) fn words(kind: &Haproxy) -> Vec<Text> {
    let Command { program, arguments, files, .. } = &kind.command;
    let files = files.iter().map(|path| path.as_os_str());
    let words = [program].into_iter().chain(arguments).map(OsString::as_os_str).chain(files);
    words.map(|word| Text::from(word.to_owned())).collect()
}

/// Two lines of JSON: the facts, and the rendering without the texts of its copies.
const NAME: &str = "bindonce-prepared.json";

/// Reads the text of such a file.
fn read(text: &[u8]) -> io::Result<(Facts, Rendering)> {
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    let (facts, rendering) = text.split_at(end);
    Ok((serde_json::from_slice(facts)?, serde_json::from_slice(rendering)?))
}

/// Parses the text of a prepared configuration, as a supervisor has written it, and writes it
/// again.
///
/// # Errors
/// If the text is not such a configuration.
pub fn rewritten(text: &[u8]) -> io::Result<Vec<u8>> {
    let (facts, rendering) = read(text)?;
    let mut text = serde_json::to_vec(&facts)?;
    text.push(b'\n');
    serde_json::to_writer(&mut text, &rendering)?;
    Ok(text)
}

impl Rendered {
    /// Loads the configuration in this directory, for this haproxy.
    pub(super) fn load(kind: &Haproxy, directory: &Path) -> io::Result<Self> {
        let text = std::fs::read(directory.join(NAME))?;
        let (facts, rendering) = read(&text)?;
        let copies: Vec<_> =
            rendering.files.iter().map(|file| directory.join(&file.name)).collect();
        let rendering = rendering.with_copies(&copies)?;
        let kind = match facts.caller.as_deref() {
            Some(caller) => kind.of(caller.clone()).map_err(io::Error::other)?,
            None => kind.clone(),
        };
        let own = match facts.own {
            true => std::fs::read_to_string(directory.join(OWN))?,
            false => String::new(),
        };
        Ok(Self::new(kind, rendering, own, directory, facts))
    }
}

/// Writes the copies, bindonce's own file if there is one, and the facts. `written` is the
/// rendering as JSON.
pub(super) fn write(
    rendering: &Rendering,
    written: &[u8],
    own: &str,
    facts: &Facts,
    directory: &Path,
) -> io::Result<()> {
    rendering.write_to(directory)?;
    if facts.own {
        write_file(&directory.join(OWN), own.as_bytes())?;
    }
    let mut text = serde_json::to_vec(facts)?;
    text.push(b'\n');
    text.extend_from_slice(written);
    write_file(&directory.join(NAME), &text)
}

/// Writes a file for this user alone.
fn write_file(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(text)
}
