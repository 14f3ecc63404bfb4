//! Collects, while the lines are read, the questions that only haproxy can answer, so that all are
//! asked at once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use super::expression::{self, Value};
use super::files::{CFGFILES, Source};
use super::questions::{self, Answers, Questions};
use super::reader::{self, Line, Unset, Word};
use super::sections::Kind;
use super::state::State;

/// Keywords whose arguments affect the reading.
const KEYWORDS: [&[u8]; 27] = [
    b"backlog",
    b"bind",
    b"default-bind",
    b"default-path",
    b"dgram-bind",
    b"disabled",
    b"enabled",
    b"guid",
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
    b"stats-file",
    b"unix-bind",
    b"unsetenv",
    b"nogetaddrinfo",
];

#[derive(Debug)]
pub(super) struct Unknowns<'a> {
    /// haproxy's answers; None as long as nothing had to be asked.
    pub(super) answers: Option<&'a Answers>,
    asks: Cell<bool>,
    /// Terms of conditions to ask haproxy about.
    terms: RefCell<BTreeSet<Vec<u8>>>,
}

impl<'a> Unknowns<'a> {
    pub(super) fn new(answers: Option<&'a Answers>) -> Self {
        Self { answers, asks: Cell::new(false), terms: RefCell::default() }
    }

    /// Whether haproxy has to be asked before reading can continue.
    pub(super) fn must_ask(&self, state: &State) -> bool {
        self.asks.get() || state.marks().unknown || !self.terms.borrow().is_empty()
    }

    /// Records that the lines read so far depend on something that only haproxy knows.
    pub(super) fn depend(&self) {
        self.asks.set(self.asks.get() || self.answers.is_none());
    }

    /// Whether haproxy has a first pass over the global sections.
    pub(super) fn first_pass(&self) -> bool {
        self.answers.is_some_and(|answers| answers.discovery)
    }

    /// How haproxy reads an unset variable.
    pub(super) fn unset(&self) -> Unset {
        self.answers.map(|answers| answers.unset).unwrap_or_default()
    }

    /// All questions that are known at this point, including the terms of conditions in all files
    /// that haproxy would have to decide in the current environment.
    pub(super) fn questions(
        &self,
        sources: &[Source],
        state: &State,
        variable: impl Fn(&Source, &[u8]) -> Option<Vec<u8>>,
    ) -> Questions {
        let mut questions = Questions { terms: self.terms.take(), ..Questions::default() };
        for source in sources {
            questions.names.extend(questions::names(&source.text));
            if self.answers.is_some() {
                continue;
            }
            for line in
                reader::lines(&source.text).map(|range| source.text[range].trim_ascii_start())
            {
                if line.starts_with(b".if") || line.starts_with(b".elif") {
                    let words = reader::words(line, self.unset(), &|name| variable(source, name));
                    let expression = expression_of(&words.unwrap_or_default());
                    let value = expression::evaluate(&expression, state, &|_| None);
                    if let Value::Asks(terms) = value {
                        questions.terms.extend(terms);
                    }
                }
            }
        }
        questions
    }

    /// Whether a condition holds, or why haproxy refuses it; false until haproxy has been asked.
    pub(super) fn evaluate(&self, expression: &[u8], state: &State) -> Result<bool, String> {
        match expression::evaluate(expression, state, &|term| self.answer(term)) {
            Value::Known(value) => Ok(value),
            Value::Asks(terms) => {
                self.terms.borrow_mut().extend(terms);
                Ok(false)
            }
            Value::Refused(reason) => Err(reason),
        }
    }

    /// Whether a term of conditions holds; false until haproxy has been asked.
    pub(super) fn holds(&self, term: &[u8]) -> bool {
        self.answer(term).map_or_else(
            || {
                self.terms.borrow_mut().insert(term.to_vec());
                false
            },
            |answer| answer.unwrap_or(false),
        )
    }

    /// haproxy's answer about a term.
    fn answer(&self, term: &[u8]) -> Option<Result<bool, String>> {
        self.answers?.terms.get(term).cloned()
    }
}

/// Whether the words of a line matter for the reading.
pub(super) fn matters(taken: &Line, line: &[u8], masked: bool) -> bool {
    let Some(first) = taken.words.first() else { return taken.depends };
    // A first word with a variable may turn out to be any keyword.
    let made = line.get(first.source.clone()).is_none_or(|written| written.contains(&b'$'));
    let keyword = KEYWORDS.contains(&first.value.as_slice()) || Kind::of(&first.value).is_some();
    let names_files = taken.variables.iter().any(|range| {
        line[range.clone()].windows(CFGFILES.len()).any(|window| window == CFGFILES.as_bytes())
    });
    made || first.value.starts_with(b".") || (!masked && (keyword || names_files))
}

/// The expression behind `.if`. haproxy joins the words with single spaces.
pub(super) fn expression_of(words: &[Word]) -> Vec<u8> {
    let values: Vec<&[u8]> = words.iter().skip(1).map(|word| word.value.as_slice()).collect();
    values.join(&b' ')
}
