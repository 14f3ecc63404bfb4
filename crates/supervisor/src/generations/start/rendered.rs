//! A configuration that was read and rendered: the copies that haproxy is started on, and the facts
//! about them. All of it is on disk: another supervisor, or another image of this one, can start
//! the same again.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::kind::Haproxy;
use crate::origin::{Origin, Text};
use bindonce_haproxy::config::{Command, Messages, Rendering};
use bindonce_sys::directory::Directory;

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
#[derive(Debug, Clone, Serialize, Deserialize)]
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
        rendering: impl Into<Rc<Rendering>>,
        own: String,
        directory: &Path,
        facts: Facts,
    ) -> Self {
        let rendering: Rc<Rendering> = rendering.into();
        let text = own;
        let own = facts.own.then(|| directory.join(OWN));
        let copies = rendering.files.iter().map(|file| directory.join(&file.name));
        let files = own.into_iter().chain(copies).collect();
        Self { kind: Box::new(kind), rendering, files, own: text, facts }
    }

    /// The directory of the files.
    pub(super) fn directory(&self) -> Option<&Path> {
        self.files.first()?.parent()
    }

    /// Whether all files are there, with the texts that were written.
    pub(super) fn is_there(&self) -> bool {
        let own = self.facts.own.then_some(self.own.as_bytes());
        let copies = self.rendering.files.iter().map(|file| file.text.as_slice());
        let mut files = self.files.iter().zip(own.into_iter().chain(copies));
        files.all(|(path, text)| reads(path, text))
            && self.directory().is_some_and(|directory| directory.join(NAME).exists())
    }

    /// Writes all files again unless each is as it was written.
    pub(super) fn write_missing(&self) -> io::Result<()> {
        let Some(directory) = self.directory().filter(|_| !self.is_there()) else { return Ok(()) };
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.write_to(directory)
    }

    /// The same configuration, written to another directory.
    pub(super) fn written_to(&self, directory: &Path) -> io::Result<Self> {
        self.write_to(directory)?;
        let (kind, rendering) = ((*self.kind).clone(), Rc::clone(&self.rendering));
        Ok(Self::new(kind, rendering, self.own.clone(), directory, self.facts.clone()))
    }

    fn write_to(&self, directory: &Path) -> io::Result<()> {
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
        let text = fs::read(directory.join(NAME))?;
        let (facts, rendering) = read(&text)?;
        let copies: Vec<_> =
            rendering.files.iter().map(|file| directory.join(&file.name)).collect();
        let rendering = rendering.with_copies(&copies)?;
        let kind = match facts.caller.as_deref() {
            Some(caller) => kind.of(caller.clone()).map_err(io::Error::other)?,
            None => kind.clone(),
        };
        let own = match facts.own {
            true => fs::read_to_string(directory.join(OWN))?,
            false => String::new(),
        };
        Ok(Self::new(kind, rendering, own, directory, facts))
    }
}

/// Whether a file has this text. One that is longer or shorter is not read.
fn reads(path: &Path, text: &[u8]) -> bool {
    let length = text.len() as u64;
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == length)
        && fs::read(path).is_ok_and(|read| read == text)
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
    let directory = Directory::open(directory)?;
    if facts.own {
        directory.replace_private(OWN.as_ref(), own.as_bytes())?;
    }
    let mut text = serde_json::to_vec(facts)?;
    text.push(b'\n');
    text.extend_from_slice(written);
    directory.replace_private(NAME.as_ref(), &text)
}

#[cfg(test)]
mod tests {
    use bindonce_haproxy::config::RenderedFile;

    use super::*;

    fn rendered(directory: &Path) -> Rendered {
        let command = Command::parse(["haproxy", "-f", "a.cfg"]).expect("a command");
        let kind = Haproxy { command, admin: false, caller: None };
        let file = RenderedFile {
            user_path: "a.cfg".into(),
            name: "000-a.cfg".to_owned(),
            injected: false,
            text: b"frontend a\n".to_vec(),
            changes: Vec::new(),
        };
        let rendering = Rendering { files: vec![file], ..Rendering::default() };
        let command = words(&kind);
        let facts = Facts { admin: false, own: true, master_cli: None, command, caller: None };
        Rendered::new(kind, rendering, "global\n".to_owned(), directory, facts)
    }

    #[test]
    fn a_file_that_is_not_as_it_was_written_is_written_again() {
        let place = std::env::temp_dir().join(format!("bindonce-again-{}", std::process::id()));
        fs::create_dir(&place).expect("directory");
        let directory = place.join("generation-1");
        let rendered = rendered(&directory);
        assert!(!rendered.is_there());
        rendered.write_missing().expect("write");
        assert!(rendered.is_there());
        // Cut off, emptied, or another text of the same length.
        for (name, text) in
            [("000-a.cfg", "front"), ("000-a.cfg", ""), ("000-a.cfg", "frontend b\n"), (OWN, "")]
        {
            fs::write(directory.join(name), text).expect("write");
            assert!(!rendered.is_there(), "{name}: {text}");
            rendered.write_missing().expect("write");
            assert!(rendered.is_there(), "{name}");
        }
        // The next supervisor needs this one.
        fs::remove_file(directory.join(NAME)).expect("remove");
        rendered.write_missing().expect("write");
        assert!(directory.join(NAME).exists());
        let elsewhere = place.join("elsewhere");
        fs::create_dir(&elsewhere).expect("directory");
        let moved = rendered.written_to(&elsewhere).expect("write");
        assert!(moved.is_there() && moved.files.iter().all(|path| path.starts_with(&elsewhere)));
        fs::remove_dir_all(&place).expect("remove");
    }
}
