//! What differs between a user's file and its copy: which bytes give way to others, and why.
//!
//! Address words become descriptors (see [`super::claims`]). Beside these, the names of the user's files
//! stand where haproxy would put those of the copies, and `resetenv` lines keep our variables.

use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::reader::{self, Line, Word};
use super::render::Change;
use super::walk::{CFGFILES, Walk};
use super::{Error, Place, files};

/// What a copy reads in place of `HAPROXY_CFGFILES`: that list, with the user's files.
const OUR_CFGFILES: &str = "BINDONCE_CFGFILES";

/// How many words haproxy takes on a line.
const MAX_WORDS: usize = 64;

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

impl Walk<'_> {
    pub(super) fn edit(&mut self, range: Range<usize>, text: Vec<u8>) {
        if let Some(edits) = self.edits.last_mut() {
            edits.push(Edit { range, text });
        }
    }

    /// Puts the user's files in place of what stands for haproxy's: it reads copies.
    pub(super) fn name_files(&mut self, taken: &Line, line: &[u8], offset: usize, path: &Path) {
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

    /// A `resetenv` line that counts in one of haproxy's passes, or in both: a condition around it may
    /// depend on what it has removed.
    pub(super) fn reset(&mut self, words: &[Word], offset: usize, place: &Place) {
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

    /// Names our variables on every `resetenv` line that comes before their use:
    /// haproxy would remove them with all others.
    pub(super) fn keep_through_resets(&mut self) -> Result<(), Error> {
        let files = self.out.files.iter().enumerate();
        let copies: Vec<usize> =
            files.filter(|(_, file)| !file.injected).map(|(index, _)| index).collect();
        for reset in &self.resets {
            // In a first pass it removes those of the lines before it too.
            let first_pass = self.answers.is_some_and(|answers| answers.discovery);
            let from = if first_pass { 0 } else { reset.variables };
            let later = self.out.variables[from..].iter().map(|v| v.name.as_str());
            let kept: Vec<&str> = later.chain(self.keep.iter().map(String::as_str)).collect();
            if reset.words + kept.len() > MAX_WORDS {
                return Err(Error::TooManyToKeep {
                    place: reset.place.clone(),
                    variables: kept.len(),
                    room: MAX_WORDS.saturating_sub(reset.words),
                });
            }
            let text = kept.iter().flat_map(|name| [b" ", name.as_bytes()].concat()).collect();
            if let Some(edits) = copies.get(reset.source).and_then(|copy| self.edits.get_mut(*copy))
            {
                edits.push(Edit { range: reset.at..reset.at, text });
            }
        }
        Ok(())
    }
}

/// The text with its edits, and where each of them is in it. One that lies within another is passed over.
pub(super) fn edited(text: &[u8], mut edits: Vec<Edit>) -> (Vec<u8>, Vec<Change>) {
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
