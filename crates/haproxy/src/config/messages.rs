//! Translates haproxy's messages about the copies into messages about the user's files.
//!
//! A copy has the same lines as the user's file, with `fd@NUMBER` in place of an address. The
//! translation puts back the path, the address and, where haproxy quotes a line with a mark under
//! one byte, the user's line with the mark at the right byte. Everything else stays the same.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;

use super::reader::{self, find};
use super::rendering::{Binding, Change, RenderedFile, Rendering};
use super::{PathMap, Place, reread};

/// Number of bytes of a line that haproxy quotes.
const WIDTH: usize = 80;

/// Translates the output of one haproxy, line by line.
#[derive(Debug, Clone, Default)]
pub struct Messages {
    rendering: Rc<Rendering>,
    /// The paths of the copies, in the order of the rendering's files.
    copies: Vec<Vec<u8>>,
    paths: PathMap,
    /// Descriptor number of the first binding; the others follow in sequence.
    first: RawFd,
    quoting: Option<Quoting>,
}

/// An expected quoted line: haproxy's text, and the replacement.
#[derive(Debug, Clone)]
struct Quoting {
    line: Option<(Vec<u8>, Vec<u8>)>,
    mark: (usize, usize),
}

impl Messages {
    /// For a haproxy that was started on `copies` of the rendering's files, where the
    /// descriptor of `bindings[i]` has the number `first + i`.
    pub fn new(rendering: Rc<Rendering>, copies: &[PathBuf], first: RawFd) -> Self {
        let users = rendering.files.iter().map(|file| file.user_path.clone());
        let paths = PathMap::new(copies.iter().cloned().zip(users));
        let copies = copies.iter().map(|path| path.as_os_str().as_encoded_bytes().to_vec());
        Self { copies: copies.collect(), rendering, paths, first, quoting: None }
    }

    /// The line (with its line feed, if it has one) rewritten for the user's files.
    pub fn of_the_user(&mut self, line: &[u8]) -> Vec<u8> {
        if let Some(quoting) = self.quoting.take()
            && let Some((text, next)) = quoting.take(line)
        {
            self.quoting = next;
            return text;
        }
        let changed = self.changed_line(line);
        let line = match &changed {
            Some(changed) => {
                let (line, quoting) = changed.head(line);
                self.quoting = quoting;
                line
            }
            None => line.to_vec(),
        };
        self.addresses(&self.paths.user_place(&line), changed.as_ref())
    }

    /// Replaces descriptors by addresses. A message puts a descriptor in quotes, with `bind` before
    /// or inside them; without `bind` only where the message is about that line.
    fn addresses(&self, line: &[u8], changed: Option<&ChangedLine>) -> Vec<u8> {
        let mut out = Vec::with_capacity(line.len());
        let mut rest = line;
        while let Some(at) = rest.iter().position(|&byte| matches!(byte, b'\'' | b'[' | b' ')) {
            let (before, from) = rest.split_at(at + 1);
            out.extend_from_slice(before);
            rest = from;
            let named = |bindings: &[&Binding]| {
                let place = bindings.first().map(|binding| &binding.place);
                let about = changed.is_some_and(|changed| place == Some(&changed.place));
                let bind = out.ends_with(b"bind ") || out.ends_with(b"bind '");
                bind || about && out.ends_with(b"'")
            };
            if let Some((bindings, length)) = self.list(from)
                && named(&bindings)
            {
                let texts: Vec<_> =
                    bindings.iter().map(|binding| binding.text.as_bytes()).collect();
                out.extend(texts.join(&b','));
                rest = &from[length..];
            } else if out.ends_with(b"[")
                && let Some((binding, length)) = self.number(from, b"fd ")
                && from[length..].starts_with(b"]")
            {
                out.extend_from_slice(binding.text.as_bytes());
                rest = &from[length..];
            }
        }
        out.extend_from_slice(rest);
        out
    }

    /// The bindings of `fd@4,fd@5,...` (`quic+fd@4,...`) at the beginning of `text`, and the length
    /// of that list. A range of ports counts as one of the user's addresses.
    fn list(&self, text: &[u8]) -> Option<(Vec<&Binding>, usize)> {
        let mut bindings: Vec<&Binding> = Vec::new();
        let mut at = 0;
        loop {
            let quic = if text[at..].starts_with(b"quic+") { b"quic+".len() } else { 0 };
            let (binding, length) = self.number(&text[at + quic..], b"fd@")?;
            at += quic + length;
            let same = |last: &&Binding| last.place == binding.place && last.text == binding.text;
            if !bindings.last().is_some_and(same) {
                bindings.push(binding);
            }
            match text.get(at) {
                Some(b',') => at += 1,
                Some(b'\'' | b' ' | b']' | b')' | b'\n' | b'.') | None => {
                    return Some((bindings, at));
                }
                Some(_) => return None,
            }
        }
    }

    /// The binding whose descriptor number follows `before` at the beginning of `text`, and the
    /// length of both.
    fn number(&self, text: &[u8], before: &[u8]) -> Option<(&Binding, usize)> {
        let digits = text.strip_prefix(before)?;
        let (number, length) = read_number::<RawFd>(digits)?;
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        Some((self.rendering.bindings.get(index)?, before.len() + length))
    }

    /// The line of a copy that a message is about, if it differs from the user's.
    fn changed_line(&self, message: &[u8]) -> Option<ChangedLine> {
        let mut found: Option<(usize, &RenderedFile, usize)> = None;
        for (file, copy) in self.rendering.files.iter().zip(&self.copies) {
            let start = [b"[", copy.as_slice(), b":"].concat();
            let Some(at) = find(message, &start) else { continue };
            let digits = &message[at + start.len()..];
            let (number, length) = read_number::<usize>(digits)?;
            if digits.get(length) == Some(&b']') && found.is_none_or(|(first, ..)| at < first) {
                found = Some((at, file, number));
            }
        }
        let (_, file, number) = found?;
        let mut line = ChangedLine::of(file, number)?;
        line.grown = self.grown(&line.place);
        Some(line)
    }

    /// The length of the line's address less the length of the descriptors in its place, in bytes
    /// without quotes.
    fn grown(&self, place: &Place) -> isize {
        let mut sum = 0;
        let mut last: Option<&Binding> = None;
        for (binding, number) in self.rendering.bindings.iter().zip(self.first..) {
            if binding.place != *place {
                continue;
            }
            let same = last.is_some_and(|last| last.text == binding.text);
            let text = if same { 0 } else { binding.text.len() };
            sum += text.cast_signed()
                - format!("{}{number}", binding.prefix()).len().cast_signed()
                - isize::from(same);
            last = Some(binding);
        }
        sum
    }
}

impl Quoting {
    /// The text to print for a line of haproxy's output, if it is the expected one.
    fn take(self, line: &[u8]) -> Option<(Vec<u8>, Option<Self>)> {
        let text = line.strip_suffix(b"\n").unwrap_or(line).strip_prefix(b"  ")?;
        let Some((copy, users)) = self.line else {
            let spaces = self.mark.0;
            let mark = text.strip_suffix(b"^")?;
            return (mark.len() == spaces && mark.iter().all(|&byte| byte == b' '))
                .then(|| ([b"  ".as_slice(), &vec![b' '; self.mark.1], b"^\n"].concat(), None));
        };
        (text == copy).then(|| {
            let next = Self { line: None, mark: self.mark };
            ([b"  ".as_slice(), &users, b"\n"].concat(), Some(next))
        })
    }
}

/// A line that differs between a copy and the user's file.
struct ChangedLine {
    place: Place,
    copy: Vec<u8>,
    users: Vec<u8>,
    /// The changes of this line, with ranges from its start.
    changes: Vec<Change>,
    grown: isize,
}

impl ChangedLine {
    fn of(file: &RenderedFile, number: usize) -> Option<Self> {
        let range = reader::lines(&file.text).nth(number.checked_sub(1)?)?;
        let copy = file.text[range.clone()].to_vec();
        let inside =
            |change: &&Change| range.start <= change.range.start && change.range.end <= range.end;
        let changes: Vec<Change> = file
            .changes
            .iter()
            .filter(inside)
            .map(|change| Change {
                range: change.range.start - range.start..change.range.end - range.start,
                was: change.was.clone(),
            })
            .collect();
        if changes.is_empty() {
            return None;
        }
        let users = reread::before(&copy, &changes);
        let place = Place { file: file.user_path.clone(), line: number };
        Some(Self { place, copy, users, changes, grown: 0 })
    }

    /// Position in the user's line of a byte of the copy.
    fn users_byte(&self, at: usize) -> usize {
        let mut shift = 0;
        for change in &self.changes {
            if at < change.range.start {
                break;
            }
            if at < change.range.end {
                let inside = (at - change.range.start).min(change.was.len().saturating_sub(1));
                return (change.range.start + inside).saturating_add_signed(shift);
            }
            shift += change.was.len().cast_signed() - change.range.len().cast_signed();
        }
        at.saturating_add_signed(shift)
    }

    /// The first line of a message about this line, with its position corrected, and the
    /// translation of the quote that may follow.
    fn head(&self, message: &[u8]) -> (Vec<u8>, Option<Quoting>) {
        const POSITION: &[u8] = b" position ";
        let unchanged = || (message.to_vec(), None);
        let Some(at) = find(message, POSITION).map(|at| at + POSITION.len()) else {
            return unchanged();
        };
        let Some((number @ 1.., digits)) = read_number::<usize>(&message[at..]) else {
            return unchanged();
        };
        let stated = number - 1;
        let (position, quoting) = if find(message, b"too many words").is_some() {
            // This message counts positions in the line without quotes and with variables expanded.
            (stated.saturating_add_signed(self.grown), None)
        } else {
            let position = self.argument(message).unwrap_or_else(|| self.users_byte(stated));
            (position, self.quoting(stated, position))
        };
        let number = (position + 1).to_string();
        ([&message[..at], number.as_bytes(), &message[at + digits..]].concat(), quoting)
    }

    /// The start of the word of "argument number N". haproxy's position is inexact for an empty
    /// word after a quoted one, and the copy quotes its address words.
    fn argument(&self, message: &[u8]) -> Option<usize> {
        const NUMBER: &[u8] = b"argument number ";
        let text = &message[find(message, NUMBER)? + NUMBER.len()..];
        let (number, _) = read_number::<usize>(text)?;
        // Only the start of each word matters, not its content.
        let words =
            reader::words(&self.users, reader::Unset::default(), &|_| Some(b"x".to_vec())).ok()?;
        words.get(number).map(|word| word.source.start)
    }

    fn quoting(&self, stated: usize, position: usize) -> Option<Quoting> {
        let (copy, before) = excerpt(&self.copy, stated)?;
        let (users, after) = excerpt(&self.users, position)?;
        Some(Quoting { line: Some((copy, users)), mark: (before, after) })
    }
}

/// The number at the beginning of a text, and its length in digits.
fn read_number<T: FromStr>(text: &[u8]) -> Option<(T, usize)> {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    Some((std::str::from_utf8(&text[..length]).ok()?.parse().ok()?, length))
}

/// The excerpt that haproxy quotes of a line to mark one byte, and the position of the mark in it:
/// 80 bytes at most, with dots for omitted text.
fn excerpt(line: &[u8], position: usize) -> Option<(Vec<u8>, usize)> {
    let indent = line.iter().take_while(|byte| matches!(byte, b' ' | b'\t'..=b'\r')).count();
    let line = &line[indent..];
    let position = position.checked_sub(indent)?;
    let plain = |&byte: &u8| match byte {
        b' ' | b'\t'..=b'\r' => b' ',
        b'!'..=b'~' => byte,
        _ => b'?',
    };
    if position < WIDTH {
        return Some((line.iter().take(WIDTH).map(plain).collect(), position));
    }
    let left_out = position - WIDTH / 2;
    let shown = line.get(left_out + 3..)?.iter().take(WIDTH - 6).map(plain);
    let text = b"...".iter().copied().chain(shown).chain(*b"...").collect();
    Some((text, WIDTH / 2))
}
