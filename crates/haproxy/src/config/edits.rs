//! The differences between a user's file and its copy: ranges of bytes and their replacements.
//!
//! Descriptors replace address words (see [`super::claims`]). In addition, the names of the user's
//! files replace variables that would name the copies, and `resetenv` lines keep bindonce's own
//! variables.

use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::files::CFGFILES;
use super::quoting;
use super::reader::{Line, Word, find};
use super::rendering::{Change, Variable};
use super::{Error, Place};

/// The variable that a copy reads in place of `HAPROXY_CFGFILES`: the same list, with the user's
/// files.
const OUR_CFGFILES: &str = "BINDONCE_CFGFILES";

/// The most words that haproxy takes on a line.
const MAX_WORDS: usize = 64;

/// A change to one file: a range of bytes and its replacement.
#[derive(Debug)]
struct Edit {
    range: Range<usize>,
    text: Vec<u8>,
}

/// A `resetenv` line. It must name the variables made after it and, in haproxy's first pass, all
/// others too.
#[derive(Debug)]
struct Reset {
    place: Place,
    /// The number of the user's file, and the byte after the keyword.
    source: usize,
    at: usize,
    words: usize,
    variables: usize,
}

/// The changes of all copies.
#[derive(Debug, Default)]
pub(super) struct Edits {
    /// The user's files as haproxy lists them.
    listed: Vec<u8>,
    /// The changes, by copy.
    edits: Vec<Vec<Edit>>,
    /// The number of the copy of each of the user's files.
    copies: Vec<usize>,
    resets: Vec<Reset>,
    /// Variables that `resetenv` must keep.
    keep: Vec<String>,
    /// Further variables to set, with their values.
    pub(super) constants: Vec<(String, String)>,
}

impl Edits {
    pub(super) fn new(listed: Vec<u8>, keep: &[&str]) -> Self {
        let keep = keep.iter().map(|&name| name.to_owned()).collect();
        Self { listed, keep, ..Self::default() }
    }

    /// Adds a copy; `injected` if the user has no such file.
    pub(super) fn add_copy(&mut self, injected: bool) {
        if !injected {
            self.copies.push(self.edits.len());
        }
        self.edits.push(Vec::new());
    }

    /// The number of the last added copy.
    pub(super) fn copy(&self) -> usize {
        self.edits.len().saturating_sub(1)
    }

    /// Adds a change to the copy with this number.
    pub(super) fn add(&mut self, copy: usize, range: Range<usize>, text: Vec<u8>) {
        if let Some(edits) = self.edits.get_mut(copy) {
            edits.push(Edit { range, text });
        }
    }

    /// Adds a change to the last added copy.
    pub(super) fn edit(&mut self, range: Range<usize>, text: Vec<u8>) {
        self.add(self.copy(), range, text);
    }

    /// Replaces variables that would name the copies by the names of the user's files. `listed`
    /// gives haproxy's list of its files at this line, where it is known.
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
            let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"._".contains(byte);
            let end = name.iter().position(|byte| !is_name(byte)).unwrap_or(name.len());
            let name = &name[..end];
            let value = if name == b".FILE" {
                path.as_os_str().as_bytes().to_vec()
            } else if name == CFGFILES.as_bytes() && listed().as_ref() == Some(&self.listed) {
                self.listed.clone()
            } else {
                continue;
            };
            // A value with spaces cannot replace `[*]`, which splits it into words.
            if !written.ends_with(b"[*]}") || !value.iter().any(u8::is_ascii_whitespace) {
                let mut text = Vec::new();
                quoting::escape_into(&mut text, &value);
                self.edit(offset + range.start..offset + range.end, text);
            }
        }
        // haproxy evaluates `env(HAPROXY_CFGFILES)` at run time, and sets the variable itself.
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

    /// Records a `resetenv` line of this source, with the number of variables made before it. The
    /// line may count in one of haproxy's passes or in both: a condition around it may depend on
    /// what it removed.
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
        // The names go right after the keyword: an empty word would hide any word after it.
        let end = words.first().map_or(0, |word| word.source.end);
        let (place, words) = (place.clone(), words.len());
        self.resets.push(Reset { place, source, at: offset + end, words, variables });
    }

    /// Names bindonce's variables on every `resetenv` line that comes before their use: haproxy
    /// would remove them with all others.
    pub(super) fn keep_through_resets(
        &mut self,
        variables: &[Variable],
        first_pass: bool,
    ) -> Result<(), Error> {
        for reset in &self.resets {
            // In a first pass the line also removes the variables of earlier lines.
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

    /// Applies the changes to the text of a copy and gives the position of each in it.
    pub(super) fn apply(&mut self, copy: usize, text: &mut Vec<u8>) -> Vec<Change> {
        let edits = self.edits.get_mut(copy).map(std::mem::take).unwrap_or_default();
        let (changed, changes) = edited(text, edits);
        *text = changed;
        changes
    }
}

/// The edited text, and the position of each edit in it. An edit within another one is ignored.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reader::{Unset, take_apart};

    #[test]
    fn only_the_variables_themselves_give_way_to_the_names_of_the_files() {
        let line = b"x \"${.FILE} $HAPROXY_CFGFILES ${HAPROXY_CFGFILES-x} $HAPROXY_CFGFILES_X\"";
        let variable = |_: &[u8]| Some(b"here".to_vec());
        let taken = take_apart(line, Unset::Empty, &variable).expect("a line");
        let mut edits = Edits::new(b"a.cfg".to_vec(), &[]);
        edits.add_copy(false);
        edits.name_files(&taken, line, 0, Path::new("a.cfg"), &|| Some(b"a.cfg".to_vec()));
        let mut text = line.to_vec();
        edits.apply(0, &mut text);
        assert_eq!(text, b"x \"a.cfg a.cfg a.cfg $HAPROXY_CFGFILES_X\"");
    }
}
