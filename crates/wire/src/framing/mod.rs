//! Cuts a stream of bytes into requests, however the bytes were split or merged
//! on their way.
//!
//! A top-level JSON object or array delimits itself; no newline is needed, and
//! white space between two of them means nothing. The text is checked against
//! the grammar byte by byte as it comes, so a mistake is known at the byte where
//! it happens and not when a buffer is full or a timer fires.
//!
//! What a bad request costs is one [`Frame::Malformed`] and nothing of its
//! neighbours. Reading goes on
//!  - where its outermost brackets, counted without regard to strings, are
//!    balanced again, or at the end of the line, whichever comes first;
//!  - at the start of the offending byte's line, if the request began on an
//!    earlier line and this one begins with `{`: the client gave up and began anew;
//!  - if the request began on an earlier line and this one does not begin with
//!    `{`, at the end of the request's brackets or the next line that begins with `{`.
//!
//! Bytes between requests that begin none are skipped up to the end of the line or the
//! next `{`, and cost one [`Frame::Malformed`] as well. So a good request
//! on a line of its own is seen whatever came before it, with one exception that no
//! reader can avoid: what is merely cut off cannot be told from what continues on the next line.
//!
//! A request longer than the cap gives one [`Frame::TooLarge`] when it passes
//! the cap; the rest is checked and thrown away. At most the cap is ever held, and
//! every byte is looked at no more than twice.

mod validator;

use std::fmt;
use std::mem;

use validator::{Outcome, Validator};

/// What the stream contained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// One complete JSON object or array, without white space around it.
    Request(Vec<u8>),
    /// Something that is not JSON; it has been or will be skipped.
    Malformed {
        /// What is wrong with the byte.
        reason: Reason,
        /// The byte's place, counted from the first byte of the request, from 0.
        at: u64,
    },
    /// A request that is longer than the cap; it has been or will be skipped.
    TooLarge,
}

impl Frame {
    /// How much memory it takes, about.
    pub fn memory(&self) -> usize {
        let text = if let Self::Request(text) = self { text.capacity() } else { 0 };
        text + size_of::<Self>() + 16
    }
}

/// Why a byte cannot stand where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A request begins with `{` (or `[`, which is answered as invalid).
    ExpectedObject,
    /// A value was expected.
    ExpectedValue,
    /// A key, in double quotes, was expected.
    ExpectedKey,
    /// A colon was expected after a key.
    ExpectedColon,
    /// A comma or the closing bracket was expected after a value.
    ExpectedCommaOrEnd,
    /// Not `true`, `false` or `null`.
    InvalidLiteral,
    /// Not a number in JSON's grammar.
    InvalidNumber,
    /// Not an escape sequence of JSON, or half a surrogate pair.
    InvalidEscape,
    /// A control character, for example a line end, in a string.
    ControlCharacter,
    /// Not UTF-8.
    InvalidUtf8,
    /// Nested more than 64 levels deep.
    TooDeep,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ExpectedObject => "a request begins with `{`",
            Self::ExpectedValue => "expected a value",
            Self::ExpectedKey => "expected a key in double quotes",
            Self::ExpectedColon => "expected a colon after the key",
            Self::ExpectedCommaOrEnd => "expected a comma or the closing bracket",
            Self::InvalidLiteral => "expected true, false or null",
            Self::InvalidNumber => "not a number",
            Self::InvalidEscape => "not an escape sequence, or half a surrogate pair",
            Self::ControlCharacter => "a control character or line end inside a string",
            Self::InvalidUtf8 => "not UTF-8",
            Self::TooDeep => "nested more than 64 levels deep",
        })
    }
}

/// The reader of one connection.
#[derive(Debug)]
pub struct Scanner {
    cap: usize,
    mode: Mode,
    /// The request in progress; of one that is too large, only its current line.
    buffer: Vec<u8>,
    /// Bytes that are read a second time, from `replayed` on, before any new ones.
    replay: Vec<u8>,
    replayed: usize,
    /// Bytes of the stream that lie behind the reader.
    offset: u64,
    /// The last offending byte that was reported: a second reading of its line
    /// does not report it again.
    reported: Option<u64>,
}

#[derive(Debug)]
enum Mode {
    /// Between requests.
    Idle,
    /// Inside a request.
    Request { validator: Validator, too_large: bool },
    /// Inside a bad request, at this balance of its outermost kind of bracket.
    Bad { open: u8, balance: u32, lines: Lines },
    /// After a bad request or other bytes that begin none, on the same line.
    Garbage,
}

/// How a line end bears on a bad request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lines {
    /// It was on one line so far, so it ends with the line.
    Single,
    /// It has several lines, and this one belongs to it.
    Within,
    /// It has several lines, and a new one has just begun.
    Fresh,
}

impl Scanner {
    /// A reader that holds at most `cap` bytes of one request.
    pub fn new(cap: usize) -> Self {
        Self {
            cap,
            mode: Mode::Idle,
            buffer: Vec::new(),
            replay: Vec::new(),
            replayed: 0,
            offset: 0,
            reported: None,
        }
    }

    /// Whether a request has begun and is not complete. A server gives it a
    /// deadline, so that a client that stops in the middle is told so.
    pub fn in_progress(&self) -> bool {
        matches!(self.mode, Mode::Request { .. })
    }

    /// How many bytes of memory it keeps of what has been read.
    pub fn kept(&self) -> usize {
        self.buffer.capacity() + self.replay.capacity()
    }

    /// The bytes of the request that has begun, to be read anew by another reader; empty
    /// between requests. `None` in the middle of what is no good request: what follows means
    /// something to this reader only.
    pub fn unread(&self) -> Option<&[u8]> {
        match self.mode {
            _ if !self.replay.is_empty() => None,
            Mode::Idle => Some(&[]),
            Mode::Request { too_large: false, .. } => Some(&self.buffer),
            Mode::Request { .. } | Mode::Bad { .. } | Mode::Garbage => None,
        }
    }

    /// Reads from the front of `input` up to the end of the next frame and takes
    /// what was read off it. `None` means that all of `input` has been taken and
    /// more must come. Call it again until then, also with nothing left in
    /// `input`: a frame may come from bytes that are being read a second time.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Frame> {
        loop {
            let frame = if self.replayed < self.replay.len() {
                let bytes = mem::take(&mut self.replay);
                let mut rest = &bytes[self.replayed..];
                let frame = self.step(&mut rest);
                // A line that is read again holds no line end before the byte that
                // offended, so it cannot itself have been put back for a second time.
                self.replayed = bytes.len() - rest.len();
                self.replay = bytes;
                if self.replayed == self.replay.len() {
                    self.replay = Vec::new();
                    self.replayed = 0;
                }
                frame
            } else if input.is_empty() {
                return None;
            } else {
                self.step(input)
            };
            if frame.is_some() {
                return frame;
            }
        }
    }

    /// One state's worth of `input`, which is not empty.
    fn step(&mut self, input: &mut &[u8]) -> Option<Frame> {
        match &mut self.mode {
            Mode::Idle => {
                let blank = input.iter().take_while(|b| is_blank(**b)).count();
                self.skip(input, blank);
                match input.first()? {
                    b'{' | b'[' => self.begin(),
                    _ => {
                        self.mode = Mode::Garbage;
                        return self.report(Reason::ExpectedObject, 0);
                    }
                }
                None
            }
            Mode::Garbage => {
                let until = input.iter().position(|b| matches!(b, b'{' | b'\n'));
                self.skip(input, until.unwrap_or(input.len()));
                match input.first()? {
                    b'{' => self.begin(),
                    _ => self.mode = Mode::Idle,
                }
                None
            }
            Mode::Bad { open, lines, .. } => {
                let byte = *input.first()?;
                let close = if *open == b'{' { b'}' } else { b']' };
                match (byte, *lines) {
                    (b'\n', Lines::Single) => self.mode = Mode::Idle,
                    (b'\n', _) => *lines = Lines::Fresh,
                    (b'{', Lines::Fresh) => {
                        self.begin();
                        return None;
                    }
                    (byte, Lines::Fresh) if !is_blank(byte) => *lines = Lines::Within,
                    _ => {}
                }
                if let Mode::Bad { open, balance, .. } = &mut self.mode {
                    if byte == *open {
                        *balance += 1;
                    } else if byte == close {
                        *balance = balance.saturating_sub(1);
                        if *balance == 0 {
                            self.mode = Mode::Garbage;
                        }
                    }
                }
                self.skip(input, 1);
                None
            }
            Mode::Request { .. } => self.request(input),
        }
    }

    fn skip(&mut self, input: &mut &[u8], count: usize) {
        *input = &input[count..];
        self.offset += count as u64;
    }

    fn begin(&mut self) {
        self.buffer.clear();
        self.mode = Mode::Request { validator: Validator::new(), too_large: false };
    }

    /// One report for each offending byte, also when its line is read twice.
    fn report(&mut self, reason: Reason, at: u64) -> Option<Frame> {
        if self.reported.is_some_and(|reported| reported >= self.offset) {
            return None;
        }
        self.reported = Some(self.offset);
        Some(Frame::Malformed { reason, at })
    }

    fn request(&mut self, input: &mut &[u8]) -> Option<Frame> {
        let Mode::Request { validator, too_large } = &mut self.mode else {
            return None;
        };
        let (count, outcome) = validator.advance(input);
        let taken = &input[..count];
        let newly_too_large = !*too_large && validator.taken() > self.cap as u64;
        *too_large |= newly_too_large;
        if *too_large {
            keep_line(&mut self.buffer, taken, validator, self.cap);
        } else {
            self.buffer.extend_from_slice(taken);
        }
        let frame = match outcome {
            Outcome::More => None,
            Outcome::Done => {
                let request = mem::take(&mut self.buffer);
                let complete = !*too_large;
                self.mode = Mode::Idle;
                complete.then_some(Frame::Request(request))
            }
            Outcome::Offence(reason) => {
                self.skip(input, count);
                let frame = self.offence(reason);
                return if newly_too_large { Some(Frame::TooLarge) } else { frame };
            }
        };
        self.skip(input, count);
        if newly_too_large { Some(Frame::TooLarge) } else { frame }
    }

    /// Leaves the request whose next byte cannot stand there.
    fn offence(&mut self, reason: Reason) -> Option<Frame> {
        let Mode::Request { validator, too_large } = &self.mode else {
            return None;
        };
        let (too_large, at, several_lines) = (*too_large, validator.taken(), validator.line() > 0);
        let open = if validator.outermost_is_object() { b'{' } else { b'[' };
        let balance = validator.open_like_outermost();
        let of_line = (at - validator.line()) as usize;
        let mut line = mem::take(&mut self.buffer);
        self.mode = Mode::Bad {
            open,
            balance,
            lines: if several_lines { Lines::Within } else { Lines::Single },
        };
        // A request that is too large has had its one answer.
        let frame = if too_large { None } else { self.report(reason, at) };
        if several_lines && line.len() >= of_line {
            line.drain(..line.len() - of_line);
            let blank = line.iter().take_while(|b| is_blank(**b)).count();
            line.drain(..blank);
            match line.first() {
                // The client began anew on this line: read it from there.
                Some(b'{') => {
                    self.offset -= line.len() as u64;
                    self.replay = line;
                    self.replayed = 0;
                    self.begin();
                }
                Some(_) => {}
                // The offending byte itself is the first of its line.
                None => {
                    if let Mode::Bad { lines, .. } = &mut self.mode {
                        *lines = Lines::Fresh;
                    }
                }
            }
        }
        frame
    }
}

/// White space in JSON, which is less than in ASCII.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Of a request that is too large, keeps the current line as long as that fits:
/// it may turn out to be where the client began anew.
fn keep_line(buffer: &mut Vec<u8>, taken: &[u8], validator: &Validator, cap: usize) {
    let length = validator.taken() - validator.line();
    if validator.line() == 0 || length > cap as u64 {
        *buffer = Vec::new();
        return;
    }
    let length = length as usize;
    if length <= taken.len() {
        buffer.clear();
        buffer.extend_from_slice(&taken[taken.len() - length..]);
    } else {
        let before = length - taken.len();
        buffer.drain(..buffer.len().saturating_sub(before));
        buffer.extend_from_slice(taken);
    }
}
