//! Cuts a client's input into commands. A command ends at a `;` or at a line end without a
//! backslash before it. `<<` at the beginning of its last word announces a payload, which ends with
//! an empty line or with the text after the `<<`. A line end may be CR LF, but not in a payload.

/// Longest line in bytes: haproxy's default buffer size (`tune.bufsize`).
pub const LONGEST_LINE: usize = 16 * 1024;

/// Longest command with its payload, in bytes.
pub const LONGEST_REQUEST: usize = 256 * 1024;

/// A longer pattern (in bytes) announces no payload.
const LONGEST_PATTERN: usize = 63;

/// Received bytes that are not yet processed.
#[derive(Debug, Default)]
pub struct Input {
    bytes: Vec<u8>,
    /// Whether the last command was at the end of its line.
    ended_line: bool,
}

/// The next item in the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing until more is received.
    More,
    /// A line longer than [`LONGEST_LINE`].
    TooLong,
    /// A command, without its terminator.
    Command(Vec<u8>),
    /// `@@PREFIX`: the prefix less one `@`, and the rest of the line including the line end.
    Both(String, Vec<u8>),
}

impl Input {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Drops all unprocessed bytes.
    pub fn clear(&mut self) {
        *self = Self { bytes: Vec::new(), ended_line: true };
    }

    /// Takes all unprocessed bytes.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Whether the last command was at the end of its line, and no other line is complete.
    pub fn is_between_lines(&self) -> bool {
        self.ended_line && !self.bytes.contains(&b'\n')
    }

    /// Number of unprocessed bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether all bytes are processed.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next command, once its line is complete. `both`: whether this version knows `@@`.
    pub fn next(&mut self, both: bool) -> Next {
        let Some(line) = self.bytes.iter().position(|&byte| byte == b'\n') else {
            return self.unless_too_long();
        };
        let start = self.bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        if both && self.bytes[start..].starts_with(b"@@") {
            let rest = self.bytes.split_off(line + 1);
            let line = std::mem::replace(&mut self.bytes, rest);
            let word = line[start + 1..].iter().take_while(|byte| !byte.is_ascii_whitespace());
            let word = word.count();
            let prefix = String::from_utf8_lossy(&line[start + 1..start + 1 + word]).into_owned();
            let after = line[start + 1 + word..].trim_ascii_start().to_vec();
            self.ended_line = true;
            return Next::Both(prefix, after);
        }
        let mut at = 0;
        loop {
            match self.bytes.get(at) {
                Some(b'\\') => at += 2,
                Some(b';' | b'\n') => break,
                Some(_) => at += 1,
                None => return self.unless_too_long(),
            }
        }
        if at > LONGEST_LINE {
            return Next::TooLong;
        }
        let rest = self.bytes.split_off(at + 1);
        let mut command = std::mem::replace(&mut self.bytes, rest);
        let end = command.pop();
        // haproxy's CLI ends words at a NUL, so it counts as a space.
        command.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        self.ended_line = end == Some(b'\n');
        if self.ended_line {
            command.pop_if(|byte| *byte == b'\r');
        }
        Next::Command(command)
    }

    /// The next line of a payload, with its line end.
    pub fn payload_line(&mut self) -> Option<Vec<u8>> {
        let end = self.bytes.iter().position(|&byte| byte == b'\n')?;
        let rest = self.bytes.split_off(end + 1);
        Some(std::mem::replace(&mut self.bytes, rest))
    }

    fn unless_too_long(&self) -> Next {
        if self.bytes.len() > LONGEST_LINE { Next::TooLong } else { Next::More }
    }
}

/// The words of a command, each with its offset; a backslash keeps the next byte in its word.
pub(super) fn words(command: &[u8]) -> Vec<(usize, &[u8])> {
    let mut words = Vec::new();
    let mut at = 0;
    while at < command.len() {
        if matches!(command[at], b' ' | b'\t') {
            at += 1;
            continue;
        }
        let start = at;
        while at < command.len() && !matches!(command[at], b' ' | b'\t') {
            at += if command[at] == b'\\' { 2 } else { 1 };
        }
        at = at.min(command.len());
        words.push((start, &command[start..at]));
    }
    words
}

/// The line, without its end, that ends the payload that a command announces; None without a
/// payload. `patterns`: whether the client may choose that line.
pub(super) fn payload(words: &[(usize, &[u8])], patterns: bool) -> Option<Vec<u8>> {
    let (_, last) = words.last()?;
    let pattern = last.strip_prefix(b"<<")?;
    let fits = if patterns { pattern.len() <= LONGEST_PATTERN } else { pattern.is_empty() };
    fits.then(|| pattern.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn commands(text: &str) -> Vec<String> {
        let mut input = Input::default();
        input.push(text.as_bytes());
        let mut found = Vec::new();
        while let Next::Command(command) = input.next(true) {
            found.push(String::from_utf8(command).expect("UTF-8"));
        }
        found
    }

    #[test]
    fn commands_end_at_semicolons_and_lines() {
        assert_eq!(commands("show proc\n"), ["show proc"]);
        assert_eq!(commands("a; b ;c\nd\n"), ["a", " b ", "c", "d"]);
        assert_eq!(
            commands("@1 add acl f Mon\\ User\\;;@1 x\n"),
            [r"@1 add acl f Mon\ User\;", "@1 x"]
        );
        assert_eq!(commands("no end"), Vec::<String>::new());
        assert_eq!(commands("a;b"), Vec::<String>::new());
        assert_eq!(commands("\n;\n"), ["", "", ""]);
        assert_eq!(commands("a\r;b\r\n\r\n"), ["a\r", "b", ""]);
        assert_eq!(commands("\0show\0version;a\\\0b\n"), [" show version", "a\\ b"]);
    }

    #[test]
    fn two_ats_take_their_whole_line() {
        let mut input = Input::default();
        input.push(b"show proc; @@1  show info; show stat\nmore\n");
        assert_eq!(input.next(true), Next::Command(b"show proc".to_vec()));
        assert!(!input.is_between_lines());
        let line = b"show info; show stat\n".to_vec();
        assert_eq!(input.next(true), Next::Both("@1".to_owned(), line));
        assert_eq!(input.take(), b"more\n");
        input.push(b"@@!12\n");
        assert_eq!(input.next(true), Next::Both("@!12".to_owned(), Vec::new()));
        input.push(b"@@1 x\n");
        assert_eq!(input.next(false), Next::Command(b"@@1 x".to_vec()));
    }

    #[test]
    fn a_line_has_a_limit() {
        let mut input = Input::default();
        input.push(&vec![b'a'; LONGEST_LINE]);
        assert_eq!(input.next(true), Next::More);
        input.push(b"aa");
        assert_eq!(input.next(true), Next::TooLong);
        input.push(b"\n");
        assert_eq!(input.next(true), Next::TooLong);
    }

    #[test]
    fn words_keep_what_is_escaped() {
        let text = |command: &'static str| {
            let words = words(command.as_bytes());
            words.into_iter().map(|(_, word)| String::from_utf8_lossy(word)).collect::<Vec<_>>()
        };
        assert_eq!(text("  a\tb\\ c  d"), ["a", r"b\ c", "d"]);
        assert_eq!(text("a\\"), [r"a\"]);
        assert_eq!(payload(&words(b"add map f <<"), true), Some(Vec::new()));
        assert_eq!(payload(&words(b"add map f <<EOF"), true), Some(b"EOF".to_vec()));
        assert_eq!(payload(&words(b"add map f <<EOF"), false), None);
        assert_eq!(payload(&words(b"add map << f"), true), None);
    }

    proptest! {
        /// Input is cut into the same commands however it is split, and nothing is lost or made up.
        #[test]
        fn where_bytes_are_split_does_not_matter(text in "[ab @;\\\\\n]{0,80}", at in 0usize..80) {
            let all = |parts: &[&[u8]]| {
                let mut input = Input::default();
                let mut found = Vec::new();
                for part in parts {
                    input.push(part);
                    loop {
                        match input.next(true) {
                            Next::More | Next::TooLong => break,
                            other => found.push(other),
                        }
                    }
                }
                (found, input.take())
            };
            let bytes = text.as_bytes();
            let at = at.min(bytes.len());
            prop_assert_eq!(all(&[bytes]), all(&[&bytes[..at], &bytes[at..]]));
        }
    }
}
