//! Splits a configuration into lines and words exactly as haproxy does.
//!
//! The rules are those of sections 2.2 and 2.3 of haproxy's configuration manual ("Quoting and
//! escaping", "Environment variables"). Where the manual is silent, they follow the observed
//! behaviour of haproxy 2.6, 3.0 and 3.2 and the source of 3.5-dev5. Where versions differ,
//! [`Unset`] selects the rule. Every word remembers the bytes of the line it came from, so that one
//! word can be replaced while all other bytes stay as they are.

use std::ops::Range;

/// How haproxy treats a variable that leaves nothing between its quotes. haproxy has changed this
/// twice, in its stable branches too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unset {
    /// It makes an empty word, and haproxy ignores every word after an empty one (2.4 to 2.6.12).
    #[default]
    Empty,
    /// An unset variable swallows the closing quote and the spaces after it: the following text
    /// belongs to the same word (3.0 to 3.2, and late patch levels of 2.6 and 2.8).
    Joined,
    /// It makes an empty word, except that `"${NAME[*]}"` makes no word at all (3.3 and later).
    NoWord,
}

/// One word of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The value that haproxy sees: quotes and escapes removed, variables expanded.
    pub value: Vec<u8>,
    /// The bytes of the line that the word was made from. Words from one `${NAME[*]}` share them.
    pub source: Range<usize>,
}

/// A line that haproxy refuses to split into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The error.
    pub reason: &'static str,
    /// Offset in the line at which the error begins.
    pub position: usize,
}

/// The lines of a text, as ranges without their line feed. There is no continuation: in haproxy a
/// backslash at the end of a line is an ordinary character.
pub fn lines(text: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start >= text.len() {
            return None;
        }
        let end =
            text[start..].iter().position(|&byte| byte == b'\n').map_or(text.len(), |n| start + n);
        let line = start..end;
        start = end + 1;
        Some(line)
    })
}

/// The position of a part in a text.
pub fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// C's isspace() in the C locale.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// A line, split into words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// Its words.
    pub words: Vec<Word>,
    /// The variables in the line, each as the range of bytes that names it.
    pub variables: Vec<Range<usize>>,
    /// Whether another [`Unset`] rule might give other words.
    pub depends: bool,
}

/// The words of a line, as [`take_apart`] gives them.
///
/// # Errors
/// [`Fault`] where haproxy stops with an error of its own.
pub fn words(
    line: &[u8],
    unset: Unset,
    variable: &dyn Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<Vec<Word>, Fault> {
    take_apart(line, unset, variable).map(|line| line.words)
}

/// Splits a line into words. `variable` gives the value of a variable; names that begin with a dot
/// are haproxy's pseudo-variables (`.FILE`, `.LINE`, `.SECTION`).
///
/// # Errors
/// [`Fault`] where haproxy stops with an error of its own.
pub fn take_apart(
    line: &[u8],
    unset: Unset,
    variable: &dyn Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<Line, Fault> {
    let mut scanner = Scanner { line, unset, ..Scanner::default() };
    scanner.skip_space();
    // A line in brackets opens a scope, which does not affect listeners.
    if scanner.peek(0) == Some(b'[') {
        return Ok(Line::default());
    }
    scanner.token = scanner.at;
    scanner.run(variable)?;
    Ok(scanner.taken)
}

#[derive(Default)]
struct Scanner<'a> {
    line: &'a [u8],
    unset: Unset,
    at: usize,
    taken: Line,
    value: Vec<u8>,
    /// `value` is a word even if it is empty.
    open: bool,
    /// Index of the first word of the current token.
    first_of_token: usize,
    /// Where the current token begins.
    token: usize,
}

impl Scanner<'_> {
    /// The byte `ahead` of the current position. None from a NUL on, since haproxy reads C strings.
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.line.get(self.at + ahead).copied().filter(|&byte| byte != 0)
    }

    fn skip_space(&mut self) {
        while self.peek(0).is_some_and(is_space) {
            self.at += 1;
        }
    }

    /// Ends the current word, if there is one. By the older rules a space ends a word in any case.
    fn end_word(&mut self) {
        if self.unset == Unset::NoWord && !self.open {
            return;
        }
        self.open = false;
        let mut value = std::mem::take(&mut self.value);
        // An escaped \x00 ends the word: haproxy's words are C strings.
        if let Some(end) = value.iter().position(|&byte| byte == 0) {
            value.truncate(end);
        }
        self.taken.words.push(Word { value, source: self.token..self.at });
    }

    fn end_token(&mut self) {
        let end = self.at;
        for word in &mut self.taken.words[self.first_of_token..] {
            word.source.end = end;
        }
        self.first_of_token = self.taken.words.len();
    }

    fn push(&mut self, byte: u8) {
        self.value.push(byte);
        self.open = true;
    }

    fn run(&mut self, variable: &dyn Fn(&[u8]) -> Option<Vec<u8>>) -> Result<(), Fault> {
        // Position of the open quote of each kind.
        let mut single = None;
        let mut double = None;
        // The innermost quotes have been empty so far.
        let mut bare = false;
        // A carriage return ends the line anywhere, even in quotes.
        while let Some(byte) = self.peek(0).filter(|byte| !matches!(byte, b'\n' | b'\r')) {
            let quoted = single.is_some() || double.is_some();
            let before = self.value.len();
            match byte {
                b'#' if !quoted => break,
                b'"' if single.is_none() => {
                    self.quote(&mut double, &mut bare);
                    continue;
                }
                b'\'' if double.is_none() => {
                    self.quote(&mut single, &mut bare);
                    continue;
                }
                b'\\' if single.is_none() => self.escape(double.is_some())?,
                _ if is_space(byte) && !quoted => {
                    self.end_word();
                    self.end_token();
                    self.skip_space();
                    self.token = self.at;
                }
                b'$' if double.is_some() => match self.variable(variable)? {
                    Left::Words => bare = false,
                    Left::Unset if self.unset == Unset::Joined && self.peek(0) == Some(b'"') => {
                        self.at += 1;
                        double = None;
                        self.skip_space();
                    }
                    Left::Something | Left::Unset => {}
                },
                _ => {
                    self.push(byte);
                    self.at += 1;
                }
            }
            bare &= self.value.len() == before;
        }
        // An empty word at the very end does not count.
        if !self.value.is_empty() {
            self.end_word();
        }
        self.end_token();
        match single.or(double) {
            None => Ok(()),
            Some(position) => Err(Fault { reason: "unmatched quote", position }),
        }
    }

    /// Opens or closes quotes of one kind. Two quotes with nothing between them make a word.
    fn quote(&mut self, open: &mut Option<usize>, bare: &mut bool) {
        if open.take().is_some() {
            self.open |= *bare;
        } else {
            *open = Some(self.at);
            *bare = true;
        }
        self.at += 1;
    }

    fn escape(&mut self, in_double: bool) -> Result<(), Fault> {
        let start = self.at;
        let (byte, length) = match self.peek(1) {
            Some(byte @ (b' ' | b'\\' | b'#' | b'\'' | b'"')) => (byte, 2),
            Some(b't') => (b'\t', 2),
            Some(b'n') => (b'\n', 2),
            Some(b'r') => (b'\r', 2),
            Some(b'$') if in_double => (b'$', 2),
            Some(b'x') => {
                let digit = |ahead| self.peek(ahead).and_then(|b| (b as char).to_digit(16));
                let (Some(high), Some(low)) = (digit(2), digit(3)) else {
                    return Err(Fault {
                        reason: "truncated or invalid hexadecimal sequence",
                        position: start,
                    });
                };
                // Two hexadecimal digits are at most 255.
                ((high << 4 | low) as u8, 4)
            }
            _ => (b'\\', 1),
        };
        self.push(byte);
        self.at += length;
        Ok(())
    }

    fn variable(&mut self, variable: &dyn Fn(&[u8]) -> Option<Vec<u8>>) -> Result<Left, Fault> {
        let dollar = self.at;
        let fault = |reason, position| Err(Fault { reason, position });
        self.at += 1;
        let brace = (self.peek(0) == Some(b'{')).then_some(self.at);
        self.at += usize::from(brace.is_some());
        let start = self.at;
        if !self.peek(0).is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b == b'.') {
            return fault("forbidden first character in a variable's name", start);
        }
        self.at += 1;
        while self.peek(0).is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_') {
            self.at += 1;
        }
        let line = self.line;
        let name = &line[start..self.at];
        let pseudo = name[0] == b'.';
        if pseudo && !matches!(name, b".LINE" | b".FILE" | b".SECTION") {
            return fault("unknown pseudo-variable", start);
        }
        let mut value = variable(name);
        let mut expand = false;
        if brace.is_some() && self.peek(0) == Some(b'[') {
            if self.peek(1) != Some(b'*') || self.peek(2) != Some(b']') {
                return fault("truncated or invalid word expansion", self.at);
            }
            expand = true;
            self.at += 3;
        }
        if let Some(brace) = brace {
            if self.peek(0) == Some(b'-') {
                let default = self.at + 1;
                while self.peek(0).is_some_and(|b| b != b'}') {
                    self.at += 1;
                }
                value = value.or_else(|| Some(self.line[default..self.at].to_vec()));
            }
            if self.peek(0) != Some(b'}') {
                return fault("unmatched brace in a variable's name", brace);
            }
            self.at += 1;
        }
        self.taken.variables.push(dollar..self.at);
        let left = match (&value, expand) {
            (Some(_), false) => Left::Something,
            (None, false) => Left::Unset,
            (None, true) if self.unset == Unset::Joined => Left::Unset,
            (_, true) => Left::Words,
        };
        let edges = value.as_ref().map(|value| [value.first().copied(), value.last().copied()]);
        self.taken.depends |= match edges {
            // Spaces at the edges of the value, or an empty value.
            Some(edges) => expand && edges.iter().any(|byte| byte.is_none_or(is_space)),
            None => expand || self.peek(0) == Some(b'"'),
        };
        self.put(&value.unwrap_or_default(), expand);
        self.open |= matches!(left, Left::Unset);
        // Before the first section `.SECTION` has no value, but does not count as unset.
        Ok(if pseudo && matches!(left, Left::Unset) { Left::Something } else { left })
    }

    /// Appends the value of a variable, as one word or split into words.
    fn put(&mut self, value: &[u8], expand: bool) {
        let mut bytes = value.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            if expand && is_space(byte) {
                self.end_word();
                while bytes.peek().copied().is_some_and(is_space) {
                    bytes.next();
                }
            } else {
                self.push(byte);
            }
        }
    }
}

/// What a variable contributes to its word.
enum Left {
    /// Its value, which may be empty.
    Something,
    /// The words in its value, possibly none.
    Words,
    /// Nothing: the variable is unset.
    Unset,
}

/// Expands the variables of an address. haproxy does this once more when it reads an address:
/// `$NAME` or `${NAME}`, without quotes, defaults or errors. An unset variable is empty.
pub fn expand(text: &[u8], variable: &dyn Fn(&[u8]) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.iter().position(|&byte| byte == b'$') {
        out.extend_from_slice(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        let brace = rest.first() == Some(&b'{');
        rest = &rest[usize::from(brace)..];
        let length = rest
            .iter()
            .position(|&b| !b.is_ascii_alphanumeric() && b != b'_')
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(length);
        if !name.is_empty() {
            out.extend_from_slice(&variable(name).unwrap_or_default());
        }
        rest = if brace { after.strip_prefix(b"}").unwrap_or(after) } else { after };
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests;
