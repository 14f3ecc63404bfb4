//! What differs between a user's file and its copy: which bytes give way to others, and why.
//!
//! Address words become descriptors (see [`super::claims`]). Beside these, the names of the user's files
//! stand where haproxy would put those of the copies, and `resetenv` lines keep our variables.

use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::files::CFGFILES;
use super::quoting;
use super::reader::{Line, Word, find};
use super::rendering::{Change, Variable};
use super::{Error, Place};

/// What a copy reads in place of `HAPROXY_CFGFILES`: that list, with the user's files.
const OUR_CFGFILES: &str = "BINDONCE_CFGFILES";

/// How many words haproxy takes on a line.
const MAX_WORDS: usize = 64;

/// A change to one file: the bytes there give way to others.
#[derive(Debug)]
struct Edit {
    range: Range<usize>,
    text: Vec<u8>,
}

/// A `resetenv` line: the variables made after it have to be named on it, and in haproxy's first
/// pass all others too.
#[derive(Debug)]
struct Reset {
    place: Place,
    /// Which of the user's files it is in, and the byte behind its keyword.
    source: usize,
    at: usize,
    words: usize,
    variables: usize,
}

/// The changes of all copies.
#[derive(Debug, Default)]
pub(super) struct Edits {
    /// haproxy's list of the user's files.
    listed: Vec<u8>,
    /// By copy.
    edits: Vec<Vec<Edit>>,
    /// The copy of each of the user's files.
    copies: Vec<usize>,
    resets: Vec<Reset>,
    /// Variables that are kept through a `resetenv`.
    keep: Vec<String>,
    /// Further variables to set, with their values.
    pub(super) constants: Vec<(String, String)>,
}

impl Edits {
    pub(super) fn new(listed: Vec<u8>, keep: &[&str]) -> Self {
        let keep = keep.iter().map(|&name| name.to_owned()).collect();
        Self { listed, keep, ..Self::default() }
    }

    /// One more copy; `injected` where the user has no such file.
    pub(super) fn add_copy(&mut self, injected: bool) {
        if !injected {
            self.copies.push(self.edits.len());
        }
        self.edits.push(Vec::new());
    }

    /// The number of the copy that was added last.
    pub(super) fn copy(&self) -> usize {
        self.edits.len().saturating_sub(1)
    }

    /// A change to the copy of this number.
    pub(super) fn add(&mut self, copy: usize, range: Range<usize>, text: Vec<u8>) {
        if let Some(edits) = self.edits.get_mut(copy) {
            edits.push(Edit { range, text });
        }
    }

    /// A change to the copy that was added last.
    pub(super) fn edit(&mut self, range: Range<usize>, text: Vec<u8>) {
        self.add(self.copy(), range, text);
    }

    /// Replaces variables that would name the copies by the names of the user's files. `listed` gives
    /// haproxy's list of its files at this line, where it is known.
    pub(super) fn name_files(
        &mut self,
        taken: &Line,
        line: &[u8],
        offset: usize,
        path: &Path,
        listed: &dyn Fn() -> Option<Vec<u8>>,
    ) {
        for range in &taken.variables {
            let written = &line[range.clone()];
            let name = written[1..].strip_prefix(b"{").unwrap_or(&written[1..]);
            let value = if name.starts_with(b".FILE") {
                path.as_os_str().as_bytes().to_vec()
            } else if name.starts_with(CFGFILES.as_bytes())
                && listed().as_ref() == Some(&self.listed)
            {
                self.listed.clone()
            } else {
                continue;
            };
            // Words of it would be words no more.
            if !written.ends_with(b"[*]}") || !value.iter().any(u8::is_ascii_whitespace) {
                let mut text = Vec::new();
                quoting::escape_into(&mut text, &value);
                self.edit(offset + range.start..offset + range.end, text);
            }
        }
        // `env(HAPROXY_CFGFILES)` is looked at while haproxy runs, and it is haproxy that sets it.
        const CALL: &[u8] = b"env(HAPROXY_CFGFILES)";
        let mut from = 0;
        while let Some(at) = find(&line[from..], CALL) {
            let start = offset + from + at + b"env(".len();
            from += at + CALL.len();
            self.edit(start..start + CFGFILES.len(), OUR_CFGFILES.as_bytes().to_vec());
            if self.constants.is_empty() {
                let value = String::from_utf8_lossy(&self.listed).into_owned();
                self.constants.push((OUR_CFGFILES.to_owned(), value));
                self.keep.push(OUR_CFGFILES.to_owned());
            }
        }
    }

    /// A `resetenv` line of this source, which counts in one of haproxy's passes, or in both: a condition
    /// around it may depend on what it has removed. So many variables were made before it.
    pub(super) fn reset(
        &mut self,
        words: &[Word],
        offset: usize,
        place: &Place,
        source: usize,
        variables: usize,
    ) {
        if self.resets.iter().any(|reset| reset.place == *place && reset.source == source) {
            return;
        }
        // An empty word would hide what follows it.
        let end = words.first().map_or(0, |word| word.source.end);
        let (place, words) = (place.clone(), words.len());
        self.resets.push(Reset { place, source, at: offset + end, words, variables });
    }

    /// Names our variables on every `resetenv` line that comes before their use:
    /// haproxy would remove them with all others.
    pub(super) fn keep_through_resets(
        &mut self,
        variables: &[Variable],
        first_pass: bool,
    ) -> Result<(), Error> {
        for reset in &self.resets {
            // In a first pass it removes those of the lines before it too.
            let from = if first_pass { 0 } else { reset.variables };
            let later = variables[from..].iter().map(|variable| variable.name.as_str());
            let kept: Vec<&str> = later.chain(self.keep.iter().map(String::as_str)).collect();
            if reset.words + kept.len() > MAX_WORDS {
                return Err(Error::TooManyToKeep {
                    place: reset.place.clone(),
                    variables: kept.len(),
                    room: MAX_WORDS.saturating_sub(reset.words),
                });
            }
            let text = kept.iter().flat_map(|name| [b" ", name.as_bytes()].concat()).collect();
            let copy = self.copies.get(reset.source);
            if let Some(edits) = copy.and_then(|copy| self.edits.get_mut(*copy)) {
                edits.push(Edit { range: reset.at..reset.at, text });
            }
        }
        Ok(())
    }

    /// Changes the text of a copy. Gives where each change is in it.
    pub(super) fn apply(&mut self, copy: usize, text: &mut Vec<u8>) -> Vec<Change> {
        let edits = self.edits.get_mut(copy).map(std::mem::take).unwrap_or_default();
        let (changed, changes) = edited(text, edits);
        *text = changed;
        changes
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
