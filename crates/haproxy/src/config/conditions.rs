//! `.if`, `.elif`, `.else` and `.endif`: which lines haproxy would see.
//!
//! Section 2.4 of haproxy's configuration manual, "Conditional blocks". What an
//! expression needs nothing but the environment for is decided here; anything
//! else (versions, features, libraries) is put to haproxy itself, which is the
//! only one to know.

use super::world::Environment;

/// How deep blocks may nest in haproxy.
const MAX_DEPTH: usize = 15;

/// The blocks that are open at a line.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    open: Vec<Block>,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    /// The lines here count.
    active: bool,
    /// A branch has been taken, or the whole block is inside one that was not.
    settled: bool,
    /// `.else` has been seen.
    last: bool,
}

impl Blocks {
    /// Whether the lines here are skipped.
    pub(super) fn masked(&self) -> bool {
        self.open.last().is_some_and(|block| !block.active)
    }

    /// Handles a line whose first word begins with a dot. Gives `None` when the
    /// word does not belong to a block. `evaluate` is asked only for a condition
    /// that haproxy would evaluate too.
    pub(super) fn line<E>(
        &mut self,
        words: &[&[u8]],
        evaluate: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Option<Result<(), &'static str>>, E> {
        let misplaced = |reason| Ok(Some(Err(reason)));
        let extra = words.get(1).is_some_and(|word| !word.is_empty());
        match words[0] {
            b".if" => {
                if self.open.len() >= MAX_DEPTH {
                    return misplaced("too many .if inside each other");
                }
                let active = !self.masked() && evaluate()?;
                let settled = active || self.masked();
                self.open.push(Block { active, settled, last: false });
            }
            b".elif" => match self.open.last_mut() {
                None => return misplaced(".elif without .if"),
                Some(block) if block.last => return misplaced(".elif after .else"),
                Some(block) if block.settled => block.active = false,
                Some(block) => {
                    block.active = evaluate()?;
                    block.settled = block.active;
                }
            },
            b".else" if extra => return misplaced(".else takes no word after it"),
            b".else" => match self.open.last_mut() {
                None => return misplaced(".else without .if"),
                Some(block) if block.last => return misplaced(".else after .else"),
                Some(block) => {
                    block.active = !block.settled;
                    block.last = true;
                }
            },
            b".endif" if extra => return misplaced(".endif takes no word after it"),
            b".endif" => {
                if self.open.pop().is_none() {
                    return misplaced(".endif without .if");
                }
            }
            _ => return Ok(None),
        }
        Ok(Some(Ok(())))
    }

    /// Whether a block is still open, at the end of a file.
    pub(super) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }
}

/// The value of an expression, if the environment alone decides it.
pub(super) fn evaluate(expression: &[u8], environment: &Environment) -> Option<bool> {
    let mut reader = Expression { rest: expression.trim_ascii(), environment, depth: 0 };
    if reader.rest.is_empty() {
        return Some(false);
    }
    let value = reader.any_of()?;
    reader.rest.trim_ascii().is_empty().then_some(value)
}

struct Expression<'a> {
    rest: &'a [u8],
    environment: &'a Environment,
    depth: usize,
}

impl<'a> Expression<'a> {
    fn eat(&mut self, text: &[u8]) -> bool {
        self.rest = self.rest.trim_ascii_start();
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn any_of(&mut self) -> Option<bool> {
        let mut value = self.all_of()?;
        while self.eat(b"||") {
            value |= self.all_of()?;
        }
        Some(value)
    }

    fn all_of(&mut self) -> Option<bool> {
        let mut value = self.term()?;
        while self.eat(b"&&") {
            value &= self.term()?;
        }
        Some(value)
    }

    fn term(&mut self) -> Option<bool> {
        let mut negated = false;
        while self.eat(b"!") {
            negated = !negated;
        }
        let value = if self.eat(b"(") {
            self.depth += 1;
            let value = if self.depth > 64 { None } else { self.any_of() };
            self.depth -= 1;
            let value = value?;
            self.eat(b")").then_some(value)?
        } else if self.rest.first().is_some_and(u8::is_ascii_digit) {
            self.number()?
        } else {
            self.predicate()?
        };
        Some(value != negated)
    }

    /// Decimal numbers only; octal and hexadecimal are left to haproxy.
    fn number(&mut self) -> Option<bool> {
        let end = self.rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        let decimal = digits == b"0" || digits[0] != b'0';
        decimal.then(|| digits.iter().any(|&digit| digit != b'0'))
    }

    fn predicate(&mut self) -> Option<bool> {
        let open = self.rest.iter().position(|&b| b == b'(')?;
        let close = self.rest.iter().position(|&b| b == b')')?;
        let name = &self.rest[..open];
        let inside = self.rest.get(open + 1..close)?;
        // haproxy has quoting rules of their own for arguments; plain ones need none.
        if inside.iter().any(|b| b"\"'\\( \t".contains(b)) {
            return None;
        }
        self.rest = &self.rest[close + 1..];
        let arguments: Vec<&[u8]> = inside.split(|&b| b == b',').collect();
        match (name, &arguments[..]) {
            (b"defined", [name]) if !name.is_empty() => Some(self.environment.contains_key(*name)),
            (b"streq", [one, other]) => Some(one == other),
            (b"strneq", [one, other]) => Some(one != other),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decides_what_the_environment_decides() {
        let environment = Environment::from([(b"SET".to_vec(), b"".to_vec())]);
        for (expression, value) in [
            ("", Some(false)),
            ("0", Some(false)),
            ("12", Some(true)),
            ("!0", Some(true)),
            ("! ! 1", Some(true)),
            ("defined(SET)", Some(true)),
            ("!defined(SET)", Some(false)),
            ("defined(NOT) || streq(a,a)", Some(true)),
            ("defined(SET) && (strneq(a,a) || 0)", Some(false)),
            ("streq(,)", Some(true)),
            ("feature(OPENSSL)", None),
            ("defined(SET) && version_atleast(2.4)", None),
            ("streq(\"a\",a)", None),
            ("010", None),
            ("1 1", None),
            ("(1", None),
            ("defined(", None),
            (")(", None),
        ] {
            assert_eq!(evaluate(expression.as_bytes(), &environment), value, "{expression}");
        }
        let deep = "(".repeat(100_000);
        assert_eq!(evaluate(deep.as_bytes(), &environment), None);
    }

    fn run(lines: &[(&str, bool)]) -> Result<Vec<bool>, &'static str> {
        let mut blocks = Blocks::default();
        let mut masked = Vec::new();
        for &(line, condition) in lines {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let handled = blocks.line(&words, || Ok::<_, ()>(condition)).expect("evaluates");
            match handled {
                Some(result) => result?,
                None => masked.push(blocks.masked()),
            }
        }
        Ok(masked)
    }

    #[test]
    fn one_branch_of_a_block_is_taken() {
        let masked = run(&[
            (".if a", false),
            (".x", false),
            (".elif b", true),
            (".x", false),
            (".elif c", true),
            (".x", false),
            (".else", false),
            (".x", false),
            (".endif", false),
            (".x", false),
        ]);
        assert_eq!(masked, Ok(vec![true, false, true, true, false]));
        let nested = run(&[
            (".if a", false),
            (".if b", true),
            (".x", false),
            (".else", false),
            (".x", false),
            (".endif", false),
            (".else", false),
            (".x", false),
            (".endif", false),
        ]);
        assert_eq!(nested, Ok(vec![true, true, false]));
    }

    #[test]
    fn misplaced_words_are_named() {
        for lines in [
            &[(".else", false)][..],
            &[(".endif", false)],
            &[(".elif a", true)],
            &[(".if a", true), (".else", true), (".else", true)],
            &[(".if a", true), (".else", true), (".elif a", true)],
            &[(".if a", true), (".endif x", true)],
        ] {
            assert!(run(lines).is_err(), "{lines:?}");
        }
        assert!(run(&[(".if a", true); 16]).is_err());
    }
}
