//! What the reading of a configuration depends on and only haproxy knows: it is noted while the lines
//! are read, and then asked for all at once.

use std::collections::BTreeSet;

use super::Place;
use super::expression::{self, Value};
use super::questions::Questions;
use super::reader::{self, Line, Unset, Word};
use super::sections::Kind;
use super::walk::{CFGFILES, Walk};

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

impl Walk<'_> {
    pub(super) fn must_ask(&self) -> bool {
        self.asks.get() || self.state.marks().unknown || !self.terms.borrow().is_empty()
    }

    /// Everything that there is to ask, as far as it can be seen from here.
    pub(super) fn questions(&self) -> Questions {
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

    pub(super) fn unset(&self) -> Unset {
        self.answers.map(|answers| answers.unset).unwrap_or_default()
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
    pub(super) fn told(&self, term: &[u8]) -> Option<Result<bool, String>> {
        self.answers?.terms.get(term).cloned()
    }
}

/// Whether it matters here what the words of a line are.
pub(super) fn matters(taken: &Line, line: &[u8], masked: bool) -> bool {
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
pub(super) fn expression_of(words: &[Word]) -> Vec<u8> {
    let values: Vec<&[u8]> = words.iter().skip(1).map(|word| word.value.as_slice()).collect();
    values.join(&b' ')
}
