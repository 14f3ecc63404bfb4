//! A JSON grammar that reads one byte at a time and needs no memory but itself.
//!
//! It accepts exactly the objects and arrays that `serde_json` parses into a
//! `Value`: strict grammar, strict UTF-8, no lone surrogate escapes. There are
//! two differences, both on purpose: nesting is limited to [`MAX_DEPTH`], and a number
//! too large for an `f64` is left to the parser, because the grammar does not forbid it.

use super::Reason;

/// How deeply objects and arrays may nest. The open brackets are the bits of
/// one `u64`; no request of this protocol needs more than four.
pub(super) const MAX_DEPTH: u32 = 64;

/// What comes after the first letter of `true`, `false` and `null`, each up to a 0.
const REST: &[u8; 13] = b"rue\0alse\0ull\0";

/// What came of a slice of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All bytes were taken and more must come.
    More,
    /// The top-level value is complete; the count includes its last byte.
    Done,
    /// The byte after the count cannot stand there.
    Offence(Reason),
}

/// One top-level object or array in progress.
#[derive(Debug, Clone)]
pub(super) struct Validator {
    state: State,
    /// One bit for each open bracket, the innermost lowest; 1 is an object.
    stack: u64,
    depth: u32,
    /// The string in progress is a key.
    key: bool,
    /// Bytes taken so far.
    taken: u64,
    /// Position of the first byte of the current line.
    line: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing yet.
    Start,
    /// A value must come.
    Value,
    /// After `[`: a value or `]`.
    ValueOrEnd,
    /// After a comma in an object: a key.
    Key,
    /// After `{`: a key or `}`.
    KeyOrEnd,
    Colon,
    /// After a value: a comma or the closing bracket.
    After,
    Text,
    Escape,
    /// In `\uXXXX`: digits still to come and the value so far.
    Hex {
        left: u8,
        value: u16,
    },
    /// After a leading surrogate: its `\`, then its `u`, then its digits.
    PairBackslash,
    PairU,
    PairHex {
        left: u8,
        value: u16,
    },
    /// Inside a multi-byte character: bytes still to come, bounds of the next.
    Utf8 {
        left: u8,
        low: u8,
        high: u8,
    },
    /// Inside `true`, `false` or `null`: which byte of [`REST`] must come.
    Literal(u8),
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl Validator {
    pub(super) fn new() -> Self {
        Self { state: State::Start, stack: 0, depth: 0, key: false, taken: 0, line: 0 }
    }

    /// Bytes taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Position, in this value, of the first byte of the line that is being read.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// How many brackets are open that are of the outermost one's kind.
    pub(super) fn open_like_outermost(&self) -> u32 {
        if self.depth == 0 {
            return 0;
        }
        let objects = self.stack.count_ones();
        if self.outermost_is_object() { objects } else { self.depth - objects }
    }

    /// Whether the value began with `{`.
    pub(super) fn outermost_is_object(&self) -> bool {
        self.depth > 0 && self.stack >> (self.depth - 1) & 1 == 1
    }

    /// Takes bytes until the value is complete, a byte offends or none is left;
    /// says how many were taken.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> (usize, Outcome) {
        let mut at = 0;
        while at < bytes.len() {
            if matches!(self.state, State::Text) {
                // Most bytes of a request are plain text in strings.
                let plain = plain_prefix(&bytes[at..]);
                at += plain;
                self.taken += plain as u64;
                if at == bytes.len() {
                    break;
                }
            }
            match self.step(bytes[at]) {
                Ok(()) => {}
                Err(reason) => return (at, Outcome::Offence(reason)),
            }
            at += 1;
            self.taken += 1;
            if bytes[at - 1] == b'\n' {
                self.line = self.taken;
            }
            if self.depth == 0 {
                return (at, Outcome::Done);
            }
        }
        (at, Outcome::More)
    }

    fn step(&mut self, byte: u8) -> Result<(), Reason> {
        self.state = match self.state {
            State::Start => self.open(byte)?,
            State::Value
            | State::ValueOrEnd
            | State::Key
            | State::KeyOrEnd
            | State::Colon
            | State::After
                if super::is_blank(byte) =>
            {
                self.state
            }
            State::ValueOrEnd if byte == b']' => self.close(),
            State::Value | State::ValueOrEnd => self.begin_value(byte)?,
            State::KeyOrEnd if byte == b'}' => self.close(),
            State::Key | State::KeyOrEnd if byte == b'"' => {
                self.key = true;
                State::Text
            }
            State::Key | State::KeyOrEnd => return Err(Reason::ExpectedKey),
            State::Colon if byte == b':' => State::Value,
            State::Colon => return Err(Reason::ExpectedColon),
            State::After => self.after(byte)?,
            State::Text
            | State::Escape
            | State::Hex { .. }
            | State::PairBackslash
            | State::PairU
            | State::PairHex { .. }
            | State::Utf8 { .. } => self.text(byte)?,
            State::Literal(at) if byte == REST[usize::from(at)] => {
                let ended = REST[usize::from(at) + 1] == 0;
                if ended { State::After } else { State::Literal(at + 1) }
            }
            State::Literal(_) => return Err(Reason::InvalidLiteral),
            State::Minus
            | State::Zero
            | State::Integer
            | State::Point
            | State::Fraction
            | State::Exponent
            | State::ExponentSign
            | State::ExponentDigits => self.number(byte)?,
        };
        Ok(())
    }

    fn open(&mut self, byte: u8) -> Result<State, Reason> {
        if self.depth == MAX_DEPTH {
            return Err(Reason::TooDeep);
        }
        let object = byte == b'{';
        self.stack = self.stack << 1 | u64::from(object);
        self.depth += 1;
        Ok(if object { State::KeyOrEnd } else { State::ValueOrEnd })
    }

    fn close(&mut self) -> State {
        self.stack >>= 1;
        self.depth -= 1;
        State::After
    }

    fn begin_value(&mut self, byte: u8) -> Result<State, Reason> {
        Ok(match byte {
            b'{' | b'[' => self.open(byte)?,
            b'"' => {
                self.key = false;
                State::Text
            }
            b't' => State::Literal(0),
            b'f' => State::Literal(4),
            b'n' => State::Literal(9),
            b'-' => State::Minus,
            b'0' => State::Zero,
            b'1'..=b'9' => State::Integer,
            _ => return Err(Reason::ExpectedValue),
        })
    }

    fn after(&mut self, byte: u8) -> Result<State, Reason> {
        let object = self.stack & 1 == 1;
        match (byte, object) {
            (b',', true) => Ok(State::Key),
            (b',', false) => Ok(State::Value),
            (b'}', true) | (b']', false) => Ok(self.close()),
            _ => Err(Reason::ExpectedCommaOrEnd),
        }
    }

    fn text(&self, byte: u8) -> Result<State, Reason> {
        Ok(match self.state {
            State::Escape => match byte {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => State::Text,
                b'u' => State::Hex { left: 4, value: 0 },
                _ => return Err(Reason::InvalidEscape),
            },
            State::Hex { left, value } => match (left, push_digit(value, byte)?) {
                (1, 0xD800..=0xDBFF) => State::PairBackslash,
                (1, 0xDC00..=0xDFFF) => return Err(Reason::InvalidEscape),
                (1, _) => State::Text,
                (left, value) => State::Hex { left: left - 1, value },
            },
            State::PairBackslash if byte == b'\\' => State::PairU,
            State::PairU if byte == b'u' => State::PairHex { left: 4, value: 0 },
            State::PairBackslash | State::PairU => return Err(Reason::InvalidEscape),
            State::PairHex { left, value } => match (left, push_digit(value, byte)?) {
                (1, 0xDC00..=0xDFFF) => State::Text,
                (1, _) => return Err(Reason::InvalidEscape),
                (left, value) => State::PairHex { left: left - 1, value },
            },
            State::Utf8 { left, low, high } => {
                if !(low..=high).contains(&byte) {
                    return Err(Reason::InvalidUtf8);
                }
                match left {
                    1 => State::Text,
                    left => State::Utf8 { left: left - 1, low: 0x80, high: 0xBF },
                }
            }
            _ => match byte {
                b'"' if self.key => State::Colon,
                b'"' => State::After,
                b'\\' => State::Escape,
                0..=0x1F => return Err(Reason::ControlCharacter),
                0x20..=0x7F => State::Text,
                // The well-formed sequences of the Unicode standard, table 3-7.
                0xC2..=0xDF => State::Utf8 { left: 1, low: 0x80, high: 0xBF },
                0xE0 => State::Utf8 { left: 2, low: 0xA0, high: 0xBF },
                0xED => State::Utf8 { left: 2, low: 0x80, high: 0x9F },
                0xE1..=0xEF => State::Utf8 { left: 2, low: 0x80, high: 0xBF },
                0xF0 => State::Utf8 { left: 3, low: 0x90, high: 0xBF },
                0xF4 => State::Utf8 { left: 3, low: 0x80, high: 0x8F },
                0xF1..=0xF3 => State::Utf8 { left: 3, low: 0x80, high: 0xBF },
                _ => return Err(Reason::InvalidUtf8),
            },
        })
    }

    /// A number ends at the first byte that is not part of it, so that byte is
    /// looked at twice.
    fn number(&mut self, byte: u8) -> Result<State, Reason> {
        Ok(match (self.state, byte) {
            (State::Minus, b'0') => State::Zero,
            (State::Minus, b'1'..=b'9') | (State::Integer, b'0'..=b'9') => State::Integer,
            (State::Zero | State::Integer, b'.') => State::Point,
            (State::Point | State::Fraction, b'0'..=b'9') => State::Fraction,
            (State::Zero | State::Integer | State::Fraction, b'e' | b'E') => State::Exponent,
            (State::Exponent, b'+' | b'-') => State::ExponentSign,
            (State::Exponent | State::ExponentSign | State::ExponentDigits, b'0'..=b'9') => {
                State::ExponentDigits
            }
            (State::Zero, b'0'..=b'9') => return Err(Reason::InvalidNumber),
            (State::Zero | State::Integer | State::Fraction | State::ExponentDigits, byte) => {
                if super::is_blank(byte) {
                    State::After
                } else {
                    self.after(byte)?
                }
            }
            _ => return Err(Reason::InvalidNumber),
        })
    }
}

/// How many bytes at the front are plain text in a string. Eight at a time: this
/// is where a server spends its time on a long request.
fn plain_prefix(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // The highest bit of the first byte that is zero is set; of those before it, none.
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let mut count = 0;
    for eight in bytes.chunks_exact(8) {
        let Ok(eight) = eight.try_into() else { break };
        let word = u64::from_le_bytes(eight);
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let quote = zero(word ^ (ONES * u64::from(b'"')));
        let backslash = zero(word ^ (ONES * u64::from(b'\\')));
        let special = control | quote | backslash | (word & HIGH);
        if special != 0 {
            return count + special.trailing_zeros() as usize / 8;
        }
        count += 8;
    }
    count + bytes[count..].iter().take_while(|byte| is_plain(**byte)).count()
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7F) && byte != b'"' && byte != b'\\'
}

fn push_digit(value: u16, byte: u8) -> Result<u16, Reason> {
    let digit = (byte as char).to_digit(16).ok_or(Reason::InvalidEscape)?;
    Ok(value << 4 | digit as u16)
}
