//! Evaluates the expression of a `.if` or `.elif`.
//!
//! The syntax is that of haproxy's src/cfgcond.c and make_arg_list() (the same from 2.6 to
//! 3.5-dev5). Terms that the text and the environment decide are evaluated here. Any other term
//! (versions, features, libraries) is put to haproxy itself, which alone knows. So is a text that
//! cannot be parsed: haproxy reports why.

use std::collections::BTreeSet;

use super::state::State;

/// The deepest nesting of parentheses here; haproxy takes about 340.
const MAX_DEPTH: usize = 300;

/// Whether a term holds, or why haproxy does not understand it; None if haproxy has not been asked
/// yet.
pub(super) type Lookup<'a> = &'a dyn Fn(&[u8]) -> Option<Result<bool, String>>;

/// The value of an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Known(bool),
    /// haproxy refuses the expression, in these words.
    Refused(String),
    /// haproxy has to be asked about these terms first.
    Asks(BTreeSet<Vec<u8>>),
}

/// Evaluates an expression in the state at its line.
pub(super) fn evaluate(text: &[u8], state: &State, lookup: Lookup<'_>) -> Value {
    let whole = || Expression::Term(text.to_vec());
    let expression = if text.is_empty() {
        Expression::Constant(false)
    } else {
        let mut reader = Reader { rest: text, depth: 0 };
        let read = reader.any_of();
        reader.skip();
        read.filter(|_| reader.rest.is_empty()).unwrap_or_else(whole)
    };
    match expression.value(state, lookup) {
        Ok(Some(value)) => Value::Known(value),
        Ok(None) => {
            // All terms are asked at once, although not every one may matter.
            let mut terms = BTreeSet::new();
            expression.terms(&mut terms);
            Value::Asks(terms)
        }
        Err(reason) => Value::Refused(reason),
    }
}

#[derive(Debug)]
enum Expression {
    Constant(bool),
    Defined(Vec<u8>),
    /// `enabled(NAME)`, and the term as written.
    Enabled(Vec<u8>, Vec<u8>),
    /// A term that haproxy decides.
    Term(Vec<u8>),
    Not(Box<Self>),
    All(Vec<Self>),
    Any(Vec<Self>),
}

impl Expression {
    /// The value; None if haproxy has to be asked first. As in haproxy, terms after the deciding
    /// one are not evaluated.
    fn value(&self, state: &State, lookup: Lookup<'_>) -> Result<Option<bool>, String> {
        let stops_at = |all: &[Self], stop: bool| {
            for one in all {
                match one.value(state, lookup)? {
                    Some(value) if value != stop => {}
                    decided => return Ok(decided),
                }
            }
            Ok(Some(!stop))
        };
        match self {
            Self::Constant(value) => Ok(Some(*value)),
            Self::Defined(name) => Ok(Some(state.get(name).is_some())),
            Self::Enabled(name, term) => {
                if let Some(enabled) = state.enabled(name) {
                    return Ok(Some(enabled));
                }
                let enabled = lookup(term).transpose()?;
                // haproxy 3.0 checks epoll in the place of kqueue, which Linux does not have.
                let kqueue = name == b"KQUEUE" && state.enabled(b"EPOLL") == Some(false);
                Ok(enabled.map(|enabled| enabled && !kqueue))
            }
            Self::Term(term) => lookup(term).transpose(),
            Self::Not(inner) => Ok(inner.value(state, lookup)?.map(|value| !value)),
            Self::All(all) => stops_at(all, false),
            Self::Any(any) => stops_at(any, true),
        }
    }

    fn terms(&self, into: &mut BTreeSet<Vec<u8>>) {
        match self {
            Self::Constant(_) | Self::Defined(_) => {}
            Self::Enabled(_, term) | Self::Term(term) => {
                into.insert(term.clone());
            }
            Self::Not(inner) => inner.terms(into),
            Self::All(all) | Self::Any(all) => all.iter().for_each(|one| one.terms(into)),
        }
    }
}

/// Parses an expression; None for text that haproxy has to parse itself.
struct Reader<'a> {
    rest: &'a [u8],
    depth: usize,
}

impl Reader<'_> {
    fn skip(&mut self) {
        let spaces = self.rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        self.rest = &self.rest[spaces..];
    }

    fn eat(&mut self, text: &[u8]) -> bool {
        self.skip();
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn any_of(&mut self) -> Option<Expression> {
        let mut any = vec![self.all_of()?];
        while self.eat(b"||") {
            any.push(self.all_of()?);
        }
        Some(Expression::Any(any))
    }

    fn all_of(&mut self) -> Option<Expression> {
        let mut all = vec![self.term()?];
        while self.eat(b"&&") {
            all.push(self.term()?);
        }
        Some(Expression::All(all))
    }

    fn term(&mut self) -> Option<Expression> {
        let mut negated = false;
        while self.eat(b"!") {
            negated = !negated;
        }
        let term = if let Some(number) = self.number() {
            Expression::Constant(number)
        } else if self.eat(b"(") {
            self.depth += 1;
            let inner = if self.depth > MAX_DEPTH { None } else { self.any_of() };
            self.depth -= 1;
            let inner = inner?;
            self.eat(b")").then_some(inner)?
        } else {
            self.predicate()?
        };
        Some(if negated { Expression::Not(Box::new(term)) } else { term })
    }

    /// Reads a number as strtol() does with base 0; true if it is not zero.
    fn number(&mut self) -> Option<bool> {
        let sign = usize::from(matches!(self.rest.first(), Some(b'+' | b'-')));
        let unsigned = &self.rest[sign..];
        let hexadecimal = unsigned.len() > 2
            && matches!(unsigned, [b'0', b'x' | b'X', digit, ..] if digit.is_ascii_hexdigit());
        let (skipped, base) = match unsigned {
            _ if hexadecimal => (2, 16),
            [b'0', ..] => (0, 8),
            _ => (0, 10),
        };
        let digits = &unsigned[skipped..];
        let count = digits.iter().take_while(|byte| char::from(**byte).is_digit(base)).count();
        if count == 0 {
            return None;
        }
        self.rest = &digits[count..];
        Some(digits[..count].iter().any(|digit| *digit != b'0'))
    }

    fn predicate(&mut self) -> Option<Expression> {
        let start = self.rest;
        let length = start.iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_')?;
        let length = if length == 0 { return None } else { length };
        let name = &start[..length];
        self.rest = &start[length..];
        let arguments = self.arguments()?;
        let term = &start[..start.len() - self.rest.len()];
        Some(match (name, &arguments[..]) {
            (b"defined", [name]) => Expression::Defined(name.clone()),
            (b"streq", [one, other]) => Expression::Constant(one == other),
            (b"strneq", [one, other]) => Expression::Constant(one != other),
            (b"enabled", [name]) => Expression::Enabled(name.clone(), term.to_vec()),
            _ => Expression::Term(term.to_vec()),
        })
    }

    /// The arguments between parentheses, with quotes and backslashes removed.
    fn arguments(&mut self) -> Option<Vec<Vec<u8>>> {
        self.rest = self.rest.strip_prefix(b"(")?;
        let (mut single, mut double) = (false, false);
        let mut all = Vec::new();
        let mut argument = Vec::new();
        while let [byte, rest @ ..] = self.rest {
            self.rest = rest;
            match (byte, rest.first()) {
                (b'"', _) if !single => double = !double,
                (b'\'', _) if !double => single = !single,
                (b'\\', next) if !single => {
                    let escaped = match next? {
                        byte @ (b'\\' | b' ' | b'"' | b'\'') => Some(*byte),
                        b'r' => Some(b'\r'),
                        b'n' => Some(b'\n'),
                        b't' => Some(b'\t'),
                        _ => None,
                    };
                    argument.push(escaped.unwrap_or(b'\\'));
                    self.rest = &rest[usize::from(escaped.is_some())..];
                }
                (b',', _) if !single && !double => all.push(std::mem::take(&mut argument)),
                (b')', _) if !single && !double => {
                    all.push(argument);
                    return Some(all);
                }
                _ => argument.push(*byte),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let environment = [(b"SET".to_vec(), b"".to_vec())].into();
        State::new(environment, "host".to_owned(), Some(false))
    }

    #[test]
    fn decides_what_the_environment_decides() {
        let lookup = |_: &[u8]| None;
        for (expression, value) in [
            ("", Some(false)),
            ("0", Some(false)),
            ("12", Some(true)),
            ("010", Some(true)),
            ("00", Some(false)),
            ("0x10", Some(true)),
            ("-1", Some(true)),
            ("!0", Some(true)),
            ("! ! 1", Some(true)),
            ("defined(SET)", Some(true)),
            ("!defined(SET)", Some(false)),
            ("defined(\"SET\")", Some(true)),
            ("defined(NOT) || streq(a,a)", Some(true)),
            ("defined(SET) && (strneq(a,a) || 0)", Some(false)),
            ("streq(,)", Some(true)),
            ("streq(\"a,b\",'a,b')", Some(true)),
            ("streq(\"a\",a)", Some(true)),
            ("streq(a b,a\\ b)", Some(true)),
            ("streq(a), b)", None),
            ("1 || feature(X)", Some(true)),
            ("0 && feature(X)", Some(false)),
            ("feature(OPENSSL)", None),
            ("defined(SET) && version_atleast(2.4)", None),
            ("fips_mode", None),
            ("1 1", None),
            ("08", None),
            ("(1", None),
            ("defined(", None),
            ("defined (SET)", None),
            (")(", None),
        ] {
            let got = match evaluate(expression.as_bytes(), &state(), &lookup) {
                Value::Known(value) => Some(value),
                Value::Asks(_) => None,
                Value::Refused(reason) => panic!("{expression}: {reason}"),
            };
            assert_eq!(got, value, "{expression}");
        }
        let deep = "(".repeat(100_000);
        assert!(matches!(evaluate(deep.as_bytes(), &state(), &lookup), Value::Asks(_)));
    }

    #[test]
    fn asks_about_each_term_and_takes_the_answers() {
        let text = b"!feature(A) && (version_atleast(2.4) || defined(X))";
        let expected = [b"feature(A)".to_vec(), b"version_atleast(2.4)".to_vec()].into();
        assert_eq!(evaluate(text, &state(), &|_| None), Value::Asks(expected));
        let lookup = |term: &[u8]| Some(Ok(term == b"version_atleast(2.4)"));
        assert_eq!(evaluate(text, &state(), &lookup), Value::Known(true));
        let lookup = |_: &[u8]| Some(Err("no".to_owned()));
        assert_eq!(evaluate(text, &state(), &lookup), Value::Refused("no".to_owned()));
        assert_eq!(evaluate(b"0 && f(x)", &state(), &lookup), Value::Known(false));
    }

    #[test]
    fn keywords_count_for_enabled() {
        let mut state = state();
        let lookup = |_: &[u8]| Some(Ok(true));
        let holds = |state: &State, text: &str| evaluate(text.as_bytes(), state, &lookup);
        assert_eq!(holds(&state, "enabled(EPOLL)"), Value::Known(true));
        state.global(&[b"noepoll"], false);
        assert_eq!(holds(&state, "enabled(EPOLL)"), Value::Known(false));
        assert_eq!(holds(&state, "enabled(KQUEUE)"), Value::Known(false));
        assert_eq!(holds(&state, "enabled(POLL)"), Value::Known(true));
        state.global(&[b"ssl-server-verify", b"none"], false);
        assert_eq!(holds(&state, "enabled(SERVER-SSL-VERIFY-NONE)"), Value::Known(true));
    }
}
