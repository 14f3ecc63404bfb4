//! Cuts a stream of bytes into requests, however the bytes were split or merged in transit.
//!
//! A top-level JSON object or array delimits itself: no newline is needed, and white space between
//! two of them has no meaning. Brackets and strings are counted as the bytes arrive, each byte
//! once. Whether the text between them is JSON is for
//! [`Request::decode`](crate::message::Request::decode) to decide, for each request alone.
//!
//! When the end or the beginning of a request cannot be determined, one [`Frame::Malformed`] comes,
//! and nothing after it: the connection must end. The causes are bytes between two requests that
//! begin none, a bracket that closes one of another kind, a line end inside a string, and more than
//! [`MAX_DEPTH`] levels.
//!
//! A request longer than the cap gives one [`Frame::TooLarge`] when it passes the cap. The rest of
//! it is counted and discarded, and the next request is read. At most the cap is held in memory.
//!
//! A long request is never parsed in one step, which would take a millisecond per mebibyte. The
//! reader notes the place of its longest value in brackets, and the elements of that are parsed
//! later ([`Text`]).

use std::mem;
use std::ops::{Deref, Range};

use memchr::memchr3;

use crate::error::{ErrorCode, RpcError};

/// How deeply objects and arrays may nest. The open brackets are the bits of one `u64`, and no
/// request of this protocol needs more than four.
pub const MAX_DEPTH: u32 = 64;

/// How many bytes of JSON are parsed in one step. Longer text is parsed in parts, or refused.
pub(crate) const AT_ONCE: usize = 16 * 1024;

/// The text of a request: one object or array with balanced brackets, without white space around
/// it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    bytes: Vec<u8>,
    /// The place of the longest value in brackets among the members, if it is too long to parse in
    /// one step; empty if there is none.
    pub(crate) large: Range<usize>,
}

impl Deref for Text {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A text that is already complete.
impl<T: Into<Vec<u8>>> From<T> for Text {
    fn from(bytes: T) -> Self {
        let (bytes, mut nesting) = (bytes.into(), Nesting::default());
        if matches!(bytes.first(), Some(b'{' | b'[')) {
            let _ = nesting.advance(&bytes);
        }
        Self { bytes, large: nesting.large }
    }
}

/// A part of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A request.
    Request(Text),
    /// The stream cannot be cut any further: nothing follows, and the connection must end.
    Malformed {
        /// What is wrong with the byte.
        reason: Reason,
        /// The place of the byte in the request, from 0.
        at: u64,
    },
    /// A request longer than the cap; it has been or will be skipped.
    TooLarge,
}

impl Frame {
    /// Approximate memory size, in bytes.
    pub fn memory(&self) -> usize {
        let text = if let Self::Request(text) = self { text.bytes.capacity() } else { 0 };
        text + size_of::<Self>() + 16
    }

    /// Whether the connection must end once this has been answered.
    pub fn ends_connection(&self) -> bool {
        matches!(self, Self::Malformed { .. })
    }

    /// The error for a frame that is not a request, from a server that takes requests of `cap`
    /// bytes.
    pub fn refusal(&self, cap: usize) -> RpcError {
        match self {
            Self::TooLarge => {
                let message = format!("the request is longer than {cap} bytes");
                RpcError::new(ErrorCode::TOO_LARGE, message)
                    .with_hint("split it, or ask for a range of ports as one element")
            }
            Self::Malformed { reason, at } => {
                let message =
                    format!("not JSON at byte {at}: {reason}; the connection is closed now");
                RpcError::new(ErrorCode::PARSE, message)
                    .with_hint("a request is one JSON object; docs/protocol.md has examples")
            }
            Self::Request(_) => RpcError::new(ErrorCode::INVALID_REQUEST, "not a request"),
        }
    }
}

/// Why a byte is not allowed where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// A request begins with `{` (or `[`, which is answered as invalid).
    #[error("a request begins with `{{`")]
    ExpectedObject,
    /// A bracket closes one of another kind.
    #[error("this bracket does not close the one that is open")]
    WrongBracket,
    /// A line end inside a string: most likely the request was cut off.
    #[error("a line end inside a string")]
    LineEndInString,
    /// More than [`MAX_DEPTH`] levels.
    #[error("nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
}

/// The reader of one connection.
#[derive(Debug)]
pub struct Scanner {
    cap: usize,
    state: State,
    /// The request in progress, unless it is too large.
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum State {
    /// Between requests.
    Between,
    /// In a request.
    Within(Nesting),
    /// After a [`Frame::Malformed`].
    Lost,
}

impl Scanner {
    /// A reader that holds at most `cap` bytes of one request.
    pub fn new(cap: usize) -> Self {
        Self { cap, state: State::Between, buffer: Vec::new() }
    }

    /// The longest request that it accepts, in bytes.
    pub fn cap(&self) -> usize {
        self.cap
    }

    /// Forgets what has been read.
    pub fn clear(&mut self) {
        *self = Self::new(self.cap);
    }

    /// Whether a request has begun and is not complete. A server sets a deadline for it, and tells
    /// a client that stops in the middle.
    pub fn in_progress(&self) -> bool {
        matches!(self.state, State::Within(_))
    }

    /// How many bytes of memory the unfinished request takes.
    pub fn kept(&self) -> usize {
        self.buffer.capacity()
    }

    /// The bytes of the unfinished request, for another reader to read again; empty between
    /// requests. `None` in a request that is too large, and when the connection must end.
    pub fn unread(&self) -> Option<&[u8]> {
        match &self.state {
            State::Between => Some(&[]),
            State::Within(nesting) if nesting.bytes <= self.cap => Some(&self.buffer),
            State::Within(_) | State::Lost => None,
        }
    }

    /// Reads `input` up to the end of the next frame, and advances it past that. `None` means that
    /// all of `input` was taken and more must come.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Frame> {
        loop {
            match &mut self.state {
                State::Lost => {
                    *input = &[];
                    return None;
                }
                State::Between => {
                    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
                    let blanks = input.iter().take_while(|byte| blank(byte)).count();
                    *input = &input[blanks..];
                    match input.first()? {
                        b'{' | b'[' => self.state = State::Within(Nesting::default()),
                        _ => return Some(self.lose(Reason::ExpectedObject, 0)),
                    }
                }
                State::Within(_) if input.is_empty() => return None,
                State::Within(nesting) => {
                    let fitted = nesting.bytes <= self.cap;
                    // Up to the first byte over the cap, so the result does not depend on how the
                    // stream is split.
                    let room = if fitted {
                        (self.cap - nesting.bytes).saturating_add(1)
                    } else {
                        input.len()
                    };
                    let step = nesting.advance(&input[..room.min(input.len())]);
                    let (Ok((count, _)) | Err((count, _))) = step;
                    let (taken, rest) = input.split_at(count);
                    *input = rest;
                    nesting.bytes = nesting.bytes.saturating_add(count);
                    let (bytes, fits) = (nesting.bytes, nesting.bytes <= self.cap);
                    if fits {
                        self.buffer.extend_from_slice(taken);
                    } else {
                        self.buffer = Vec::new();
                    }
                    let large = nesting.large.clone();
                    match step {
                        Err((_, reason)) => return Some(self.lose(reason, bytes as u64)),
                        Ok((_, true)) => self.state = State::Between,
                        Ok((_, false)) => {}
                    }
                    if fitted && !fits {
                        return Some(Frame::TooLarge);
                    }
                    if fits && matches!(self.state, State::Between) {
                        let bytes = mem::take(&mut self.buffer);
                        return Some(Frame::Request(Text { bytes, large }));
                    }
                }
            }
        }
    }

    fn lose(&mut self, reason: Reason, at: u64) -> Frame {
        self.state = State::Lost;
        self.buffer = Vec::new();
        Frame::Malformed { reason, at }
    }
}

/// The position in the brackets and strings of a request.
#[derive(Debug, Default)]
struct Nesting {
    /// One bit for each open bracket, the innermost in the lowest bit; 1 is an object.
    open: u64,
    depth: u32,
    in_string: bool,
    /// After a backslash in a string.
    escaped: bool,
    /// Bytes of the request so far.
    bytes: usize,
    /// The beginning of the latest value in brackets that is a member.
    begun: usize,
    /// [`Text::large`] of the values that are complete.
    large: Range<usize>,
}

impl Nesting {
    /// Takes bytes until the outermost bracket closes, a byte is not allowed, or none is left.
    /// Returns how many were taken, and whether the request is complete, or why the next byte is
    /// not allowed.
    fn advance(&mut self, bytes: &[u8]) -> Result<(usize, bool), (usize, Reason)> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if self.in_string && mem::take(&mut self.escaped) {
                // The escaped byte has no meaning here.
            } else if self.in_string {
                let Some(found) = memchr3(b'"', b'\\', b'\n', &bytes[at..]) else { break };
                at += found;
                match bytes[at] {
                    b'"' => self.in_string = false,
                    b'\\' => self.escaped = true,
                    _ => return Err((at, Reason::LineEndInString)),
                }
            } else {
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' if self.depth == MAX_DEPTH => return Err((at, Reason::TooDeep)),
                    b'{' | b'[' => {
                        self.open = self.open << 1 | u64::from(*byte == b'{');
                        self.depth += 1;
                        if self.depth == 2 {
                            self.begun = self.bytes + at;
                        }
                    }
                    b'}' | b']' if (self.open & 1 == 1) != (*byte == b'}') => {
                        return Err((at, Reason::WrongBracket));
                    }
                    b'}' | b']' => {
                        self.open >>= 1;
                        self.depth -= 1;
                        if self.depth == 0 {
                            return Ok((at + 1, true));
                        }
                        let value = self.begun..self.bytes.saturating_add(at + 1);
                        let longest = value.len() > self.large.len().max(AT_ONCE);
                        if self.depth == 1 && longest {
                            self.large = value;
                        }
                    }
                    _ => {}
                }
            }
            at += 1;
        }
        Ok((bytes.len(), false))
    }
}
